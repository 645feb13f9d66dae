"""Whether an address accepts connections."""

import socket

CONNECT_TIMEOUT_S = 1.0


def listens(address: str) -> bool:
    """Whether `host:port` accepts a connection within `CONNECT_TIMEOUT_S`."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True

"""Which start of which kernel this host runs, and under which address others reach it. Under all layers."""

import socket
from pathlib import Path

_SOMEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses for documentation (RFC 5737, RFC 3849). A datagram socket that is connected to one sends nothing."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """A random identifier that changes at every start of the host's kernel; empty if the system has none."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def outward_address(family: socket.AddressFamily = socket.AF_INET) -> str | None:
    """The address of the interface that leads out of this host; None if there is none."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((_SOMEWHERE[family], 9))
            return str(probe.getsockname()[0])
    except OSError:
        return None

"""The protocol of vaults, workers and the driver: frames over TCP. A frame is a JSON object, followed by raw bytes if
the object says so.

A connection begins with the run's token (see `vault_server`). Nothing is unpickled.
"""

import contextlib
import json
import os
import select
import socket
import struct
from collections.abc import Mapping
from typing import Self

from orchestrator.json_values import JsonObject, integer, parse_object

LENGTH = struct.Struct(">I")
"""Of a frame's object, in front of it."""
MAX_HEADER_BYTES = 64 << 20
MAX_HELLO_BYTES = 1024
"""The same for the frame with the token and its answer, before the connection is authenticated."""
CONNECT_TIMEOUT_S = 2.0
_KEEPALIVE = {socket.TCP_KEEPIDLE: 5, socket.TCP_KEEPINTVL: 2, socket.TCP_KEEPCNT: 5}


class WireError(ConnectionError):
    """The other side hung up, refuses us, or speaks another language."""


class RefusedError(WireError):
    """The other side answered with a refusal. The connection can still be used."""


def encode(header: Mapping[str, object], count: int) -> bytes:
    """A frame's object, with its length in front of it; `count` raw bytes follow it."""
    body = json.dumps({**header, "bytes": count}, separators=(",", ":")).encode()
    return LENGTH.pack(len(body)) + body


class Channel:
    """One end of a connection. For one thread at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE.items():
            connection.setsockopt(socket.IPPROTO_TCP, option, value)

    @classmethod
    def connect(cls, address: str, token: str, timeout_s: float) -> Self:
        """Connect to `host:port` and send the token; every later call waits `timeout_s` at most for the other side.

        Raises OSError (WireError if the token is refused).
        """
        host, _, port = address.rpartition(":")
        channel = cls(socket.create_connection((host, int(port)), timeout=min(timeout_s, CONNECT_TIMEOUT_S)))
        channel._socket.settimeout(timeout_s)
        try:
            channel.send({"token": token})
            channel.answer(MAX_HELLO_BYTES)
        except BaseException:
            channel.close()
            raise
        return channel

    def send(self, header: Mapping[str, object], payload: bytes | memoryview = b"") -> None:
        """Send a frame. Raises OSError."""
        self._socket.sendall(encode(header, len(payload)))
        if len(payload):
            self._socket.sendall(payload)

    def send_file(self, header: Mapping[str, object], first: bytes, descriptor: int, offset: int, count: int) -> None:
        """Send a frame whose bytes are `first` and then `count` of a file's, which do not pass through Python."""
        frame = encode(header, len(first) + count)
        timeout_s = self._socket.gettimeout()
        own = os.dup(descriptor)  # whoever owns it may close it meanwhile
        try:
            self._socket.sendall(frame + first)
            self._socket.settimeout(None)  # sendfile on a socket that does not block would have to be polled
            self._limit(timeout_s)
            end = offset + count
            while offset < end:
                sent = os.sendfile(self._socket.fileno(), own, offset, min(end - offset, 1 << 30))
                if not sent:
                    raise WireError("the file ended early")
                offset += sent
        finally:
            os.close(own)
            self._socket.settimeout(timeout_s)

    def receive(self, limit_bytes: int = MAX_HEADER_BYTES) -> tuple[JsonObject, int]:
        """The next frame's object, and how many raw bytes follow; the caller must read them. Raises OSError (WireError
        when the object has over `limit_bytes`)."""
        (length,) = LENGTH.unpack(self._exactly(LENGTH.size))
        if length > limit_bytes:
            raise WireError(f"a frame of {length} bytes is not a valid frame")
        try:
            header = parse_object(self._exactly(length))
            count = integer(header, "bytes")
        except ValueError as error:
            raise WireError(f"not a valid frame: {error}") from error
        del header["bytes"]
        return header, count

    def take(self, count: int) -> bytes:
        """Raw bytes of a frame."""
        return self._exactly(count)

    def take_into(self, out: memoryview) -> None:
        """Raw bytes of a frame, into memory that is there already."""
        done = 0
        while done < len(out):
            received = self._socket.recv_into(out[done:])
            if not received:
                raise WireError("the other side hung up")
            done += received

    def ask(self, header: Mapping[str, object], payload: bytes | memoryview = b"") -> tuple[JsonObject, int]:
        """Send a frame and receive the answer. Raises RefusedError with the other side's message if it refuses."""
        self.send(header, payload)
        return self.answer()

    def answer(self, limit_bytes: int = MAX_HEADER_BYTES) -> tuple[JsonObject, int]:
        """The answer to a frame sent before; see `ask` and `receive`."""
        header, count = self.receive(limit_bytes)
        if "error" in header:
            raise RefusedError(str(header["error"]))
        return header, count

    @property
    def hung_up(self) -> bool:
        """Whether the other side has hung up, if nothing is expected from it."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLHUP)
        return bool(poll.poll(0))

    def abort(self) -> None:
        """Close the channel; a wait on it in another thread raises."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _exactly(self, count: int) -> bytes:
        data = bytearray(count)
        self.take_into(memoryview(data))
        return bytes(data)

    def _limit(self, timeout_s: float | None) -> None:
        seconds = 0 if timeout_s is None else max(1, int(timeout_s))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", seconds, 0))

"""How vaults, workers and the driver talk: frames over TCP. A frame is a JSON object, and raw bytes where it says so.

A connection begins with the run's token; whoever does not know it is hung up on. Nothing is unpickled.
"""

import contextlib
import hmac
import json
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, Self

_LENGTH = struct.Struct(">I")
MAX_HEADER_BYTES = 64 << 20
CONNECT_TIMEOUT_S = 2.0
_KEEPALIVE = {socket.TCP_KEEPIDLE: 5, socket.TCP_KEEPINTVL: 2, socket.TCP_KEEPCNT: 5}
Handler = Callable[["Channel", dict[str, Any]], None]


class WireError(ConnectionError):
    """The other side hung up, refuses us, or speaks another language."""


class RefusedError(WireError):
    """The other side answered, and said no. The connection is as good as before."""


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
        """Connect to `host:port` and show the token; every later call waits `timeout_s` at most for the other side.

        Raises OSError (WireError where the token is refused).
        """
        host, _, port = address.rpartition(":")
        channel = cls(socket.create_connection((host, int(port)), timeout=min(timeout_s, CONNECT_TIMEOUT_S)))
        channel._socket.settimeout(timeout_s)
        try:
            channel.ask({"token": token})
        except BaseException:
            channel.close()
            raise
        return channel

    def send(self, header: dict[str, Any], payload: bytes | memoryview = b"") -> None:
        """Send a frame. Raises OSError."""
        body = json.dumps({**header, "bytes": len(payload)}, separators=(",", ":")).encode()
        self._socket.sendall(_LENGTH.pack(len(body)) + body)
        if len(payload):
            self._socket.sendall(payload)

    def send_file(self, header: dict[str, Any], first: bytes, descriptor: int, offset: int, count: int) -> None:
        """Send a frame whose bytes are `first` and then `count` of a file's, which do not pass through Python."""
        body = json.dumps({**header, "bytes": len(first) + count}, separators=(",", ":")).encode()
        timeout_s = self._socket.gettimeout()
        own = os.dup(descriptor)  # whoever owns it may close it meanwhile
        try:
            self._socket.sendall(_LENGTH.pack(len(body)) + body + first)
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

    def receive(self) -> tuple[dict[str, Any], int]:
        """The next frame's object, and how many raw bytes follow; they have to be taken. Raises OSError."""
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if length > MAX_HEADER_BYTES:
            raise WireError(f"a frame of {length} bytes is no frame of ours")
        try:
            header = json.loads(self._exactly(length))
            return header, int(header.pop("bytes"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WireError(f"not a frame of ours: {error}") from error

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

    def ask(self, header: dict[str, Any], payload: bytes | memoryview = b"") -> tuple[dict[str, Any], int]:
        """Send a frame and receive the answer. Raises RefusedError with the other side's words where it refuses."""
        self.send(header, payload)
        return self.answer()

    def answer(self) -> tuple[dict[str, Any], int]:
        """The answer to a frame sent before; see `ask`."""
        header, count = self.receive()
        if "error" in header:
            raise RefusedError(str(header["error"]))
        return header, count

    @property
    def hung_up(self) -> bool:
        """Whether the other side has hung up, where nothing is to come from it."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLHUP)
        return bool(poll.poll(0))

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


class Server:
    """Answers frames on a port of `host`, a thread for each connection."""

    def __init__(self, host: str, token: str, handle: Handler) -> None:
        """`handle` answers one frame, its raw bytes included; what it raises of OSError ends that connection."""
        self._token, self._handle = token, handle
        info = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        self._listener = socket.create_server((host, 0), family=info[0], backlog=128)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.address = f"{host}:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, name="vault-accept", daemon=True).start()

    def close(self) -> None:
        """Stop listening and hang up on everybody."""
        with self._lock:
            # One that is closed alone goes on being served by the thread that waits at it.
            for each in (self._listener, *self._open):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            for connection in self._open:
                connection.close()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), name="vault-serve", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        channel = Channel(connection)
        try:
            connection.settimeout(CONNECT_TIMEOUT_S)
            hello, count = channel.receive()
            if count or not hmac.compare_digest(str(hello.get("token", "")), self._token):
                channel.send({"error": "wrong token"})
                return
            channel.send({})
            connection.settimeout(None)
            while True:
                header, count = channel.receive()
                self._handle(channel, {**header, "bytes": count})
        except (OSError, ValueError, KeyError):
            return  # hung up: a worker that ended, a node that is gone, a cell that was freed meanwhile
        finally:
            with self._lock:
                self._open.discard(connection)
            channel.close()

"""The listening side of the vaults' protocol (`wire`): accepts, checks the token, and serves each peer in a thread.

Anybody who reaches the port can connect, so what happens before the token is bounded: one thread handles all such
connections without blocking, each may send one small frame within `HANDSHAKE_S`, and only so many are held at a time.
When that many are there, one of the address that has most of them is dropped, its oldest: a peer, which sends its
token at once, gets in however many others wait. No error of accepting ends the listening; only `close` does.
"""

import contextlib
import hmac
import json
import resource
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from orchestrator.checkpoint.memory.wire import LENGTH, MAX_HELLO_BYTES, Channel, WireError, encode
from orchestrator.json_values import JsonObject, JsonValue
from orchestrator.lasting_thread import LastingThread

HANDSHAKE_S = 5.0
"""From a connection to its whole token."""
LOOK_S = 0.5
"""The longest that the accepting thread waits for anything."""
MAX_STRANGERS = 64
"""Connections without a token at a time; fewer where the process may have few descriptors."""
MAX_PEERS = 4096
"""Connections with a token at a time; fewer likewise. Each has a thread."""
ACCEPTS_A_TURN = 16
FIRST_BACKOFF_S = 0.01
LONGEST_BACKOFF_S = 1.0
CLOSE_S = 2.0

Handler = Callable[[Channel, JsonObject], None]


@dataclass(eq=False)
class _Stranger:
    """A connection that has not shown the token yet."""

    connection: socket.socket
    host: str
    deadline_s: float
    data: bytearray = field(default_factory=bytearray)

    def hello(self) -> JsonObject | None:
        """Take what has arrived; the frame once it is whole. Raises OSError (WireError when it is no hello)."""
        while (missing := self._missing()) > 0:
            try:
                received = self.connection.recv(missing)
            except (BlockingIOError, InterruptedError):
                return None
            if not received:
                raise WireError("the other side hung up")
            self.data += received
        found: JsonValue = json.loads(self.data[LENGTH.size :])
        if not isinstance(found, dict) or found.get("bytes") != 0:
            raise WireError("not a hello")
        return found

    def _missing(self) -> int:
        """Bytes to its end, never beyond: what follows the hello belongs to the next frame."""
        if len(self.data) < LENGTH.size:
            return LENGTH.size - len(self.data)
        (length,) = LENGTH.unpack_from(self.data)
        if length > MAX_HELLO_BYTES:
            raise WireError(f"a hello of {length} bytes")
        return LENGTH.size + int(length) - len(self.data)


class VaultServer:
    """Answers frames on a free port of `host`. Thread-safe."""

    def __init__(self, host: str, token: str, handle: Handler) -> None:
        """`handle` answers one frame, its raw bytes included; what it raises of OSError ends that connection.

        Raises OSError, RuntimeError when there is no port or no thread to be had.
        """
        self._token, self._handle = token.encode(), handle
        info = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        self._listener = socket.create_server((host, 0), family=info[0], backlog=128)
        self._listener.setblocking(False)
        self.address = f"{host}:{self._listener.getsockname()[1]}"
        self._strangers: list[_Stranger] = []
        """Oldest first. The accepting thread's own."""
        self._peers: set[socket.socket] = set()
        self._closing = False
        self._lock = threading.Lock()
        """For the two above."""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._accept_at_s: float | None = None
        """When to accept again after an error; None: now."""
        self._backoff_s = FIRST_BACKOFF_S
        self._failing_since_s: float | None = None
        self._turned_s = time.monotonic()
        self.problem = ""
        """Why connections cannot be accepted or served at present; empty when they can."""
        try:
            self._thread = LastingThread("vault-accept", self._turn, self._note)
        except RuntimeError:
            self._selector.close()
            self._listener.close()
            raise

    @property
    def deaf_s(self) -> float:
        """For how long new connections have not been accepted, be it that the thread does not run or that each attempt
        fails; about 0 when all is well."""
        now_s, since_s = time.monotonic(), self._failing_since_s
        silent_s = max(0.0, now_s - self._turned_s - LOOK_S)
        return silent_s if since_s is None else max(silent_s, now_s - since_s)

    def close(self) -> None:
        """Stop listening and hang up on everybody. A connection in use is released when its thread ends."""
        with self._lock:
            self._closing = True
            # A connection that is closed alone goes on being served by the thread that waits at it.
            for each in (self._listener, *self._peers):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)  # also wakes the accepting thread
        self._thread.join(CLOSE_S)
        self._listener.close()

    # The accepting thread ---------------------------------------------------------------------------------------

    def _turn(self) -> bool:
        if self._closing:
            self._release()
            return False
        now_s = time.monotonic()
        self._turned_s = now_s
        if self._accept_at_s is not None and now_s >= self._accept_at_s:
            self._accept_at_s = None
            self._selector.register(self._listener, selectors.EVENT_READ)
        for key, _ in self._selector.select(self._wait_s(now_s)):
            if key.data is None:
                self._accept()
            elif key.data in self._strangers:
                self._hear(key.data)
        now_s = time.monotonic()
        for stranger in [each for each in self._strangers if each.deadline_s <= now_s]:
            self._drop(stranger)
        return True

    def _wait_s(self, now_s: float) -> float:
        due = [stranger.deadline_s for stranger in self._strangers[:1]]
        if self._accept_at_s is not None:
            due.append(self._accept_at_s)
        return max(0.0, min([LOOK_S, *(each - now_s for each in due)]))

    def _accept(self) -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                connection, address = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if not self._closing:
                    self._postpone(error)
                return
            self._backoff_s, self._failing_since_s, self.problem = FIRST_BACKOFF_S, None, ""
            self._admit(connection, str(address[0]))

    def _postpone(self, error: OSError) -> None:
        """Accept again in a moment: most errors are of one connection or for want of descriptors, none is for good."""
        if self._failing_since_s is None:
            self._failing_since_s = time.monotonic()
        self.problem = f"connections cannot be accepted: {error}"
        if self._strangers:
            self._drop(self._one_too_many())
        self._selector.unregister(self._listener)
        self._accept_at_s = time.monotonic() + self._backoff_s
        self._backoff_s = min(LONGEST_BACKOFF_S, 2 * self._backoff_s)

    def _admit(self, connection: socket.socket, host: str) -> None:
        connection.setblocking(False)
        stranger = _Stranger(connection, host, time.monotonic() + HANDSHAKE_S)
        self._strangers.append(stranger)
        self._selector.register(connection, selectors.EVENT_READ, stranger)
        self._hear(stranger)  # its token may have arrived with it
        if len(self._strangers) > _limits()[0]:
            self._drop(self._one_too_many())

    def _one_too_many(self) -> _Stranger:
        counts = Counter(stranger.host for stranger in self._strangers)
        most = max(counts.values())
        return next(stranger for stranger in self._strangers if counts[stranger.host] == most)

    def _hear(self, stranger: _Stranger) -> None:
        try:
            hello = stranger.hello()
        except Exception as error:  # noqa: BLE001  # anybody can send anything: it ends that connection, no more
            self._refuse(stranger, f"no hello: {type(error).__name__}")
            return
        if hello is None:
            return
        if not hmac.compare_digest(str(hello.get("token", "")).encode(errors="replace"), self._token):
            self._refuse(stranger, "wrong token")
            return
        limit = _limits()[1]
        with self._lock:
            full = len(self._peers) >= limit
            if not full and not self._closing:
                self._peers.add(stranger.connection)
        if full or self._closing:
            self._refuse(stranger, f"{limit} connections are open, and no more are taken")
            return
        self._forget(stranger)
        self._hand_over(stranger.connection)

    def _hand_over(self, connection: socket.socket) -> None:
        try:
            threading.Thread(target=self._serve, args=(connection,), name="vault-serve", daemon=True).start()
        except (RuntimeError, MemoryError) as error:
            self.problem = f"a connection cannot be served: {error}"
            _send_now(connection, {"error": self.problem})
            self._end(connection)

    def _refuse(self, stranger: _Stranger, why: str) -> None:
        _send_now(stranger.connection, {"error": why})
        self._drop(stranger)

    def _drop(self, stranger: _Stranger) -> None:
        self._forget(stranger)
        stranger.connection.close()

    def _forget(self, stranger: _Stranger) -> None:
        self._strangers.remove(stranger)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(stranger.connection)

    def _release(self) -> None:
        for stranger in list(self._strangers):
            self._drop(stranger)
        self._selector.close()

    def _note(self, problem: str) -> None:
        self.problem = problem

    # Threads of peers -------------------------------------------------------------------------------------------

    def _serve(self, connection: socket.socket) -> None:
        try:
            connection.settimeout(HANDSHAKE_S)
            channel = Channel(connection)
            channel.send({})
            connection.settimeout(None)
            while True:
                header, count = channel.receive()
                self._handle(channel, {**header, "bytes": count})
        except (OSError, ValueError, KeyError, TypeError):
            return  # hung up: a worker that ended, a node that is gone, a frame that is not what it should be
        finally:
            self._end(connection)

    def _end(self, connection: socket.socket) -> None:
        with self._lock:
            self._peers.discard(connection)
        connection.close()


def _limits() -> tuple[int, int]:
    """Most strangers and most peers, within what the process may open now."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MAX_STRANGERS, MAX_PEERS
    return min(MAX_STRANGERS, max(2, files // 8)), min(MAX_PEERS, max(4, files // 2))


def _send_now(connection: socket.socket, header: Mapping[str, object]) -> None:
    """Send a small frame if it fits what the kernel takes at once; else not."""
    with contextlib.suppress(OSError):
        connection.setblocking(False)
        connection.send(encode(header, 0))

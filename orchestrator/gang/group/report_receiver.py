"""The driver's end of its workers' connections: takes in what they push, in one thread for all of them.

What holds news is put into one queue, for the driver's loop; of heartbeats only the newest of each worker is kept.
The loop confirms a batch after it has dealt with it (`confirm`), and a worker sends the next one only then: what is
waiting here is bounded by one batch for each worker.
"""

import contextlib
import os
import resource
import secrets
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.checkpoint.memory.vault_server import CLOSE_S, VaultServer
from orchestrator.checkpoint.memory.wire import LENGTH, MAX_HEADER_BYTES, Channel, WireError, encode
from orchestrator.gang.agent.report_frames import ReportAccess, decode_batch, decode_beat
from orchestrator.gang.agent.report_queue import Heartbeat, ReportBatch
from orchestrator.json_values import JsonObject, parse_object, text
from orchestrator.lasting_thread import LastingThread

READ_BYTES = 1 << 18
LOOK_S = 0.5
"""The longest that the thread waits for anything."""
FILES_FOR_WORKER = 4
"""Descriptors that the driver may need for each worker: its connection, its share of those to the vaults, and room."""
FILES_BESIDE = 1024


@dataclass(frozen=True)
class TimedHeartbeat:
    """The newest of a worker."""

    beat: Heartbeat
    at_s: float
    """When it arrived, by this process's monotonic clock."""


@dataclass(eq=False)
class _Connection:
    """One worker's."""

    socket: socket.socket
    worker: str | None = None
    """None: it has not said yet."""
    data: bytearray = field(default_factory=bytearray)


class ReportReceiver:
    """Listens on a free port of `host` until `close`."""

    def __init__(self, host: str, arrived: Callable[[str, ReportBatch], None]) -> None:
        """`arrived` is called in another thread with each batch that holds something, and its worker's name.

        Raises OSError, RuntimeError if there is no port or no thread to be had.
        """
        self._arrived = arrived
        self._token = secrets.token_hex(16)
        self._named: dict[str, _Connection] = {}
        """By worker. Written by the receiving thread alone."""
        self._beats: dict[str, TimedHeartbeat] = {}
        self._beats_lock = threading.Lock()
        self._new: deque[socket.socket] = deque()
        self._selector = selectors.DefaultSelector()
        self._woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._closing = False
        try:
            self._server = VaultServer(host, self._token, _serve_nothing, self._admit)
            self._thread = LastingThread("report-receiver", self._turn)
        except (OSError, RuntimeError):
            self._selector.close()
            os.close(self._woken)
            raise

    def access(self, worker: str) -> ReportAccess:
        """How the worker of this name connects."""
        return ReportAccess(self._server.address, worker, self._token)

    def connected(self, worker: str) -> bool:
        """Whether there is a connection of the worker."""
        return worker in self._named

    def beats(self) -> dict[str, TimedHeartbeat]:
        """The newest heartbeat of each worker that has sent one since the last call."""
        with self._beats_lock:
            found, self._beats = self._beats, {}
        return found

    def confirm(self, worker: str, number: int) -> None:
        """Tell a worker that its batches up to this number have been dealt with. If that cannot be sent at once, the
        worker has to connect again, and sends the batch again."""
        connection = self._named.get(worker)
        if connection is None:
            return
        frame = encode({"seen": number}, 0)
        try:
            if connection.socket.send(frame) == len(frame):
                return
        except OSError:
            pass
        with contextlib.suppress(OSError):
            connection.socket.shutdown(socket.SHUT_RDWR)  # the receiving thread sees its end

    def close(self) -> None:
        """Stop listening, and hang up on everybody."""
        self._closing = True
        self._server.close()
        self._wake()
        self._thread.join(CLOSE_S)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            os.eventfd_write(self._woken, 1)

    def _admit(self, connection: socket.socket) -> None:
        """In the accepting thread."""
        self._new.append(connection)
        self._wake()

    # The receiving thread ---------------------------------------------------------------------------------------

    def _turn(self) -> bool:
        if self._closing:
            self._release()
            return False
        for key, _ in self._selector.select(LOOK_S):
            if isinstance(key.data, _Connection):
                self._read(key.data)
            else:
                os.eventfd_read(self._woken)
        while self._new:
            connection = self._new.popleft()
            Channel(connection)  # sets its options
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ, _Connection(connection))
        return True

    def _read(self, connection: _Connection) -> None:
        """Take in what has arrived. Whatever is wrong with it ends this connection alone."""
        try:
            count = connection.socket.recv_into(self._buffer)
            if not count:
                raise WireError("the other side hung up")
            connection.data += self._buffer[:count]
            for frame in _whole_frames(connection.data):
                self._take(connection, frame)
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, ValueError):
            self._drop(connection)

    def _take(self, connection: _Connection, frame: JsonObject) -> None:
        if connection.worker is None:
            worker = text(frame, "worker")
            before = self._named.pop(worker, None)
            if before is not None:
                self._drop(before)
            connection.worker, self._named[worker] = worker, connection
            return
        sign = TimedHeartbeat(decode_beat(frame), time.monotonic())
        with self._beats_lock:
            self._beats[connection.worker] = sign
        if "number" in frame:
            self._arrived(connection.worker, decode_batch(frame))

    def _drop(self, connection: _Connection) -> None:
        if connection.worker is not None and self._named.get(connection.worker) is connection:
            del self._named[connection.worker]
        self._selector.unregister(connection.socket)
        self._server.release(connection.socket)

    def _release(self) -> None:
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, _Connection):
                self._drop(key.data)
        while self._new:
            self._server.release(self._new.popleft())
        self._selector.close()
        os.close(self._woken)


def make_room(workers: int) -> None:
    """Raise this process's limit of open files, within what it may, if so many workers need that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = FILES_BESIDE + FILES_FOR_WORKER * workers
    if soft != resource.RLIM_INFINITY and soft < need:
        resource.setrlimit(resource.RLIMIT_NOFILE, (need if hard == resource.RLIM_INFINITY else min(need, hard), hard))


def _whole_frames(data: bytearray) -> list[JsonObject]:
    """The objects of the frames that have arrived whole, which are taken out of `data`. Raises ValueError (WireError if
    one is too large, or is followed by raw bytes)."""
    frames, start = [], 0
    while len(data) - start >= LENGTH.size:
        (length,) = LENGTH.unpack_from(data, start)
        if length > MAX_HEADER_BYTES:
            raise WireError(f"a frame of {length} bytes is not a valid frame")
        end = start + LENGTH.size + length
        if len(data) < end:
            break
        frame = parse_object(bytes(data[start + LENGTH.size : end]))
        if frame.get("bytes") != 0:
            raise WireError("a frame with raw bytes")
        frames.append(frame)
        start = end
    del data[:start]
    return frames


def _serve_nothing(channel: Channel, frame: JsonObject) -> None:
    """No connection has a thread here."""

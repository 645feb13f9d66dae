"""A worker's connection to its driver, over which it pushes what is in its queue as soon as it is there."""

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable

from orchestrator.checkpoint.memory.wire import Channel
from orchestrator.gang.agent.report_frames import BEAT_S, ReportAccess, encode_batch
from orchestrator.gang.agent.report_queue import Heartbeat, ReportBatch, ReportQueue
from orchestrator.json_values import integer
from orchestrator.lasting_thread import LastingThread

CALL_S = 5.0
"""For each call on the connection. A driver that is paused for longer is connected to again."""
ANSWER_BYTES = 1024
"""The largest answer of the driver."""
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
"""Between attempts to connect; twice as long each time. Meanwhile the driver polls."""
END_S = 2.0
"""How long `close` waits for the thread."""


class ReportSender:
    """Connects in a thread of its own, again and again if necessary, and sends until `close`."""

    def __init__(self, access: ReportAccess, queue: ReportQueue, heartbeat: Callable[[], Heartbeat]) -> None:
        """`heartbeat` gives the worker's present heartbeat."""
        self._access, self._queue, self._heartbeat = access, queue, heartbeat
        self._channel: Channel | None = None
        self._sent = 0
        """Number of the last batch that was sent over this connection."""
        self._beat_due_s = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._closing = threading.Event()
        self._woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        queue.wake(self._wake)
        self._thread = LastingThread("reports", self._turn)

    @property
    def access(self) -> ReportAccess:
        """What it was made with."""
        return self._access

    def close(self) -> None:
        """Hang up. What is in the queue stays there."""
        self._closing.set()
        self._wake()
        if self._thread.join(END_S):
            self._queue.wake(None)
            os.close(self._woken)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: then it is awake
            os.eventfd_write(self._woken, 1)

    def _turn(self) -> bool:
        if self._closing.is_set():
            self._disconnect()
            return False
        try:
            if self._channel is None:
                self._connect()
            else:
                self._exchange(self._channel)
        except (OSError, ValueError):  # gone, full, refused, or not our driver
            self._disconnect()
            self._closing.wait(self._pause_s)
            self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)
        return True

    def _connect(self) -> None:
        channel = Channel.connect(self._access.address, self._access.token, CALL_S)
        self._channel, self._sent, self._beat_due_s = channel, 0, 0.0
        channel.send({"worker": self._access.worker})

    def _exchange(self, channel: Channel) -> None:
        """Wait for an answer, for news, or until a heartbeat is due, and deal with it. Raises OSError, ValueError
        (an answer that is not the protocol's)."""
        ready = self._wait(channel.fileno(), max(0.0, self._beat_due_s - time.monotonic()))
        if self._woken in ready:
            os.eventfd_read(self._woken)
        if channel.fileno() in ready:
            answer, _ = channel.receive(ANSWER_BYTES)
            self._queue.confirm(integer(answer, "seen"))
            self._pause_s = FIRST_PAUSE_S
        heartbeat = self._heartbeat()
        batch = self._queue.to_send(heartbeat, self._sent)
        if batch is None and time.monotonic() < self._beat_due_s:
            return
        channel.send(encode_batch(batch or ReportBatch(heartbeat)))
        self._beat_due_s = time.monotonic() + BEAT_S
        if batch is not None:
            self._sent = batch.number

    def _wait(self, descriptor: int, wait_s: float) -> set[int]:
        """Which of the connection and the waking has something, after at most so long."""
        poll = select.poll()
        for each in (descriptor, self._woken):
            poll.register(each, select.POLLIN)
        return {ready for ready, _ in poll.poll(wait_s * 1000.0)}

    def _disconnect(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

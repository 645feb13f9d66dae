"""What reaches the driver's loop from its workers, in one queue: pushed batches, and answers of Ray."""

from dataclasses import dataclass
from queue import Empty, SimpleQueue

from orchestrator.clusters.ray.handles import ObjectRef
from orchestrator.gang.agent.report_frames import ReportAccess
from orchestrator.gang.agent.report_queue import ReportBatch
from orchestrator.gang.group.report_receiver import ReportReceiver, TimedHeartbeat, make_room


@dataclass(frozen=True)
class Pushed:
    """A batch that a worker pushed."""

    worker: str
    batch: ReportBatch


@dataclass(frozen=True)
class Answered:
    """Ray has the answer to a call of an actor, or knows that there will be none."""

    ref: ObjectRef


class ReportInbox:
    """For one run: it lasts from gang to gang. All methods but `put` are for the driver's thread."""

    def __init__(self) -> None:
        self._news: SimpleQueue[Pushed | Answered] = SimpleQueue()
        self._receiver: ReportReceiver | None = None

    def open(self, host: str, workers: int) -> None:
        """Let workers connect, at an address of this host. Without it, and as long as a worker is not connected, it has
        to be polled. Raises OSError, RuntimeError if there is no port or no thread to be had."""
        make_room(workers)
        self._receiver = ReportReceiver(host, lambda worker, batch: self._news.put(Pushed(worker, batch)))

    def access(self, worker: str) -> ReportAccess | None:
        """How the worker of this name connects; None if workers cannot."""
        return None if self._receiver is None else self._receiver.access(worker)

    def connected(self, worker: str) -> bool:
        """Whether the worker is connected."""
        return self._receiver is not None and self._receiver.connected(worker)

    def beats(self) -> dict[str, TimedHeartbeat]:
        """The newest heartbeat of each connected worker since the last call."""
        return {} if self._receiver is None else self._receiver.beats()

    def watch(self, ref: ObjectRef) -> None:
        """Have the answer to a call among the news as soon as Ray has it."""
        ref.future().add_done_callback(lambda _: self._news.put(Answered(ref)))

    def wait(self, timeout_s: float) -> list[Pushed | Answered]:
        """All news there are, after at most `timeout_s` if there are none."""
        found: list[Pushed | Answered] = []
        try:
            found.append(self._news.get(timeout=timeout_s))
            while True:
                found.append(self._news.get_nowait())
        except Empty:
            return found

    def confirm(self, pushed: Pushed) -> None:
        """A batch has been dealt with."""
        if self._receiver is not None:
            self._receiver.confirm(pushed.worker, pushed.batch.number)

    def close(self) -> None:
        """Hang up on all workers."""
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.close()

"""`Session` for a worker run by Ray: reports are queued for the agent, values arrive through its notices."""

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.domain.errors import NotPublishedError
from orchestrator.domain.events import Event, EventBody
from orchestrator.domain.policy.hang import CollectiveCounts, Phase
from orchestrator.domain.session import Leave, VaultAccess
from orchestrator.domain.step_report import StepReport
from orchestrator.gang.agent.process_activity import Activity
from orchestrator.gang.agent.report_frames import ReportAccess
from orchestrator.gang.agent.report_queue import Heartbeat, Published, ReportQueue
from orchestrator.gang.file_transfer import Files


@dataclass(frozen=True)
class Assignment:
    """A worker's role in a generation."""

    rank: int
    world_size: int
    local_rank: int
    node_ip: str
    generation: int = 0
    """Number of the generation; states of different generations are never mixed."""
    vault: VaultAccess | None = None
    """The vault of the worker's node."""
    reports: ReportAccess | None = None
    """Where to push reports; None: they wait until they are polled."""
    node_id: str = ""
    """Id of the worker's node in the cluster."""


class RaySession:
    """Created and called by the training thread; the agent reads `heartbeat` and calls `deliver`, `request_leave` and
    `interrupt`."""

    def __init__(self, assignment: Assignment, outbox: ReportQueue, files: Files) -> None:
        self._assignment = assignment
        self._outbox = outbox
        self._files = files
        self._leave = Leave.NO
        self._save = False
        self._unblock: Callable[[], None] | None = None
        self._count: Callable[[], CollectiveCounts | None] | None = None
        self._interrupted = threading.Event()
        self._values: dict[str, str] = {}
        self._delivered = threading.Condition()
        self._beat = (0, Phase.START, 0, time.monotonic())
        """Step, phase, beats in this step, when. Replaced as a whole by the training thread: needs no lock."""
        self._parts = itertools.count(1)
        self._progress = (0, self._beat[3])
        """Parts of long operations that are done, and when the last one was. Replaced as a whole, like the beat."""
        self._activity = Activity(threading.get_native_id())

    @property
    def rank(self) -> int:
        return self._assignment.rank

    @property
    def generation(self) -> int:
        """Generation of this session."""
        return self._assignment.generation

    @property
    def world_size(self) -> int:
        return self._assignment.world_size

    @property
    def local_rank(self) -> int:
        return self._assignment.local_rank

    @property
    def node_ip(self) -> str:
        return self._assignment.node_ip

    @property
    def node_id(self) -> str:
        return self._assignment.node_id

    @property
    def heartbeat(self) -> Heartbeat:
        """How far the training thread reports to be, and whether its process is working. Only for the agent."""
        (step, phase, beats, beat_s), (parts, part_s) = self._beat, self._progress
        now_s = time.monotonic()
        idle_s = now_s - max(beat_s, part_s)
        self._activity.sample(phase, idle_s, now_s)
        progress = parts + self._activity.count
        rank, generation = self._assignment.rank, self._assignment.generation
        return Heartbeat(rank, step, phase, beats, idle_s, progress, self._activity.blocked, generation)

    def beat(self, step: int, phase: Phase) -> None:
        before, _, beats, _ = self._beat
        self._beat = (step, phase, beats + 1 if step == before else 0, time.monotonic())

    def progress(self) -> None:
        self._progress = (next(self._parts), time.monotonic())

    def report_step(self, report: StepReport) -> None:
        self._outbox.put(report)

    def report_event(self, body: EventBody) -> None:
        self._outbox.put(Event(body, time.time()))

    def leave(self) -> Leave:
        return self._leave

    def save_asked(self) -> bool:
        asked, self._save = self._save, False
        return asked

    @property
    def vault(self) -> VaultAccess | None:
        return self._assignment.vault

    def use_vault(self, vault: VaultAccess) -> None:
        """Agent: the vault that `vault` names from now on."""
        self._assignment = replace(self._assignment, vault=vault)

    def on_interrupt(self, unblock: Callable[[], None] | None) -> None:
        self._unblock = unblock

    def count_collectives(self, count: Callable[[], CollectiveCounts | None] | None) -> None:
        self._count = count

    def collective_counts(self) -> CollectiveCounts | None:
        """Agent: how far this rank's collectives are; None if unknown."""
        count = self._count
        return None if count is None else count()

    @property
    def interrupted(self) -> bool:
        return self._interrupted.is_set()

    def publish(self, key: str, value: str) -> None:
        self.deliver({key: value})
        self._outbox.put(Published(key, value))

    def lookup(self, key: str, timeout_s: float) -> str:
        deadline = time.monotonic() + timeout_s
        with self._delivered:
            while key not in self._values:
                if self._interrupted.is_set():
                    raise NotPublishedError(f"no rank published {key!r} before the gang was interrupted")
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise NotPublishedError(f"no rank published {key!r} within {timeout_s:.0f} s")
                self._delivered.wait(left_s)
            return self._values[key]

    @property
    def shares_files(self) -> bool:
        """Whether this worker sees the driver's files under the driver's paths."""
        return self._files.shared

    def fetch(self, path: str) -> Path:
        return self._files.fetch(path, self.progress)

    def store(self, local: Path, path: str) -> None:
        self._files.store(local, path, self.progress)

    def move_into_place(self, path: str, final: str) -> None:
        self._files.move_into_place(path, final)

    def deliver(self, values: dict[str, str]) -> None:
        """Values that other ranks published."""
        with self._delivered:
            self._values.update(values)
            self._delivered.notify_all()

    def request_leave(self, leave: Leave) -> None:
        """Set what `leave` returns from now on; a stop cannot be withdrawn."""
        self._leave = max(self._leave, leave)

    def request_save(self) -> None:
        """Make `save_asked` true, once."""
        self._save = True

    def interrupt(self) -> None:
        """Agent: interrupt any wait of the training thread. One call is not always enough."""
        self._interrupted.set()
        with self._delivered:
            self._delivered.notify_all()
        unblock = self._unblock
        if unblock is not None:
            unblock()

"""What the tests of the fault matrix share: a job, faults that strike in a phase, and the proof that nothing shows."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psutil

from orchestrator.checkpoint.storage.checkpoint_catalog import list_checkpoints
from orchestrator.clusters.ray.node_processes import descendants, is_head, raylet_of
from orchestrator.domain.events import (
    EVENT_TYPES,
    DataProgress,
    Event,
    EventBody,
    RunCreated,
    RunState,
    WorkerLog,
    WorkerStarted,
)
from orchestrator.domain.fault_plan import Arranged
from orchestrator.drill.process_faults import send
from orchestrator.run.launcher import RunOutcome, run_job
from orchestrator.spec.loading.load import load_job
from orchestrator.store.data_proof import prove
from orchestrator.store.run_history import current_steps
from orchestrator.store.run_store import RunStore
from tests.cluster.gang_runs import Recording, command_of, ray_processes, shared_memory, write_job
from tests.cluster.pauses import ENTRY, Pauses, Point
from tests.cluster.standing import Driver

BATCH, STEPS = 12, 24
STRIKE_STEP, NAN_STEP = 12, 13
EVERY = 4
"""Steps between durable checkpoints: two are there when a fault strikes."""
JOB: dict[str, Any] = {
    "train": {"steps": STEPS, "global_batch": BATCH, "lr": 1e-3},
    "zero": {"stage": 1},
    "resources": {"workers": 2},
    "cluster": {"nodes": 2, "cpus_per_node": 1},
    "checkpoint": {"memory_interval_steps": 1, "interval_steps": EVERY, "keep_last": 3},
}
TWO: dict[str, Any] = {"resources": {"workers": {"min": 1, "max": 2}}, "cluster": JOB["cluster"]}
THREE: dict[str, Any] = {"resources": {"workers": {"min": 1, "max": 3}}, "cluster": {"nodes": 3, "cpus_per_node": 1}}
PATIENCE_S = 100.0

Hit = Callable[["Striker", int], None]


class Striker(Recording):
    """Watches a run, and strikes once, from a thread of its own, while a process stands still at a point.

    As a context it sees to it that the thread has ended, and raises what went wrong in it.
    """

    def __init__(self, pauses: Pauses | None = None, hit: Hit | None = None) -> None:
        super().__init__()
        self.pids: dict[int, int] = {}
        self.struck = 0
        self.checkpoints = Path()
        self._pauses, self._hit = pauses, hit
        self._at: tuple[type[EventBody], int] | None = None
        self._next: tuple[Point, int, int] | None = None
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []
        self._seen: dict[type[EventBody], threading.Event] = {kind: threading.Event() for kind in EVENT_TYPES}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._pauses is not None
        self._pauses.release()
        for thread in self._threads:
            thread.join(5.0)
        if self._errors:
            raise self._errors[0]

    def plan(
        self,
        point: Point,
        step: int,
        rank: int,
        first: str | None = None,
        hold: bool = True,
        until: type[EventBody] | None = None,
    ) -> None:
        """Strike at a point; where `first` names a fault, that one, which does not count. `until`: the process that
        stands still there goes on only after an event."""
        assert self._pauses is not None
        self._pauses.arm(point, step, rank, hold)
        self._start(self._at_point, rank, first, until)

    def then(self, point: Point, step: int, rank: int) -> None:
        """After the first fault, strike at another point."""
        self._next = (point, step, rank)

    def strike_at(self, kind: type[EventBody], rank: int) -> None:
        """Strike when the first event of a kind is told, in the driver's own thread."""
        self._at = (kind, rank)

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        if isinstance(event.body, WorkerStarted):
            self.pids[int(event.body.rank)] = int(event.body.pid)
        self._seen[type(event.body)].set()
        if self._at is not None and isinstance(event.body, self._at[0]):
            rank, self._at = self._at[1], None
            self._strike(rank)

    def raylet(self, rank: int) -> psutil.Process:
        """Of a rank's node, which must not be the one that holds the cluster's own state."""
        found = raylet_of(self.pids[rank])
        assert not is_head(found)
        return found

    def vaults(self) -> list[psutil.Process]:
        """All processes that are vaults of this cluster."""
        children = descendants(os.getpid())
        return [each for each in children if "ray::ConvoyVault" in command_of(each)]

    def story(self) -> str:
        """What happened, for a test that fails."""
        quiet = (WorkerLog, DataProgress)
        told = [each for each in self.events if not isinstance(each.body, quiet)]
        return "\n".join(f"{each.time_s:.2f} {each.body}" for each in told)[-6000:]

    def _start(self, what: Callable[..., None], *arguments: Any) -> None:
        def guarded() -> None:
            try:
                what(*arguments)
            except BaseException as error:  # noqa: BLE001  # raised by `__exit__`
                self._errors.append(error)

        self._threads.append(threading.Thread(target=guarded, daemon=True))
        self._threads[-1].start()

    def _at_point(self, rank: int, first: str | None, until: type[EventBody] | None) -> None:
        assert self._pauses is not None
        self._await(lambda: self._pauses.reached is not None, "nobody came to the point")  # type: ignore[union-attr]
        if first is not None:
            strike(first, self, rank)
            if self._next is None:
                self._pauses.release()  # who survived must not stand still at a boundary for a process that is gone
                return
            point, step, victim = self._next
            self._pauses.arm(point, step, victim)
            self._at_point(victim, None, None)
            return
        if until is not None:
            self._await(self._seen[until].is_set, f"no {until}")
        else:
            self._strike(rank)
        self._pauses.release()

    def _strike(self, rank: int) -> None:
        assert self._hit is not None
        self._hit(self, rank)
        self.struck += 1

    def _await(self, ready: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not ready():
            if time.monotonic() > deadline:
                raise AssertionError(otherwise)
            time.sleep(0.003)


def strike(fault: str, striker: Striker, rank: int) -> None:
    """Do it, to the process or the node of a rank."""
    if fault in ("kill-node", "silence-node"):
        send(striker.raylet(rank), signal.SIGKILL if fault == "kill-node" else signal.SIGSTOP)
        return
    if fault == "corrupt-shard":
        corrupt_newest(striker.checkpoints)
        for vault in striker.vaults():  # or nobody would have to read it
            vault.kill()
    os.kill(striker.pids[rank], signal.SIGSTOP if fault == "hang-rank" else signal.SIGKILL)


def corrupt_newest(checkpoints: Path) -> None:
    """Flip a bit of the newest checkpoint that exists, once the two that are due by then do."""
    deadline = time.monotonic() + 30.0
    while True:
        found = [entry for entry in list_checkpoints(checkpoints) if entry.problem is None]
        if found and found[0].step >= STRIKE_STEP - EVERY:
            break
        assert time.monotonic() < deadline, f"checkpoints {[entry.step for entry in found]}"
        time.sleep(0.05)
    shard = sorted(found[0].path.glob("*.bin"))[0]
    with shard.open("r+b") as file:
        file.seek(shard.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x10]))


def train(directory: Path, striker: Striker, arranged: Arranged | None = None, **changes: Any) -> RunOutcome:
    """Run the job in this process."""
    job = load_job(write_job(directory, **{**JOB, **changes}))
    runs = directory / "runs"
    seen = striker.on_event

    def note(event: Event) -> None:
        if isinstance(event.body, RunCreated):
            striker.checkpoints = runs / str(event.body.run_id) / "checkpoints"
        seen(event)

    striker.on_event = note  # type: ignore[method-assign]
    return run_job(job, runs, [striker], threading.Event(), ENTRY, arranged)


def curve(outcome: RunOutcome) -> list[float]:
    """Losses of the final lineage, after the proof that its data is exact."""
    assert outcome.state is RunState.SUCCEEDED, outcome.reason
    return proved(outcome.run_dir.parent)


def proved(home: Path) -> list[float]:
    """The same of the last run under `home`."""
    record = RunStore(home).read("last")
    assert record.state is RunState.SUCCEEDED
    proof = prove(record)
    assert proof.ok, proof.mismatch
    steps = current_steps(record.layout.steps)
    assert [step.step for step in steps] == list(range(1, STEPS + 1))
    return [step.loss for step in steps]


def nothing_is_left(pids: set[int], shm: set[str]) -> None:
    """No process, and no shared memory, that was not there before."""
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline and (ray_processes(pids) or shared_memory() - shm):
        time.sleep(0.1)
    assert ray_processes(pids) == []
    assert shared_memory() - shm == set()


def driver_is_killed(phase: str, directory: Path, pauses: Pauses, address: str) -> list[float]:
    """Kill the driver of a run in a phase, and let another one end it; the losses."""
    home, program = directory / "runs", [sys.executable, "-m", "tests.cluster.pausing_driver"]
    settings = {**JOB, "cluster": {"address": address}, "recovery": {"memory_kept_s": 30}}
    point = Point.STEP if phase in ("waiting", "restore") else Point(phase)
    pauses.arm(point, STRIKE_STEP, 1)
    first = Driver(home, str(write_job(directory, **settings)), program=program)
    deadline = time.monotonic() + PATIENCE_S
    while pauses.reached is None:
        assert time.monotonic() < deadline, first.errors()
        time.sleep(0.005)
    if phase in ("waiting", "restore"):
        victim = next(int(event["pid"]) for event in first.of("worker.started") if event["rank"] == 1)
        if phase == "restore":
            pauses.arm(Point.RESTORE, 0, 0)
        os.kill(victim, signal.SIGKILL)
        if phase == "waiting":
            pauses.release()
        while not (first.of("recovery.started") if phase == "waiting" else pauses.reached):
            assert time.monotonic() < deadline, first.errors()
            time.sleep(0.005)
    first.kill()
    assert RunStore(home).read("last").lost
    pauses.release()
    second = Driver(home, "--resume", "last")
    assert second.end() == 0, second.errors()
    (adopted,) = second.of("vaults.adopted")
    assert adopted["vaults"] == 2
    # Not a step that was whole is lost: at most the one whose copies were on their way.
    assert adopted["step"] >= STRIKE_STEP - 2, adopted
    assert second.of("step")[0]["step"] == adopted["step"] + 1
    return proved(home)

"""Entry points for workers that do not train: small, so that a test of the gang is fast."""

import ctypes
import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.format.exported import PROVENANCE
from orchestrator.domain.devices.device import DeviceProblem
from orchestrator.domain.events import WarningIssued, WorkerPhase
from orchestrator.domain.lease import GENERATIONS_PER_TOKEN
from orchestrator.domain.policy.hang import Phase
from orchestrator.domain.ranks.rank_report import PhaseTimes, RankMemory, RankReport
from orchestrator.domain.ranks.rank_summary import summarise
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.session import Leave, Session, TrainPlan, TrainResult
from orchestrator.domain.step_report import StepReport
from tests.events import body

HEADROOM_BYTES = 200 * 2**20
"""Enough to build a small engine and threads, too little for a step of many samples at once."""
RELIEF_BYTES = 200 * 2**20
"""For the gang that does with less, and the threads of the export after it: each asks for 64 MiB of addresses."""


def gang_of(session: Session) -> int:
    """Which gang of its driver this one is: 1 for the first."""
    return int(getattr(session, "generation", 0)) % GENERATIONS_PER_TOKEN


def a_step(step: int, world_size: int) -> StepReport:
    """A report with plausible numbers."""
    rank = RankReport(0, 1, 8, PhaseTimes(0.0, 0.01, 0.02, 0.001), RankMemory(1, 1))
    return StepReport(
        step=step,
        time_s=time.time(),
        epoch=0.1,
        loss=1.0 / step,
        grad_norm=1.0,
        lr=0.1,
        tokens=8,
        target_tokens=7,
        samples=1,
        first_position=step - 1,
        data_digest=1,
        step_time_s=0.05,
        tokens_per_s=160.0,
        tokens_per_s_per_worker=80.0,
        tflops_per_s=None,
        mfu=None,
        world_size=world_size,
        micro_batch=1,
        accumulation=1,
        ranks=summarise((rank,)),
    )


def pretend_to_export(session: Session, plan: TrainPlan, step: int) -> None:
    """What a run has to have in the end, without a model."""
    work = RunLayout(Path(plan.run_dir)).export_in_work("pretended")
    written = Path(tempfile.mkdtemp()) / PROVENANCE
    written.write_text(json.dumps({"step": step, "files": {}}))
    session.store(written, str(work / PROVENANCE))
    session.move_into_place(str(work), str(RunLayout(Path(plan.run_dir)).export))


def ring(session: Session, plan: TrainPlan) -> TrainResult:
    """Every rank publishes a value and reads every other's, prints from Python and from C, and reports steps."""
    started = time.monotonic()
    session.publish(f"from-{session.rank}", str(session.rank * 11))
    total = sum(int(session.lookup(f"from-{rank}", 20.0)) for rank in range(session.world_size))
    seconds = time.monotonic() - started
    print(f"python line of rank {session.rank}", flush=True)
    libc = ctypes.CDLL(None)
    libc.puts(f"C line of rank {session.rank}".encode())
    libc.fflush(None)
    if session.rank == 0:
        session.report_event(body(WorkerPhase, rank=0, phase="train"))
        for step in range(1, 4):
            session.report_step(a_step(step, session.world_size))
    facts: dict[str, Any] = {"total": total, "local_rank": session.local_rank, "seconds": seconds}
    session.report_event(body(WarningIssued, message=f"facts {session.rank} {total} {session.local_rank}"))
    if session.rank == 0:
        pretend_to_export(session, plan, 3)
    return TrainResult(3, True, facts=facts)


def raise_on_last(session: Session, plan: TrainPlan) -> TrainResult:
    """The last rank fails; the others wait for a value that never comes."""
    if session.rank == session.world_size - 1:
        time.sleep(0.3)
        print("about to fail", file=sys.stderr)
        raise_from_here({"why": "on purpose"})
    session.lookup("never", 60.0)
    return TrainResult(0, True)


class NotPicklable(Exception):
    """Cannot be sent as an object: its arguments are not those of its constructor, and it holds a generator."""

    def __init__(self, first: object, second: object) -> None:
        super().__init__("unusual failure")
        self.held = (x for x in (first, second))


def raise_from_here(value: object) -> None:
    """A frame of its own, to be found in the traceback."""
    raise NotPicklable(value, 2)


def die_on_last(session: Session, plan: TrainPlan) -> TrainResult:
    """The last rank ends by the signal or exit code in `plan.data_dir`'s place in the spec's name."""
    how = str(plan.spec["name"]).rpartition("-")[2]
    if session.rank == session.world_size - 1:
        print("last words", flush=True)
        if how == "exit":
            os._exit(3)
        if how == "segv":
            ctypes.string_at(0)
        os.kill(os.getpid(), getattr(signal, f"SIG{how.upper()}"))
    session.lookup("never", 60.0)
    return TrainResult(0, True)


def scripted(session: Session, plan: TrainPlan) -> TrainResult:
    """Do what `script.json` in the run's directory says for this generation: report steps, then end in some way."""
    generations = json.loads((Path(plan.run_dir) / "script.json").read_text())
    does = generations[gang_of(session) - 1]
    last = int(does["steps"])
    if session.rank == 0:
        session.report_event(body(WorkerPhase, rank=0, phase="train"))
        for step in range(int(does.get("first", 1)), last + 1):
            session.report_step(a_step(step, session.world_size))
    ends = does["ends"]
    if ends in ("regroup", "stopped"):
        wanted = Leave.REGROUP if ends == "regroup" else Leave.STOP
        while session.leave() is not wanted:
            time.sleep(0.02)
        return TrainResult(last, False, ends == "regroup")
    if ends in ("killed", "raised"):
        if session.rank == 1:
            time.sleep(0.7)  # the steps are delivered
            if ends == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("on purpose")
        session.lookup("never", 60.0)
    if session.rank == 0:
        pretend_to_export(session, plan, last)
    return TrainResult(last, True)


def until_stopped(session: Session, plan: TrainPlan) -> TrainResult:
    """Report steps until a stop is asked for."""
    step = 0
    if session.rank == 0:
        session.report_event(body(WorkerPhase, rank=0, phase="train"))
    while session.leave() is not Leave.STOP:
        step += 1
        if session.rank == 0:
            session.report_step(a_step(step, session.world_size))
        time.sleep(0.05)
    return TrainResult(step, False)


def never_stops(session: Session, plan: TrainPlan) -> TrainResult:
    """Deaf: in native code that holds the interpreter's lock."""
    if session.rank == 0:
        session.report_event(body(WorkerPhase, rank=0, phase="train"))
        session.report_step(a_step(1, session.world_size))
        session.report_step(a_step(2, session.world_size))
        time.sleep(0.5)
    ctypes.PyDLL(None).sleep(120)
    return TrainResult(0, False)


def through_files(session: Session, plan: TrainPlan) -> TrainResult:
    """Fetch the prepared data and put a file into the run's directory, on a host that sees neither."""
    local = session.fetch(plan.data_dir)
    if str(local) == plan.data_dir:
        raise AssertionError("the driver's path was used")
    originals = {str(p.relative_to(plan.data_dir)): p for p in Path(plan.data_dir).rglob("*") if p.is_file()}
    for relative, original in originals.items():
        if (local / relative).read_bytes() != original.read_bytes():
            raise AssertionError(f"{relative} differs")
    if session.rank == 1:
        written = Path(tempfile.mkdtemp()) / "x"
        written.write_text("written elsewhere")
        session.store(written, f"{plan.run_dir}/from-rank-1.txt")
        pretend_to_export(session, plan, 1)
    return TrainResult(1, len(originals) > 2)


def train_short_of_memory(session: Session, plan: TrainPlan) -> TrainResult:
    """Train for real, in a process that may not take much more memory than it has when all is imported."""
    import resource

    import deepspeed  # noqa: F401
    import transformers.models.gpt2.modeling_gpt2  # noqa: F401

    import orchestrator.train.step_loop  # noqa: F401
    from orchestrator.train.worker import run_worker

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:  # the same process, another gang
        resource.setrlimit(resource.RLIMIT_AS, (limit + RELIEF_BYTES, resource.RLIM_INFINITY))
        return run_worker(session, plan)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + HEADROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    return run_worker(session, plan)


def hang_in_python(session: Session, plan: TrainPlan) -> TrainResult:
    """Train for real; in the first gang the training thread of rank 1 stops for ever in Python after some steps."""
    from orchestrator.train.worker import run_worker

    if session.rank == 1 and gang_of(session) == 1:
        asked = 0
        leave = session.leave

        def leave_or_hang() -> Leave:
            nonlocal asked
            asked += 1
            if asked == 12:
                a_lock_nobody_gives_back()
            return leave()

        session.leave = leave_or_hang  # type: ignore[method-assign]
    return run_worker(session, plan)


def a_lock_nobody_gives_back() -> None:
    """A frame to be found in a stack."""
    threading.Event().wait()


def everybody_hangs(session: Session, plan: TrainPlan) -> TrainResult:
    """All ranks of the first gang stop for ever at the same place."""
    from orchestrator.train.worker import run_worker

    if gang_of(session) == 1:
        beat = session.beat

        def beat_or_hang(step: int, phase: Phase) -> None:
            beat(step, phase)
            if (step, phase) == (12, Phase.FORWARD):
                a_lock_nobody_gives_back()

        session.beat = beat_or_hang  # type: ignore[method-assign]
    return run_worker(session, plan)


def polls_fail(session: Session, plan: TrainPlan) -> TrainResult:
    """Train for real while the connection to the driver breaks now and then, and answers to its polls are lost."""
    from orchestrator.gang.agent.report_queue import ReportQueue
    from orchestrator.train.worker import run_worker

    take, to_send, polls, batches = ReportQueue.take, ReportQueue.to_send, 0, 0

    def lossy(*args: Any) -> Any:
        nonlocal polls
        polls += 1
        batch = take(*args)
        if polls % 3 == 0:
            raise ConnectionError("on purpose")  # what was taken out of the queue is in no answer
        return batch

    def broken(*args: Any) -> Any:
        nonlocal batches
        batch = to_send(*args)
        batches += batch is not None
        if batch is not None and batches % 4 == 0:
            raise ConnectionError("on purpose")  # this batch is not sent now
        return batch

    ReportQueue.take, ReportQueue.to_send = lossy, broken  # type: ignore[method-assign,assignment]
    try:
        return run_worker(session, plan)
    finally:
        ReportQueue.take, ReportQueue.to_send = take, to_send  # type: ignore[method-assign]


def restores_something_else(session: Session, plan: TrainPlan) -> TrainResult:
    """Train for real; what comes out of the vaults is not what went in: one weight is another."""
    import torch

    from orchestrator.train.snapshot import checkpointing
    from orchestrator.train.worker import run_worker
    from orchestrator.train.zero.zero_layout import partitions

    session = HeldSession(session, plan.run_dir)  # at a pace that the vaults follow
    publish = checkpointing.publish

    def spoilt(engine: Any, manifest: Any) -> None:
        if plan.peer_state is not None:
            with torch.no_grad():
                partitions(engine)[0].flat.view(-1)[0] += 100.0
        publish(engine, manifest)

    checkpointing.publish = spoilt
    try:
        return run_worker(session, plan)
    finally:
        checkpointing.publish = publish


class HeldSession:
    """A session for tests that must not be late, whatever else the machine does. Steps take `PACE_S` longer until
    there is a file `safe` beside the run's directory. Training stands still, at a step boundary, while there is a file
    `hold-GANG`, until somebody wants it to be left."""

    PACE_S = 0.3
    LONGEST_S = 120.0

    def __init__(self, session: Session, run_dir: str) -> None:
        self._session = session
        self._hold = Path(run_dir).parent / f"hold-{gang_of(session)}"
        self._safe = Path(run_dir).parent / "safe"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def leave(self) -> Leave:
        """As the session's; late."""
        if not self._safe.exists():
            time.sleep(self.PACE_S)
        deadline = time.monotonic() + self.LONGEST_S
        while self._hold.exists() and self._session.leave() is Leave.NO and time.monotonic() < deadline:
            time.sleep(0.01)
        return self._session.leave()


def train_held(session: Session, plan: TrainPlan) -> TrainResult:
    """Train for real, as slowly as a test likes; see `HeldSession`."""
    from orchestrator.train.worker import run_worker

    return run_worker(HeldSession(session, plan.run_dir), plan)


class PacedSession(HeldSession):
    """Steps of a model that is not quite as tiny."""

    PACE_S = 0.1


def train_paced(session: Session, plan: TrainPlan) -> TrainResult:
    """Train for real; ten steps take a second."""
    from orchestrator.train.worker import run_worker

    return run_worker(PacedSession(session, plan.run_dir), plan)


SLOW_DATA_STEPS, SLOW_RANK_STEPS, SLOW_S = range(5, 9), range(11, 15), 0.3
"""In which steps `train_with_bottlenecks` is slow, and by how much."""


def train_with_bottlenecks(session: Session, plan: TrainPlan) -> TrainResult:
    """Train for real; in some steps no rank gets its data in time, in others rank 1 computes for longer."""
    from orchestrator.train.batch_feed import Feed
    from orchestrator.train.engine.engine import Stepper
    from orchestrator.train.worker import run_worker

    take, backward, step = Feed.take, Stepper.backward, 0

    def late(feed: Any) -> Any:
        nonlocal step
        batch = take(feed)
        step = batch.step
        time.sleep(SLOW_S if step in SLOW_DATA_STEPS else 0.0)
        return batch

    def slow(*args: Any) -> None:
        time.sleep(SLOW_S if session.rank == 1 and step in SLOW_RANK_STEPS else 0.0)
        backward(*args)

    Feed.take, Stepper.backward = late, slow  # type: ignore[method-assign]
    try:
        return run_worker(session, plan)
    finally:
        Feed.take, Stepper.backward = take, backward  # type: ignore[method-assign]


def own_masks() -> DeviceProblem:
    """In place of a check of a GPU: what tells a worker process which device it trains on."""
    names = ("DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
    return DeviceProblem(json.dumps({name: os.environ.get(name) for name in names}), "")

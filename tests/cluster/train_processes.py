"""Real training processes for tests: started and imported once, then re-formed into gangs of any size.

Each case runs `run_worker` in `world_size` of the processes. Nothing of the engine is replaced; only the outside world
(`Session`) is a directory of small files instead of Ray.
"""

import faulthandler
import gc
import importlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from orchestrator.atomic_files import replace_directory
from orchestrator.domain.devices.device import device_environment
from orchestrator.domain.events import EvalFinished, EventBody, ModelExported
from orchestrator.domain.policy.hang import CollectiveCounts, Phase
from orchestrator.domain.session import Leave, TrainPlan, TrainResult, VaultAccess
from orchestrator.domain.step_report import StepReport
from orchestrator.planner.batch_shape import shape_batch
from orchestrator.spec.job import JobSpec
from tests.cluster.forked import PRELOADED, cpu_forkserver
from tests.events import recorded

START_TIMEOUT_S = 180.0
CASE_TIMEOUT_S = 60.0


@dataclass
class FileSession:
    """A `Session` over a shared directory. `stop_at_step`: asked to leave while this step is under way. `piece_s`: see
    `TrainProcesses.run`."""

    rank: int
    world_size: int
    directory: Path
    stop_at_step: int | None = None
    wish: Leave = Leave.STOP
    vault: VaultAccess | None = None
    piece_s: float | None = None
    local_rank: int = 0
    node_ip: str = "127.0.0.1"
    node_id: str = ""
    asked: int = 0
    steps: list[StepReport] = field(default_factory=list)
    events: list[tuple[type[EventBody], dict[str, Any]]] = field(default_factory=list)
    beats: list[tuple[int, Phase]] = field(default_factory=list)
    parts: "Counter[Phase]" = field(default_factory=Counter)
    """Of long operations, by the phase in which they were reported."""

    def report_step(self, report: StepReport) -> None:
        self.steps.append(report)

    def report_event(self, body: EventBody) -> None:
        kind, fields = recorded(body)
        if kind is ModelExported:
            fields = {**fields, "engines": _engines()}
        self.events.append((kind, fields))

    def beat(self, step: int, phase: Phase) -> None:
        self.beats.append((step, phase))

    def progress(self) -> None:
        self.parts[self.beats[-1][1]] += 1

    def leave(self) -> Leave:
        # Asked once a step.
        self.asked += 1
        return self.wish if self.stop_at_step is not None and self.asked >= self.stop_at_step else Leave.NO

    def save_asked(self) -> bool:
        return False

    def on_interrupt(self, unblock: Callable[[], None] | None) -> None:
        pass

    def count_collectives(self, count: Callable[[], CollectiveCounts | None] | None) -> None:
        pass

    @property
    def interrupted(self) -> bool:
        return False

    def publish(self, key: str, value: str) -> None:
        partial = self.directory / f".{key}.partial"
        partial.write_text(value)
        partial.replace(self.directory / key)

    def lookup(self, key: str, timeout_s: float) -> str:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if (self.directory / key).exists():
                return (self.directory / key).read_text()
            time.sleep(0.005)
        raise TimeoutError(key)

    @property
    def shares_files(self) -> bool:
        return True

    def fetch(self, path: str) -> Path:
        if not Path(path).exists():
            raise FileNotFoundError(path)
        return Path(path)

    def store(self, local: Path, path: str) -> None:
        if Path(path).resolve() != local.resolve():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_bytes(local.read_bytes())

    def move_into_place(self, path: str, final: str) -> None:
        replace_directory(Path(path), Path(final))


def _engines() -> int:
    """Engines of this process that are not gone yet."""
    from deepspeed.runtime.engine import DeepSpeedEngine

    return sum(isinstance(found, DeepSpeedEngine) for found in gc.get_objects())


@dataclass(frozen=True)
class Outcome:
    """What a gang did."""

    steps: list[StepReport]
    events: list[tuple[type[EventBody], dict[str, Any]]]
    results: list[TrainResult]
    beats: list[list[tuple[int, Phase]]]
    """By rank."""
    parts: list["Counter[Phase]"]
    """By rank; see `FileSession.parts`."""

    @property
    def losses(self) -> list[float]:
        return [report.loss for report in self.steps]

    @property
    def grad_norms(self) -> list[float | None]:
        return [report.grad_norm for report in self.steps]

    @property
    def evaluations(self) -> dict[int, float]:
        """Validation loss by step."""
        return {fields["step"]: fields["loss"] for kind, fields in self.events if kind is EvalFinished}


class GangFailedError(RuntimeError):
    """A worker raised; the message holds every rank's traceback."""


class TrainProcesses:
    """`size` processes that wait for work."""

    def __init__(self, size: int, scratch: Path, gpus: int = 0) -> None:
        """`gpus`: 1 for processes that train on GPUs. They are not forked: the server's processes see none."""
        # Read by the server process that forks the workers, before it imports anything.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        context = multiprocessing.get_context("spawn") if gpus else cpu_forkserver()
        self._scratch = scratch
        self._cases = 0
        self._processes = []
        self._pipes: list[Connection] = []
        for _ in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, gpus), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)
        for pipe in self._pipes:
            assert pipe.poll(START_TIMEOUT_S), f"a process did not start within {START_TIMEOUT_S:.0f} s"
            pipe.recv()

    def run(
        self,
        plan: TrainPlan,
        world_size: int,
        stop_at_step: int | None = None,
        wish: Leave = Leave.STOP,
        vaults: Sequence[VaultAccess | None] = (),
        session: type[FileSession] = FileSession,
        piece_s: float | None = None,
    ) -> Outcome:
        """Train `plan` with `world_size` workers. Raises GangFailedError where one of them raised or hangs.

        `piece_s`: snapshots are copied as on a GPU, beside the next step, and each piece takes so long.
        """
        self._cases += 1
        directory = self._scratch / f"case-{self._cases}"
        directory.mkdir(parents=True)
        pipes = self._pipes[:world_size]
        for rank, pipe in enumerate(pipes):
            vault = vaults[rank] if vaults else None
            stop = stop_at_step if rank == world_size - 1 else None
            pipe.send((plan, session(rank, world_size, directory, stop, wish, vault, piece_s)))
        answers = self._answers(pipes)
        failures = [f"rank {rank}:\n{answer}" for rank, answer in enumerate(answers) if isinstance(answer, str)]
        if failures:
            raise GangFailedError("\n".join(failures))
        results = [answer[0] for answer in answers]
        beats, parts = [answer[3] for answer in answers], [answer[4] for answer in answers]
        return Outcome(answers[0][1], answers[0][2], results, beats, parts)

    def _answers(self, pipes: list[Connection]) -> list[Any]:
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + CASE_TIMEOUT_S
        while len(answers) < len(pipes):
            left = deadline - time.monotonic()
            ready = wait([p for rank, p in enumerate(pipes) if rank not in answers], timeout=max(left, 0))
            if not ready:
                for process in self._processes:
                    os.kill(process.pid or 0, signal.SIGUSR1)
                time.sleep(1.0)
                raise GangFailedError(f"only ranks {sorted(answers)} answered in {CASE_TIMEOUT_S:.0f} s: {answers}")
            for pipe in ready:
                assert isinstance(pipe, Connection)
                answers[pipes.index(pipe)] = pipe.recv()
        return [answers[rank] for rank in range(len(pipes))]

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()


@contextmanager
def late_copies(piece_s: float | None) -> Iterator[None]:
    """Have snapshots copied by a thread that pauses after each piece, as a GPU copies them beside the next step."""
    from orchestrator.train.snapshot import snapshots
    from orchestrator.train.snapshot.staging import BackgroundStaging

    usual = snapshots.staging_for
    if piece_s is not None:
        snapshots.staging_for = lambda device, tick: BackgroundStaging(lambda: time.sleep(piece_s))
    try:
        yield
    finally:
        snapshots.staging_for = usual


def _serve(pipe: Connection, gpus: int) -> None:
    """A worker process: one gang after another until the pipe closes."""
    os.environ.update(device_environment(gpus))
    for module in PRELOADED:  # a process that was spawned, for a GPU, has imported nothing
        importlib.import_module(module)
    from orchestrator.train import step_loop
    from orchestrator.train.worker import run_worker

    step_loop.LAST_SAVE_PAUSE_S = 0.01  # storage that fails in a test does so for good
    pipe.send("ready")
    faulthandler.register(signal.SIGUSR1)  # `kill -USR1` shows where a worker hangs
    while True:
        try:
            plan, session = pipe.recv()
        except EOFError:
            return
        try:
            with late_copies(session.piece_s):
                result = run_worker(session, plan)
        except BaseException:  # noqa: BLE001 - every failure belongs to the test that caused it
            pipe.send(traceback.format_exc())
        else:
            pipe.send((result, session.steps, session.events, session.beats, session.parts))
        stray = [t.name for t in threading.enumerate() if t.name.startswith("convoy-")]
        assert not stray, stray


def train_plan(
    spec: JobSpec, data_dir: Path, run_dir: Path, world_size: int, resume_from: str | None = None, export: bool = False
) -> TrainPlan:
    """The plan that the driver would make."""
    train = spec.train
    assert train.steps is not None
    shape = shape_batch(
        train.global_batch, world_size, train.micro_batch if isinstance(train.micro_batch, int) else None
    )
    run_dir.mkdir(parents=True, exist_ok=True)
    return TrainPlan(
        spec=spec.model_dump(mode="json"),
        run_dir=str(run_dir),
        data_dir=str(data_dir),
        total_steps=train.steps,
        shares=shape.shares,
        micro_batch=shape.micro_batch,
        accumulation=shape.accumulation,
        resume_from=resume_from,
        export=export,
    )

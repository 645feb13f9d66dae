"""A `WorkerGroup` that follows a script: for tests of what the run controller decides. A contract test holds it to the
real one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from orchestrator.checkpoint.survey.durability import VaultReport
from orchestrator.checkpoint.survey.inventory import WholeStep
from orchestrator.data.executor import Executor, LocalExecutor
from orchestrator.data.prepare import PreparedData
from orchestrator.domain.devices.device_room import DeviceRoom
from orchestrator.domain.errors import ConvoyError
from orchestrator.domain.events import (
    CheckpointSaved,
    Event,
    EventBody,
    ModelExported,
    TrainingPlanned,
    WorkerPhase,
)
from orchestrator.domain.generation import (
    Adopted,
    ClusterSize,
    Ending,
    FailureDetails,
    GenerationOutcome,
    LeftBehind,
    Shortage,
    WorkerFailure,
)
from orchestrator.domain.session import Question, TrainPlan, TrainResult
from orchestrator.domain.step_report import StepReport
from orchestrator.metrics.event_bus import EventBus
from orchestrator.planner.gpu_fit import GpuFit
from orchestrator.planner.model_shape import ModelShape
from orchestrator.planner.vault_memory import VaultNeed, vault_need
from orchestrator.run.controller import Prepared
from orchestrator.run.group_protocol import WorkerGroup
from orchestrator.run.restore_points import RestorePoint, RestorePoints
from orchestrator.spec.job import JobSpec

MakeReport = Callable[..., StepReport]
SAVED = {"path": "checkpoints", "bytes": 1, "seconds": 0.0, "write_seconds": 0.1, "world_size": 2, "stage": 1}


class HandClock:
    """Both clocks, stepped by hand."""

    def __init__(self) -> None:
        self.monotonic_s = 1000.0
        self.offset_s = 1_800_000_000.0

    def advance(self, seconds: float) -> None:
        self.monotonic_s += seconds

    def monotonic(self) -> float:
        return self.monotonic_s

    def unix(self) -> float:
        return self.monotonic_s + self.offset_s


@dataclass(frozen=True)
class Generation:
    """What one generation does."""

    steps: Sequence[int] = ()
    """Steps that it reports."""
    trains: bool = True
    """It reaches training."""
    saves: Sequence[int] = ()
    """Steps that it reports as saved."""
    in_memory: Sequence[int] = ()
    """What the vaults hold completely afterwards, newest first."""
    ends: str = "finished"
    """finished, regroup, stopped, not begun, or how a worker fails: killed, raised, out of memory, mismatch."""
    exported: bool = False
    """It writes the export, and reports it."""


@dataclass(frozen=True)
class Reform:
    """How the next generation is formed."""

    size: int | None = 2
    """None: stopped meanwhile."""
    short_by: int = 0
    """Workers that were missing for a while."""
    error: ConvoyError | None = None


@dataclass
class Script:
    """All that a group does."""

    generations: list[Generation]
    reforms: list[Reform] = field(default_factory=list)
    workers: int | None = 2
    adopted: Adopted | None = None
    in_memory: Sequence[int] = ()
    """Of vaults that were adopted."""


class ScriptedGroup:
    """Implements `WorkerGroup`. A step takes a second of the clock."""

    def __init__(
        self, spec: JobSpec, script: Script, clock: HandClock, report: MakeReport, export: Callable[[int], None]
    ) -> None:
        """`report` makes step reports; `export` writes the export of a step."""
        self._spec, self._script, self._clock = spec, script, clock
        self._report, self._export = report, export
        self._generation = 0
        self._size = 0
        self._memory: Sequence[int] = script.in_memory
        self.plans: list[TrainPlan] = []
        self.closed = 0

    def connect(self, preload: Sequence[str] = ()) -> ClusterSize:
        return ClusterSize("127.0.0.1:6379", 2, 2.0, 0.0, 0.5)

    def adopt(self) -> Adopted | None:
        return self._script.adopted

    def survey(self) -> Sequence[WholeStep]:
        places = tuple((f"10.0.0.{rank}:1",) for rank in range(self._size or 2))
        return [WholeStep(self._generation, step, len(places), places) for step in self._memory]

    def reports_after(self, step: int) -> Sequence[StepReport]:
        return []

    def survey_vaults(self, take: Callable[[Sequence[VaultReport]], None]) -> None:
        pass

    @property
    def memory_kept_s(self) -> float:
        return 0.0

    def start_workers(
        self, warm: tuple[str, ...], later: tuple[str, ...], check: str | None, question: Question | None = None
    ) -> int | None:
        self._size = self._script.workers or 0
        return self._script.workers

    def wait_for_answers(self) -> str | None:
        return None

    def executor(self) -> Executor:
        return LocalExecutor(0)

    @property
    def workers_by_node(self) -> tuple[int, ...]:
        return (1,) * self._size

    @property
    def reserves_memory(self) -> bool:
        return False

    def plan_vaults(self, shape: ModelShape) -> tuple[VaultNeed | None, str | None]:
        return vault_need(self._spec, shape, self.workers_by_node), None

    def memory_per_worker_bytes(self, workers: int) -> int:
        return 8 << 30

    def device_room(self) -> DeviceRoom | None:
        return None

    def train(self, entry: str, plan: TrainPlan, readable: Sequence[str], bus: EventBus) -> GenerationOutcome | None:
        self.plans.append(plan)
        does = self._script.generations.pop(0)
        if does.ends == "not begun":
            return None
        self._generation += 1
        shape = (plan.micro_batch, plan.accumulation, plan.total_steps)
        self._tell(bus, TrainingPlanned(len(plan.shares), plan.shares, *shape, parameters=1000))
        if does.trains:
            self._tell(bus, WorkerPhase(0, "train"))
        for step in does.steps:
            self._clock.advance(1.0)
            report = self._report(step, self._clock.unix(), world_size=len(plan.shares))
            bus.publish(report)
            if step in does.saves:
                self._tell(bus, CheckpointSaved(step, **SAVED))
        last = max(does.steps, default=plan.peer_state.step if plan.peer_state is not None else 0)
        if does.exported:
            self._export(last)
            self._tell(bus, ModelExported("export", 1, 1, 0.1))
        self._memory = does.in_memory
        return self._outcome(does.ends, last, len(plan.shares))

    def reform(self, waits: Callable[[Shortage | None], None]) -> int | None:
        does = self._script.reforms.pop(0) if self._script.reforms else Reform()
        if does.short_by:
            self._clock.advance(5.0)
            waits(Shortage(2 - does.short_by, 2))
        if does.error is not None:
            raise does.error
        if does.size is None:
            return None
        if does.short_by:
            waits(None)
        self._size = does.size
        return does.size

    def leave_vaults(self, stored_step: int) -> LeftBehind | None:
        return None

    def close(self) -> None:
        self.closed += 1

    def _outcome(self, ends: str, last: int, workers: int) -> GenerationOutcome:
        finished = tuple(TrainResult(last, ends == "finished", ends == "regroup") for _ in range(workers))
        if ends in ("finished", "regroup", "stopped"):
            return GenerationOutcome(finished, None, ends == "stopped", last, ends == "regroup")
        endings = {"killed": Ending.PROCESS_DIED}
        details = {
            "out of memory": FailureDetails.from_json({"cause": "out of memory"}),
            "mismatch": FailureDetails(restore_mismatch=True),
        }
        failure = WorkerFailure(
            1,
            endings.get(ends, Ending.RAISED),
            self._clock.monotonic(),
            f"it {ends}",
            details=details.get(ends, FailureDetails()),
            alive_s=self._clock.monotonic() - 0.25,
        )
        return GenerationOutcome((), failure, False, last)

    def _tell(self, bus: EventBus, body: EventBody) -> None:
        bus.publish(Event(body, self._clock.unix()))


@dataclass
class ScriptedPreparation:
    """Implements `Preparation`."""

    data: PreparedData
    script: Script
    origin: RestorePoint = field(default_factory=RestorePoint)
    error: Exception | None = None
    stops: bool = False
    recorded: list[int] = field(default_factory=list)

    def open(self, points: RestorePoints) -> None:
        pass

    def run(self, group: WorkerGroup, fit: GpuFit) -> Prepared | None:
        if self.error is not None:
            raise self.error
        size = group.start_workers((), (), None)
        if self.stops or size is None:
            return None
        adopted = self.script.adopted
        return Prepared("entry", self.data, size, self.origin, self.origin.step if adopted is not None else None)

    def record(self, data: PreparedData, step: int) -> None:
        self.recorded.append(step)

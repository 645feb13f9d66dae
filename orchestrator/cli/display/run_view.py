"""The present state of a run, computed from its events and steps; all displays use it. No I/O."""

from collections import deque
from dataclasses import dataclass, field

from orchestrator.domain.events import (
    CheckpointSaved,
    ClusterReady,
    DataProgress,
    DataReady,
    EvalFinished,
    Event,
    EventBody,
    MetricsServing,
    ModelExported,
    NumericFaultFound,
    RecoveryFinished,
    RecoveryStarted,
    RunCreated,
    RunState,
    SampleGenerated,
    StateChanged,
    TrainingPlanned,
    VaultsAdopted,
    VaultsKept,
    VaultsPlanned,
    WarningIssued,
    WorkerFailed,
    WorkerPhase,
    WorkerStarted,
)
from orchestrator.domain.step_report import StepReport

RECENT_STEPS = 20

STAGES = ("cluster", "data", "workers", "build", "train", "export")
"""In the order they are shown."""

_OVERLAPPING = ("data", "cluster")
"""Stages whose end is a separate event: one may begin before the other has ended."""

_PHASE_STAGES = {"import": "workers", "rendezvous": "workers", "build": "build", "restore": "build", "train": "train",
                 "export": "export"}  # fmt: skip


@dataclass
class Stage:
    """One part of a run. Times are Unix seconds."""

    started_s: float | None = None
    ended_s: float | None = None
    cached: bool = False
    text: str = ""


@dataclass
class ShownRun:
    """A run as far as its events tell. Mutable: `on_event` and `on_step` change it."""

    run_id: str | None = None
    resumed_from_step: int | None = None
    state: RunState | None = None
    reason: str | None = None
    started_s: float | None = None
    stages: dict[str, Stage] = field(default_factory=lambda: {name: Stage() for name in STAGES})
    data: DataProgress | None = None
    """The newest."""
    data_phase_started_s: float = 0.0
    ready: DataReady | None = None
    cluster: ClusterReady | None = None
    plan: TrainingPlanned | None = None
    workers_started: set[int] = field(default_factory=set)
    worker_phase: str = ""
    first: StepReport | None = None
    last: StepReport | None = None
    recent: deque[StepReport] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    validation_losses: list[tuple[int, float]] = field(default_factory=list)
    checkpoints: list[CheckpointSaved] = field(default_factory=list)
    exported: ModelExported | None = None
    sample: SampleGenerated | None = None
    metrics_url: str | None = None
    warnings: list[str] = field(default_factory=list)
    failures: list[WorkerFailed] = field(default_factory=list)
    recoveries: list[RecoveryFinished] = field(default_factory=list)
    kept_in_memory: VaultsPlanned | None = None
    """What the vaults use."""
    left_in_memory: VaultsKept | None = None
    """What the vaults keep after the end of the run."""

    def on_step(self, report: StepReport) -> None:
        """Take a step."""
        self.first = self.first or report
        self.last = report
        self.recent.append(report)
        self._enter("train", report.time_s - report.step_time_s)

    def on_event(self, event: Event) -> None:
        """Take an event."""
        if self.started_s is None:
            self.started_s = event.time_s
        match event.body:
            case RunCreated() as run:
                self.run_id = run.run_id
                self.resumed_from_step = run.resumed_from_step
                self.recent.clear()  # a drill shows several runs, one after the other
            case StateChanged(state, reason):
                self.state, self.reason = state, reason
                if state in (RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED):
                    self._enter(None, event.time_s)
                elif state is RunState.STARTING:
                    self._enter("workers", event.time_s)
            case DataProgress() as data:
                if self.data is None or data.phase != self.data.phase:
                    self.data_phase_started_s = event.time_s
                self.data = data
                self._enter("data", event.time_s)
            case DataReady() as ready:
                self.ready = ready
                self._finish("data", event.time_s, ready.seconds)
                self.stages["data"].cached = ready.cached
            case ClusterReady() as cluster:
                self.cluster = cluster
                self._finish("cluster", event.time_s, cluster.seconds)
            case TrainingPlanned() as plan:
                self.plan = plan
            case WorkerStarted() as worker:
                self.workers_started.add(worker.rank)
            case WorkerPhase(phase=phase):
                self.worker_phase = phase
                self._enter(_PHASE_STAGES.get(phase), event.time_s)
            case MetricsServing(url):
                self.metrics_url = url
            case WarningIssued(message):
                self.warnings.append(message)
            case body:
                self._on_result(body)

    def _on_result(self, body: EventBody) -> None:
        match body:
            case WorkerFailed():
                self.failures.append(body)
            case NumericFaultFound():
                self.failures.clear()  # workers raised because of it, and it says more than their tracebacks
            case RecoveryStarted():
                self.failures.clear()  # a failure that the run recovered from is not why it ends
                self.recent.clear()  # the pace is not that of the gap
            case RecoveryFinished():
                self.recoveries.append(body)
            case VaultsPlanned():
                self.kept_in_memory = body
            case VaultsAdopted():
                self.resumed_from_step = max(self.resumed_from_step or 0, body.step or 0) or None
            case VaultsKept():
                self.left_in_memory = body
            case EvalFinished():
                self.validation_losses.append((body.step, body.loss))
            case CheckpointSaved():
                self.checkpoints.append(body)
            case ModelExported():
                self.exported = body
            case SampleGenerated():
                self.sample = body

    @property
    def total_steps(self) -> int | None:
        return None if self.plan is None else self.plan.total_steps

    @property
    def step(self) -> int:
        return self.last.step if self.last else self.resumed_from_step or 0

    @property
    def validation_loss(self) -> float | None:
        return self.validation_losses[-1][1] if self.validation_losses else None

    @property
    def tokens_per_s(self) -> float | None:
        """Mean over the recent steps."""
        seconds = sum(report.step_time_s for report in self.recent)
        return sum(report.tokens for report in self.recent) / seconds if seconds > 0 else None

    @property
    def step_time_s(self) -> float | None:
        """Mean over the recent steps, evaluation and checkpoints between them included."""
        if not self.recent:
            return None
        first, last = self.recent[0], self.recent[-1]
        if len(self.recent) > 1 and last.time_s > first.time_s:
            return (last.time_s - first.time_s) / (len(self.recent) - 1)
        return last.step_time_s

    @property
    def data_wait_share(self) -> float | None:
        """Share of the recent steps' time spent waiting for data, 0 to 1, mean over the ranks."""
        seconds = sum(report.step_time_s for report in self.recent)
        if seconds <= 0:
            return None
        waited_s = sum(report.ranks.spread.data_wait_s.mean(report.world_size) for report in self.recent)
        return waited_s / seconds

    @property
    def memory(self) -> tuple[int, str] | None:
        """Bytes of all workers together and of what: reserved device memory if there is a device, else resident."""
        if self.last is None:
            return None
        spread = self.last.ranks.spread
        if spread.reserved_bytes is not None:
            return int(spread.reserved_bytes.total), "GPU"
        return int(spread.rss_bytes.total), "RSS"

    @property
    def eta_s(self) -> float | None:
        """Time until the last step at the recent pace."""
        if self.total_steps is None or self.step_time_s is None:
            return None
        return max(0, self.total_steps - self.step) * self.step_time_s

    def data_rate(self, now_s: float) -> float | None:
        """Bytes per second of the current phase of preparing."""
        passed_s = now_s - self.data_phase_started_s
        return self.data.done_bytes / passed_s if self.data is not None and passed_s > 0.2 else None

    def _enter(self, name: str | None, time_s: float) -> None:
        """A stage begins; the stages before it have ended."""
        for other, stage in self.stages.items():
            if other == name:
                if stage.started_s is None:
                    stage.started_s = time_s
                return
            if stage.started_s is not None and stage.ended_s is None and (name is None or other not in _OVERLAPPING):
                stage.ended_s = max(time_s, stage.started_s)

    def _finish(self, name: str, time_s: float, seconds: float) -> None:
        stage = self.stages[name]
        stage.started_s = time_s - seconds
        stage.ended_s = time_s

"""The present state of a run, computed from its events and steps; all displays use it. No I/O."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from orchestrator.domain.events import Event, EventKind
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


@dataclass(frozen=True)
class FailureView:
    """A worker that raised."""

    rank: int
    error: str
    traceback: str


@dataclass
class RunView:
    """A run as far as its events tell. Mutable: `on_event` and `on_step` change it."""

    run_id: str | None = None
    resumed_from_step: int | None = None
    state: str | None = None
    reason: str | None = None
    started_s: float | None = None
    stages: dict[str, Stage] = field(default_factory=lambda: {name: Stage() for name in STAGES})
    data: dict[str, Any] = field(default_factory=dict)
    """Fields of the newest DATA_PROGRESS."""
    data_phase_started_s: float = 0.0
    ready: dict[str, Any] = field(default_factory=dict)
    """Fields of DATA_READY."""
    cluster: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    workers_started: set[int] = field(default_factory=set)
    worker_phase: str = ""
    first: StepReport | None = None
    last: StepReport | None = None
    recent: deque[StepReport] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    validation_losses: list[tuple[int, float]] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    exported: dict[str, Any] = field(default_factory=dict)
    sample: dict[str, Any] = field(default_factory=dict)
    metrics_url: str | None = None
    warnings: list[str] = field(default_factory=list)
    failures: list[FailureView] = field(default_factory=list)
    recoveries: list[dict[str, Any]] = field(default_factory=list)
    kept_in_memory: dict[str, Any] = field(default_factory=dict)
    """Fields of VAULTS_PLANNED."""
    left_in_memory: dict[str, Any] = field(default_factory=dict)
    """Fields of VAULTS_KEPT."""

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
        fields = event.fields
        match event.kind:
            case EventKind.RUN_CREATED:
                self.run_id = fields.get("run_id")
                self.resumed_from_step = fields.get("resumed_from_step")
                self.recent.clear()  # a drill shows several runs, one after the other
            case EventKind.STATE_CHANGED:
                self.state, self.reason = fields.get("state"), fields.get("reason")
                if self.state in ("succeeded", "failed", "stopped"):
                    self._enter(None, event.time_s)
                elif self.state == "starting":
                    self._enter("workers", event.time_s)
            case EventKind.DATA_PROGRESS:
                if fields.get("phase") != self.data.get("phase"):
                    self.data_phase_started_s = event.time_s
                self.data = fields
                self._enter("data", event.time_s)
            case EventKind.DATA_READY:
                self.ready = fields
                self._finish("data", event.time_s, fields.get("seconds"))
                self.stages["data"].cached = bool(fields.get("cached"))
            case EventKind.CLUSTER_READY:
                self.cluster = fields
                self._finish("cluster", event.time_s, fields.get("seconds"))
            case EventKind.PLAN:
                self.plan = fields
            case EventKind.WORKER_STARTED:
                self.workers_started.add(int(fields.get("rank", 0)))
            case EventKind.WORKER_PHASE:
                self.worker_phase = str(fields.get("phase"))
                self._enter(_PHASE_STAGES.get(self.worker_phase), event.time_s)
            case EventKind.METRICS_SERVING:
                self.metrics_url = fields.get("url")
            case EventKind.WARNING:
                self.warnings.append(str(fields.get("message")))
            case _:
                self._on_result(event)

    def _on_result(self, event: Event) -> None:
        fields = event.fields
        match event.kind:
            case EventKind.WORKER_FAILED:
                trace = str(fields.get("traceback") or "")
                failure = FailureView(int(fields.get("rank", -1)), str(fields.get("error")), trace)
                self.failures.append(failure)
            case EventKind.NUMERIC_FAULT:
                self.failures.clear()  # workers raised because of it, and it says more than their tracebacks
            case EventKind.RECOVERY_STARTED:
                self.failures.clear()  # a failure that the run recovered from is not why it ends
                self.recent.clear()  # the pace is not that of the gap
            case EventKind.RECOVERED:
                self.recoveries.append(fields)
            case EventKind.VAULTS_PLANNED:
                self.kept_in_memory = fields
            case EventKind.VAULTS_ADOPTED:
                self.resumed_from_step = max(int(self.resumed_from_step or 0), int(fields.get("step") or 0)) or None
            case EventKind.VAULTS_KEPT:
                self.left_in_memory = fields
            case EventKind.EVAL:
                self.validation_losses.append((int(fields["step"]), float(fields["loss"])))
            case EventKind.CHECKPOINT_SAVED:
                self.checkpoints.append(fields)
            case EventKind.EXPORTED:
                self.exported = fields
            case EventKind.SAMPLE:
                self.sample = fields

    @property
    def total_steps(self) -> int | None:
        value = self.plan.get("total_steps")
        return value if isinstance(value, int) else None

    @property
    def step(self) -> int:
        return self.last.step if self.last else int(self.resumed_from_step or 0)

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
        waited = sum(
            sum(rank.phases.data_wait_s for rank in report.ranks) / max(1, len(report.ranks)) for report in self.recent
        )
        return waited / seconds

    @property
    def memory(self) -> tuple[int, str] | None:
        """Bytes of all workers together and of what: reserved device memory if there is a device, else resident."""
        if self.last is None or not self.last.ranks:
            return None
        device = [rank.memory.reserved_bytes for rank in self.last.ranks if rank.memory.reserved_bytes is not None]
        if device:
            return sum(device), "GPU"
        return sum(rank.memory.rss_bytes for rank in self.last.ranks), "RSS"

    @property
    def eta_s(self) -> float | None:
        """Time until the last step at the recent pace."""
        if self.total_steps is None or self.step_time_s is None:
            return None
        return max(0, self.total_steps - self.step) * self.step_time_s

    def data_rate(self, now_s: float) -> float | None:
        """Bytes per second of the current phase of preparing."""
        passed_s = now_s - self.data_phase_started_s
        done = self.data.get("done_bytes")
        return done / passed_s if isinstance(done, int | float) and passed_s > 0.2 else None

    def _enter(self, name: str | None, time_s: float) -> None:
        """A stage begins; the stages before it have ended."""
        for other, stage in self.stages.items():
            if other == name:
                if stage.started_s is None:
                    stage.started_s = time_s
                return
            if stage.started_s is not None and stage.ended_s is None and (name is None or other not in _OVERLAPPING):
                stage.ended_s = max(time_s, stage.started_s)

    def _finish(self, name: str, time_s: float, seconds: object) -> None:
        stage = self.stages[name]
        if isinstance(seconds, int | float):
            stage.started_s = time_s - seconds
        elif stage.started_s is None:
            stage.started_s = time_s
        stage.ended_s = time_s

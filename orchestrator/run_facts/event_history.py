"""What the events of a run add up to: its plan, results, failures, and the periods it went through. Pure."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.domain.events import (
    ChangesAccepted,
    CheckpointFailed,
    CheckpointSaved,
    DataReady,
    DevicePlanned,
    EvalFinished,
    Event,
    EventBody,
    MetricsServing,
    MicroStepMeasured,
    ModelExported,
    NodeDraining,
    NumericFaultFound,
    RecoveryFinished,
    RecoveryStarted,
    RunCreated,
    TrainingPlanned,
    WarningIssued,
    WorkerFailed,
    WorkerSlow,
    WorkerStarted,
)
from orchestrator.domain.events.event_codec import encode_body
from orchestrator.json_values import JsonObject, JsonValue
from orchestrator.run_facts.curve import Curve
from orchestrator.run_facts.run_periods import RunPeriods

KEPT_RESULTS = 10_000
"""Evaluations, checkpoints and recoveries that are kept one by one, the newest."""
KEPT_NOTES = 200
"""The same of warnings, draining nodes and slow workers."""


@dataclass
class ResultTotals:
    """Exact counts and seconds over all drivers of a run."""

    evaluations: int = 0
    evaluation_s: float = 0.0
    checkpoints: int = 0
    checkpoint_stall_s: float = 0.0
    """How long training was paused for checkpoints, failed ones included."""
    failed_checkpoints: int = 0
    recoveries: int = 0
    recovery_s: float = 0.0
    steps_recomputed: int = 0


@dataclass
class EventHistory:
    """What the events of a run add up to, in bounded memory. Mutable: `take` changes it."""

    plan: TrainingPlanned | None = None
    """The newest."""
    evaluations: deque[EvalFinished] = field(default_factory=lambda: deque(maxlen=KEPT_RESULTS))
    validation: Curve = field(default_factory=Curve)
    """Validation loss by step."""
    checkpoints: deque[CheckpointSaved] = field(default_factory=lambda: deque(maxlen=KEPT_RESULTS))
    failures: list[WorkerFailed] = field(default_factory=list)
    """Those that the run has not recovered from; at most `KEPT_NOTES`."""
    recoveries: deque[RecoveryFinished] = field(default_factory=lambda: deque(maxlen=KEPT_RESULTS))
    numeric_faults: deque[NumericFaultFound] = field(default_factory=lambda: deque(maxlen=KEPT_NOTES))
    draining: deque[NodeDraining] = field(default_factory=lambda: deque(maxlen=KEPT_NOTES))
    warnings: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_NOTES))
    slow: deque[WorkerSlow] = field(default_factory=lambda: deque(maxlen=KEPT_NOTES))
    changes: deque[tuple[float, ChangesAccepted]] = field(default_factory=lambda: deque(maxlen=KEPT_NOTES))
    """With the times."""
    exported: ModelExported | None = None
    micro_step: MicroStepMeasured | None = None
    """The newest."""
    device: DevicePlanned | None = None
    data_s: float = 0.0
    """Seconds of preparing data, over all drivers."""
    metrics_url: str | None = None
    convoy_version: str | None = None
    """Of the newest driver."""
    nodes: dict[int, str] = field(default_factory=dict)
    """Address of each rank's node."""
    totals: ResultTotals = field(default_factory=ResultTotals)
    periods: RunPeriods = field(default_factory=RunPeriods)

    def take(self, event: Event) -> None:
        """Take the next event."""
        self.periods.take(event)
        match event.body:
            case RunCreated(convoy_version=version):
                self.convoy_version = version
            case TrainingPlanned() as body:
                self.plan = body
            case DevicePlanned() as body:
                self.device = body
            case MicroStepMeasured() as body:
                self.micro_step = body
            case WorkerStarted() as body:
                self.nodes[body.rank] = body.node
            case DataReady(seconds=seconds):
                self.data_s += seconds
            case MetricsServing(url):
                self.metrics_url = url
            case ChangesAccepted() as body:
                self.changes.append((event.time_s, body))
            case WarningIssued() as body:
                self.warnings.append(body.message)
            case NodeDraining() as body:
                self.draining.append(body)
            case ModelExported() as body:
                self.exported = body
            case WorkerSlow() as body:
                self.slow.append(body)
            case body:
                self._take_result(body)

    def _take_result(self, body: EventBody) -> None:
        totals = self.totals
        match body:
            case EvalFinished():
                self.evaluations.append(body)
                self.validation.add(body.step, body.loss)
                totals.evaluations += 1
                totals.evaluation_s += body.seconds
            case CheckpointSaved():
                self.checkpoints.append(body)
                totals.checkpoints += 1
                totals.checkpoint_stall_s += body.seconds
            case CheckpointFailed():
                self.warnings.append(body.reason)
                totals.failed_checkpoints += 1
                totals.checkpoint_stall_s += body.seconds
            case _:
                self._take_trouble(body)

    def _take_trouble(self, body: EventBody) -> None:
        match body:
            case WorkerFailed():
                if len(self.failures) < KEPT_NOTES:
                    self.failures.append(body)
            case NumericFaultFound():
                self.numeric_faults.append(body)
                self.failures.clear()  # workers raised because of it
            case RecoveryStarted():
                self.failures.clear()  # recovered from; the incident page has it
            case RecoveryFinished():
                self.recoveries.append(body)
                self.totals.recoveries += 1
                self.totals.recovery_s += body.seconds
                self.totals.steps_recomputed += body.steps_recomputed

    def to_json(self) -> JsonObject:
        """The fields of the events, by what they are about."""
        lists: dict[str, Sequence[EventBody]] = {
            "evaluations": self.evaluations,
            "failures": self.failures,
            "recoveries": self.recoveries,
            "numeric_faults": self.numeric_faults,
            "draining": self.draining,
        }
        changes: list[JsonValue] = [{"time_s": time_s, **encode_body(body)} for time_s, body in self.changes]
        return {
            "plan": None if self.plan is None else encode_body(self.plan),
            **{name: [encode_body(body) for body in bodies] for name, bodies in lists.items()},
            "warnings": list(self.warnings),
            "changes": changes,
            "exported": None if self.exported is None else encode_body(self.exported),
        }

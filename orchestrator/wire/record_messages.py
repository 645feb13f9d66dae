"""What a server says about the records of a run: output of its workers, curves, progress."""

from pydantic import Field

from orchestrator.wire.run_messages import RunEvent
from orchestrator.wire.wire_base import WireModel


class LogLine(WireModel):
    """A line of one worker's output."""

    rank: int
    text: str


class LogPage(WireModel):
    """Lines of output, and where a reader continues."""

    lines: list[LogLine]
    cursor: str
    """Give it as `cursor` to get what was written after these lines."""
    complete: bool
    """There is no more at the moment."""


class EventPage(WireModel):
    """Events, oldest first."""

    events: list[RunEvent]
    next_after: int
    """Give it as `after` to get the events that follow."""


class CurveSample(WireModel):
    """One point of a curve: a step, or a range of steps."""

    step: int
    """The last one of the range."""
    mean: float
    low: float
    high: float


class CurvesView(WireModel):
    """Curves of a run for charts. Each has at most 800 points."""

    run: str
    first_step: int | None
    last_step: int | None
    curves: dict[str, list[CurveSample]]


class PhaseShare(WireModel):
    """What part of the recent step time one phase takes."""

    phase: str
    share: float
    """0 to 1."""


class ProgressView(WireModel):
    """A run at this moment, from what its driver has recorded."""

    run: str
    status: str
    """A state of the run, or `lost` if its driver is gone."""
    step: int
    total_steps: int | None
    loss: float | None
    validation_loss: float | None
    tokens_per_s: float | None
    step_time_s: float | None
    eta_s: float | None
    """Seconds until the last step at the present pace."""
    workers: int | None
    updated_s: float
    """Unix seconds."""
    phases: list[PhaseShare] = []
    recoveries: int = 0
    incidents: list[str] = []
    """The newest recoveries and warnings, oldest first, for people."""
    summary: list[str] = []
    """Problems of the newest driver, for people."""


class RecordView(WireModel):
    """A JSON file of a run, as it is: what the survey of its memory or the ledger of its time says."""

    run: str
    status: str
    recorded: dict[str, object] = Field(default_factory=dict)


class HealthView(WireModel):
    """Whether the server works. It needs no token."""

    status: str
    """`ok`, or `degraded` if the cluster does not answer or another server acts."""
    version: str
    api: str


class TargetGroup(WireModel):
    """Targets of Prometheus' `http_sd`
    (https://prometheus.io/docs/prometheus/latest/http_sd/)."""

    targets: list[str]
    labels: dict[str, str]

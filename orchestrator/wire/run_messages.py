"""What client and server say about runs, as JSON. Fields are added, never renamed; a reader ignores those that it does
not know."""

from pydantic import Field

from orchestrator.domain.events import RunState
from orchestrator.domain.queue.queue_states import QueueState
from orchestrator.wire.wire_base import WireModel


class Submission(WireModel):
    """A job to be queued."""

    spec: str = Field(max_length=1 << 20)
    """The YAML of the job, as written."""
    file_name: str = "job.yaml"
    """For messages."""
    overrides: list[str] = []
    """KEY=VALUE, as `--set`."""
    name: str | None = None
    queue: str | None = None
    priority: str | None = None
    """A name of `Priority`."""
    after: list[str] = []
    """Ids of runs that have to succeed first."""
    files: dict[str, str] = {}
    """Sha256 of the uploaded files that the job names, by their paths relative to it."""
    dry_run: bool = False
    """Check it, say where it would stand, and queue nothing."""


class WaitView(WireModel):
    """Why a run waits."""

    position: int | None
    """1 is next; null while it waits for other runs."""
    obstacle: str
    """A value of `Obstacle`, or `after`, `paused`, `backoff`."""
    message: str
    blockers: list[str] = []
    """Runs whose end would let it start."""
    may_start_s: float | None = None
    """Unix seconds."""


class RunView(WireModel):
    """A run in the queue."""

    id: str
    name: str
    group: str | None
    """Of the runs of one matrix."""
    queue: str
    team: str
    user: str
    priority: str
    state: QueueState
    run_state: RunState | None
    """What its driver says."""
    reason: str | None
    submitted_s: float
    started_s: float | None
    """When it first got capacity."""
    ended_s: float | None
    workers: int
    """Booked for it now."""
    min_workers: int
    max_workers: int
    worker_resources: dict[str, float]
    nodes: dict[str, int]
    """Workers by the id of the node."""
    after: list[str]
    attempt: int
    """1 is the first."""
    retry_at_s: float | None
    step: int
    total_steps: int | None
    loss: float | None
    eta_s: float | None
    """Seconds until its last step; null if it is not known."""
    waits: WaitView | None
    directory: str
    """On the server's machine."""
    url: str | None = None
    """Of its page."""


class SubmitAnswer(WireModel):
    """What became of a submission: a run, or those of a matrix."""

    runs: list[RunView]
    warnings: list[str] = []
    existing: bool = False
    """The idempotency key was known: these are the runs of then."""


class RunList(WireModel):
    """Newest first."""

    runs: list[RunView]
    next_cursor: str | None = None


class RunEvent(WireModel):
    """A transition of a run in the queue, or an event of the run itself."""

    number: int
    """Increases; where a reader continues."""
    time_s: float
    source: str
    """`queue` or `run`."""
    kind: str
    message: str
    data: dict[str, object] = {}


class ScaleRequestBody(WireModel):
    """A wish for another number of workers: from now on at most, and if there is room, so many."""

    workers: int = Field(ge=1)

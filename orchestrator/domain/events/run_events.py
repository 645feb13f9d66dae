"""The life of a run: its creation, its states, its cluster, its warnings."""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from orchestrator.domain.events.event_base import EventBody


class RunState(StrEnum):
    """Where a run is in its life. The last three are final; `stopped` and `failed` can be resumed."""

    PREPARING = "preparing"
    STARTING = "starting"
    RUNNING = "running"
    RECOVERING = "recovering"
    WAITING = "waiting"  # for workers, of which there are too few; state is kept
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True)
class RunCreated(EventBody):
    """A driver has taken up a run, new or resumed."""

    KIND: ClassVar[str] = "run.created"

    run_id: str
    """Id of the run."""
    spec_hash: str
    """Hash of the job spec."""
    convoy_version: str
    """Version of Convoy."""
    resumed_from_step: int | None = None
    """Step of the checkpoint that training continues from; null in a new run."""


@dataclass(frozen=True)
class AcceptedChange:
    """A difference between what a run was trained with and what is there now."""

    part: str
    """data, tokenizer, model or code."""
    what: str
    """The difference, for people."""


@dataclass(frozen=True)
class ChangesAccepted(EventBody):
    """A resume continues although something has changed since the run was trained: `--resume RUN --accept-changes`."""

    KIND: ClassVar[str] = "run.changes_accepted"

    step: int
    """Training continues after this step."""
    changes: tuple[AcceptedChange, ...]
    """What has changed."""


@dataclass(frozen=True)
class StateChanged(EventBody):
    """The run has entered a state."""

    KIND: ClassVar[str] = "run.state"

    state: RunState
    """The new state."""
    reason: str | None = None
    """Why, if that is known."""


@dataclass(frozen=True)
class ClusterReady(EventBody):
    """The cluster has been started or joined."""

    KIND: ClassVar[str] = "cluster.ready"

    address: str
    """`host:port` of its head."""
    nodes: int
    """Number of nodes."""
    cpus: float
    """CPUs of all nodes."""
    gpus: float
    """GPUs of all nodes."""
    seconds: float
    """How long starting or joining it took, in seconds."""


@dataclass(frozen=True)
class MetricsServing(EventBody):
    """The metrics endpoint is up."""

    KIND: ClassVar[str] = "metrics.serving"

    url: str
    """Its URL."""


@dataclass(frozen=True)
class WarningIssued(EventBody):
    """Something is wrong that does not end the run."""

    KIND: ClassVar[str] = "warning"

    message: str
    """What is wrong, for people."""

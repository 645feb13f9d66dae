"""How one generation of a gang ended, as values: what the run controller decides on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from orchestrator.domain.engine_errors import CAUSE, Cause
from orchestrator.domain.errors import BEFORE_SAMPLES
from orchestrator.domain.events import RecoveryReason
from orchestrator.domain.policy.numeric import NumericFault
from orchestrator.domain.session import TrainResult


class Ending(StrEnum):
    """How a worker ended."""

    RAISED = "raised"
    """Its entry point raised; the process lives."""
    PROCESS_DIED = "process died"
    NODE_DIED = "node died"
    NODE_SILENT = "node silent"
    """Given up: nothing on its node answers."""
    HUNG = "hung"
    """Given up: it makes no progress, or the whole gang makes none."""


@dataclass(frozen=True)
class FailureDetails:
    """What is known about a failure besides its text. Decisions depend on this, never on the wording."""

    cause: Cause | None = None
    numeric_fault: NumericFault | None = None
    """It raised because the numbers of a step must not count."""
    restore_mismatch: bool = False
    """The restored state is not the state that was saved."""
    before_samples: bool = False
    """Memory was short before any sample was fed."""
    foreign_bytes: int = 0
    """Device memory that other processes held then; 0: too little to matter."""

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> "FailureDetails":
        """From `ConvoyError.details`. Unknown keys and values are ignored: a worker may run a newer version."""
        fault, before = value.get("numeric_fault"), value.get(BEFORE_SAMPLES)
        foreign = before.get("foreign_bytes") if isinstance(before, Mapping) else None
        return cls(
            cause=_cause(value.get(CAUSE)),
            numeric_fault=NumericFault.from_json(dict(fault)) if isinstance(fault, Mapping) else None,
            restore_mismatch="restore_mismatch" in value,
            before_samples=before is not None,
            foreign_bytes=foreign if isinstance(foreign, int) else 0,
        )


def _cause(value: object) -> Cause | None:
    try:
        return Cause(str(value)) if value is not None else None
    except ValueError:
        return None


@dataclass(frozen=True)
class WorkerFailure:
    """The end of one worker."""

    rank: int
    ending: Ending
    seen_s: float
    """When the driver noticed, on its monotonic clock."""
    message: str
    detail: str = ""
    """Its traceback, or its last lines of output."""
    hint: str | None = None
    details: FailureDetails = field(default_factory=FailureDetails)
    alive_s: float | None = None
    """Its last sign of life, or of progress if it hangs, on the driver's monotonic clock; None: until `seen_s`."""

    @property
    def reason(self) -> RecoveryReason:
        """What kind of fault it is."""
        if self.details.numeric_fault is not None:
            return RecoveryReason.NUMERIC_FAULT
        of_cause = {
            Cause.OUT_OF_MEMORY: RecoveryReason.OUT_OF_MEMORY,
            Cause.DEVICE: RecoveryReason.DEVICE_ERROR,
            Cause.ASSERTION: RecoveryReason.WORKER_ERROR,
        }
        if self.details.cause in of_cause:
            return of_cause[self.details.cause]
        return _REASONS[self.ending]

    @property
    def is_consequence(self) -> bool:
        """Another worker is the cause: a collective or a rendezvous of this one failed."""
        return self.ending is Ending.RAISED and self.details.cause is Cause.PEER

    @property
    def ends_process(self) -> bool:
        """The process lives but cannot continue: its device, or its context on the device, is lost."""
        cause = self.details.cause
        return self.ending is Ending.RAISED and cause is not None and cause.ends_process

    @property
    def is_out_of_memory(self) -> bool:
        """Memory was short, on the host or on the device."""
        return self.details.cause is Cause.OUT_OF_MEMORY

    @property
    def lost_nobody(self) -> bool:
        """A worker's own code raised; as far as is known, no process and no node was lost. Device memory that other
        processes hold does not count as its own fault: they may release it."""
        own = self.ending is Ending.RAISED and not self.is_consequence and not self.ends_process
        return own and not self.details.foreign_bytes


_REASONS = {
    Ending.RAISED: RecoveryReason.WORKER_ERROR,
    Ending.PROCESS_DIED: RecoveryReason.WORKER_DIED,
    Ending.NODE_DIED: RecoveryReason.NODE_DIED,
    Ending.NODE_SILENT: RecoveryReason.NODE_SILENT,
    Ending.HUNG: RecoveryReason.HANG,
}


@dataclass(frozen=True)
class GenerationOutcome:
    """How a generation ended: with results, with a failure, at a step boundary for a change of size, or on request."""

    results: tuple[TrainResult, ...]
    failure: WorkerFailure | None
    """The root cause."""
    stopped: bool
    """It was asked to stop, and did before its last step."""
    step: int
    """The last step that rank 0 reported or returned."""
    regroup: bool = False
    """All workers left at a step boundary so that the gang can be formed again."""


@dataclass(frozen=True)
class Shortage:
    """Too few workers for the next generation."""

    have: int
    need: int


@dataclass(frozen=True)
class ClusterSize:
    """The cluster when the driver connected to it."""

    address: str
    nodes: int
    cpus: float
    gpus: float
    seconds: float
    """Until it was reached or started."""


@dataclass(frozen=True)
class Adopted:
    """What an earlier driver of the run left behind, and this one took over."""

    vaults: int
    workers_ended: int
    seconds: float


@dataclass(frozen=True)
class LeftBehind:
    """What this driver leaves to a later one."""

    step: int
    """The newest that the vaults hold completely."""
    vaults: int
    kept_s: float

"""Lost workers, numeric faults, and what is done about them."""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from orchestrator.domain.events.event_base import EventBody


class FaultKind(StrEnum):
    """What was wrong with the numbers of a step."""

    LOSS = "loss_not_finite"
    GRADIENT = "gradient_not_finite"
    SPIKE = "loss_spike"


class RecoveryReason(StrEnum):
    """What made a recovery necessary."""

    WORKER_DIED = "worker_died"
    NODE_DIED = "node_died"
    NODE_SILENT = "node_silent"
    """Nothing on the node answers."""
    HANG = "hang"
    WORKER_ERROR = "worker_error"
    """The worker's own code raised."""
    OUT_OF_MEMORY = "out_of_memory"
    DEVICE_ERROR = "device_error"
    """The worker's GPU failed."""
    NUMERIC_FAULT = "numeric_fault"
    DRIVER_LOST = "driver_lost"
    """A later driver continued the run."""
    UNKNOWN = "unknown"
    """Recorded by a version that did not say."""


@dataclass(frozen=True)
class RecoveryStarted(EventBody):
    """A worker or a step was lost, and this is what training continues from."""

    KIND: ClassVar[str] = "recovery.started"

    incident: int
    """Number of the incident in the run, counted from 1."""
    rank: int
    """Rank of the worker that is the cause."""
    cause: str
    """What went wrong."""
    detected_s: float
    """When it was detected, in Unix seconds."""
    step: int
    """The last optimizer step that was finished."""
    from_step: int
    """The step that training continues from."""
    source: str = ""
    """vaults, storage or beginning."""
    checkpoint: str | None = None
    """Directory or URL of the checkpoint, if the source is one."""
    skipped: tuple[int, ...] | None = None
    """After a numeric fault, the first position and the number of the samples left out; else null."""
    reason: RecoveryReason = RecoveryReason.UNKNOWN
    """What kind of fault it was."""
    alive_s: float | None = None
    """When the worker last showed life or progress, in Unix seconds; null if that is not known."""
    found_s: float | None = None
    """When this fault was detected, in Unix seconds: later than `detected_s` if it prolonged a recovery. Null in events
    of earlier versions."""


@dataclass(frozen=True)
class RecoveryFinished(EventBody):
    """Training has continued after a recovery."""

    KIND: ClassVar[str] = "recovery.finished"

    incident: int
    """Number of the incident in the run."""
    step: int
    """The first new optimizer step, or the last one if none remained."""
    world_size: int
    """Number of workers now."""
    seconds: float
    """From detection to the end of that step, or of the export, in seconds."""
    steps_recomputed: int
    """Optimizer steps that were lost and are recomputed."""


@dataclass(frozen=True)
class NumericFaultFound(EventBody):
    """A loss or gradient is not a number, or a loss has jumped."""

    KIND: ClassVar[str] = "numeric.fault"

    fault: FaultKind
    """What was wrong."""
    step: int
    """The optimizer step."""
    first_position: int
    """Position of the first sample of the step's batch."""
    count: int
    """Samples of the step's batch."""
    value: float | str
    """The loss or gradient norm; text if JSON cannot represent the number: "nan"."""
    rank: int | None
    """Where it began; null: all ranks together."""
    action: str
    """rollback, stop, give_up or continue."""
    from_step: int | None = None
    """The step that training goes back to; null except for a rollback."""
    skipped_first: int | None = None
    """Position of the first sample left out; null except for a rollback."""
    skipped_count: int | None = None
    """Number of the samples left out; null except for a rollback."""


@dataclass(frozen=True)
class FaultInjected(EventBody):
    """A worker makes a fault on purpose, for a drill."""

    KIND: ClassVar[str] = "fault.injected"

    fault: str
    """nan, spike or oom."""
    step: int
    """The optimizer step in which it happens."""
    rank: int
    """Rank of the worker."""

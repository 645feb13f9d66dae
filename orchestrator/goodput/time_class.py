"""What a worker's time was spent on, and what the lost part of it was lost to."""

from enum import StrEnum

from orchestrator.domain.events import RecoveryReason


class TimeClass(StrEnum):
    """Classes of a worker's time, from its reservation to its release. Every second belongs to one of them: if several
    apply, to the first in this order."""

    RECOVERY_DETECTION = "recovery_detection"
    """From the last sign of life of a lost worker until the driver knew that it was lost."""
    RECOVERY_DECISION = "recovery_decision"
    """Until it was decided from which state training continues. The survivors are interrupted meanwhile."""
    RECOVERY_REBUILD = "recovery_rebuild"
    """Processes, rendezvous, model and engine of the next generation."""
    RECOVERY_RESTORE = "recovery_restore"
    """Reading the state, until the first step begins."""
    RECOMPUTED = "recomputed"
    """Steps that a recovery threw away, and the part of the interrupted step that was done."""
    RESIZING = "resizing"
    """From the last step at one size to the first at another, and workers that have been reserved to join."""
    WAITING = "waiting"
    """Too few workers to train, until enough are there."""
    CHECKPOINT_STALL = "checkpoint_stall"
    """Training was paused for a checkpoint."""
    SNAPSHOT_STALL = "snapshot_stall"
    """Training was paused for a copy of the state to memory."""
    DATA_WAIT = "data_wait"
    """In steps: waiting for data."""
    STRAGGLING = "straggling"
    """In steps: what the slowest worker took longer than the median one, for it and for those that waited."""
    COMMUNICATION_WAIT = "communication_wait"
    """In steps: collectives, but for the wait for a straggler."""
    EVALUATION = "evaluation"
    """Measuring the validation loss."""
    EXPORT = "export"
    """Writing the model."""
    STARTUP = "startup"
    """From reservation to the first step: processes, data, model and engine; with a resume also restoring."""
    PRODUCTIVE = "productive"
    """Everything else from the first step to the last: forward, backward, optimizer."""
    IDLE_TAIL = "idle_tail"
    """From the end of the last step, and of what follows it, to release."""


class LossCause(StrEnum):
    """Why worker time was not productive: the reason of a recovery, or the class itself outside of recoveries."""

    WORKER_DIED = RecoveryReason.WORKER_DIED.value
    NODE_DIED = RecoveryReason.NODE_DIED.value
    NODE_SILENT = RecoveryReason.NODE_SILENT.value
    HANG = RecoveryReason.HANG.value
    WORKER_ERROR = RecoveryReason.WORKER_ERROR.value
    OUT_OF_MEMORY = RecoveryReason.OUT_OF_MEMORY.value
    DEVICE_ERROR = RecoveryReason.DEVICE_ERROR.value
    NUMERIC_FAULT = RecoveryReason.NUMERIC_FAULT.value
    DRIVER_LOST = RecoveryReason.DRIVER_LOST.value
    UNKNOWN_FAULT = RecoveryReason.UNKNOWN.value
    RESIZING = TimeClass.RESIZING.value
    WAITING = TimeClass.WAITING.value
    CHECKPOINT_STALL = TimeClass.CHECKPOINT_STALL.value
    SNAPSHOT_STALL = TimeClass.SNAPSHOT_STALL.value
    DATA_WAIT = TimeClass.DATA_WAIT.value
    STRAGGLING = TimeClass.STRAGGLING.value
    COMMUNICATION_WAIT = TimeClass.COMMUNICATION_WAIT.value
    EVALUATION = TimeClass.EVALUATION.value
    EXPORT = TimeClass.EXPORT.value
    STARTUP = TimeClass.STARTUP.value
    IDLE_TAIL = TimeClass.IDLE_TAIL.value


RECOVERY_CLASSES = (
    TimeClass.RECOVERY_DETECTION,
    TimeClass.RECOVERY_DECISION,
    TimeClass.RECOVERY_REBUILD,
    TimeClass.RECOVERY_RESTORE,
)
STEP_CLASSES = (TimeClass.PRODUCTIVE, TimeClass.STRAGGLING, TimeClass.COMMUNICATION_WAIT)
"""The time of steps as goodput counts it."""
TRAINING_CLASSES = (*STEP_CLASSES, TimeClass.DATA_WAIT)
"""The time of steps as the effective training time ratio counts it."""

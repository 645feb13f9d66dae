"""Every error Convoy raises on purpose. What is not one of these is a bug and keeps its traceback."""

from orchestrator.base_error import ConvoyError as ConvoyError
from orchestrator.domain.engine_errors import CAUSE, Cause, find_cause
from orchestrator.json_values import JsonObject

LONGEST_CHAIN = 8
"""Errors that quote another one, of which the cause is looked for."""


class UsageError(ConvoyError):
    """The user's request cannot be carried out: a bad argument, a run that does not exist."""

    exit_code = 2


class NotFoundError(UsageError):
    """What the request names does not exist."""


class ForbiddenError(UsageError):
    """The caller is known, and may not do this."""


class ConflictError(UsageError):
    """The request does not fit the present state: it was changed meanwhile, or is another one under a known key."""


class UnavailableError(ConvoyError):
    """It cannot be done now, and may be later: the database is locked or its disk is full, or another server acts."""


class DeviceError(UsageError):
    """A worker cannot train on the requested device."""


class BrokenDeviceError(DeviceError):
    """The GPU of a worker does not work, or no longer works."""

    @property
    def details(self) -> JsonObject:
        return {CAUSE: Cause.DEVICE.value}


BEFORE_SAMPLES = "before_samples"
"""Key of `ConvoyError.details`: memory was short before any sample was fed."""


class DeviceMemoryError(ConvoyError):
    """A worker's device was full while its engine was built or its state restored: no micro batch is small enough."""

    def __init__(self, message: str, hint: str | None, foreign_bytes: int) -> None:
        """`foreign_bytes`: what others hold on the device; 0 if that is too little to matter."""
        super().__init__(message, hint)
        self.foreign_bytes = foreign_bytes

    @property
    def details(self) -> JsonObject:
        return {CAUSE: Cause.OUT_OF_MEMORY.value, BEFORE_SAMPLES: {"foreign_bytes": self.foreign_bytes}}


class LeaseLostError(ConvoyError):
    """Another driver has taken the run over: this one must end, and write nothing more."""


class WeightsError(UsageError):
    """The weights of a pretrained model are missing, damaged, or not those of the model that its config describes."""


class DataError(ConvoyError):
    """The corpus cannot be read, or does not contain what the spec says."""


class ClusterError(ConvoyError):
    """The cluster cannot be reached, or cannot satisfy the request."""


class PeerLostError(ConvoyError):
    """Another worker is lost: this one left the collective that waits for it. Its cause is elsewhere, whatever the
    message says."""

    @property
    def details(self) -> JsonObject:
        return {CAUSE: Cause.PEER.value}


class NotPublishedError(PeerLostError, TimeoutError):
    """A value that another rank has to publish did not come."""


class CheckpointError(ConvoyError):
    """A checkpoint is missing, incomplete, or does not match the model."""


class PeerStateError(CheckpointError):
    """The state of a rank cannot be read from memory: no vault that holds it can be reached."""

    @property
    def details(self) -> JsonObject:
        return {CAUSE: Cause.PEER.value}


def cause_of_error(error: BaseException) -> Cause | None:
    """What made a worker fail; None if it is an error of code or data.

    An error of Convoy says so itself, or has the cause of the error that it was raised from; its wording decides
    nothing. Errors of other packages are judged by their type, then by their text.
    """
    looked_at: BaseException | None = error
    for _ in range(LONGEST_CHAIN):
        if not isinstance(looked_at, ConvoyError):
            break
        if CAUSE in looked_at.details:
            return Cause(str(looked_at.details[CAUSE]))
        looked_at = looked_at.__cause__
    if looked_at is None or isinstance(looked_at, ConvoyError):
        return None
    if isinstance(looked_at, MemoryError):
        return Cause.OUT_OF_MEMORY
    if isinstance(looked_at, ConnectionError):
        return Cause.PEER
    return find_cause(f"{type(looked_at).__name__}: {looked_at}")

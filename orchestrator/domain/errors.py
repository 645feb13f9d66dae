"""Every error Convoy raises on purpose. What is not one of these is a bug and keeps its traceback."""

from typing import Any

from orchestrator.base_error import ConvoyError as ConvoyError
from orchestrator.domain.engine_errors import CAUSE, Cause


class UsageError(ConvoyError):
    """What the user asked for cannot be done as asked: a bad argument, a run that does not exist."""

    exit_code = 2


class DeviceError(UsageError):
    """A worker cannot train on the device that the spec promises it."""


class BrokenDeviceError(DeviceError):
    """The GPU of a worker does not work, or not any more."""

    @property
    def details(self) -> dict[str, Any]:
        return {CAUSE: Cause.DEVICE.value}


BEFORE_SAMPLES = "before_samples"
"""Key of `ConvoyError.details`: memory was short before any sample was fed."""


class WantOfMemoryError(ConvoyError):
    """A worker's device was full while its engine was built or its state restored: no micro batch is small enough."""

    def __init__(self, message: str, hint: str | None, foreign_bytes: int) -> None:
        """`foreign_bytes`: what others hold on the device; 0 where that is too little to matter."""
        super().__init__(message, hint)
        self.foreign_bytes = foreign_bytes

    @property
    def details(self) -> dict[str, Any]:
        return {CAUSE: Cause.OUT_OF_MEMORY.value, BEFORE_SAMPLES: {"foreign_bytes": self.foreign_bytes}}


class LeaseLostError(ConvoyError):
    """Another driver has taken the run over: this one must end, and write nothing more."""


class WeightsError(UsageError):
    """The weights of a pretrained model are missing, damaged, or not those of the model that its config describes."""


class DataError(ConvoyError):
    """The corpus cannot be read or does not hold what the spec says."""


class ClusterError(ConvoyError):
    """The cluster cannot be reached, or cannot hold what was asked for."""


class PeerLostError(ConvoyError):
    """Another worker is lost: this one left the collective that waits for it. Its cause is elsewhere, whatever the
    message quotes."""

    @property
    def details(self) -> dict[str, Any]:
        return {CAUSE: Cause.PEER.value}


class CheckpointError(ConvoyError):
    """A checkpoint is missing, incomplete, or does not match the model."""

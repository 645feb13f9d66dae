"""Checkpoints in storage."""

from dataclasses import dataclass
from typing import ClassVar

from orchestrator.domain.events.event_base import EventBody


@dataclass(frozen=True)
class CheckpointStarted(EventBody):
    """The vaults write a checkpoint in the background."""

    KIND: ClassVar[str] = "checkpoint.started"

    step: int
    """The optimizer step it holds."""
    place: str
    """Directory or URL it is written to."""
    world_size: int
    """Number of workers whose state it holds."""
    stage: int
    """Their ZeRO stage."""
    seconds: float
    """How long training was paused for it, in seconds."""


@dataclass(frozen=True)
class CheckpointSaved(EventBody):
    """A checkpoint is complete."""

    KIND: ClassVar[str] = "checkpoint.saved"

    step: int
    """The optimizer step it holds."""
    path: str
    """Its directory or URL."""
    bytes: int
    """Its size in bytes."""
    seconds: float
    """How long training was paused for it, in seconds."""
    write_seconds: float | None = None
    """How long the vaults wrote it, in seconds; null: training was paused for the whole write."""
    world_size: int = 0
    """Number of workers whose state it holds."""
    stage: int = 0
    """Their ZeRO stage."""


@dataclass(frozen=True)
class CheckpointFailed(EventBody):
    """A checkpoint could not be written. Training continues; the save of the last step is retried."""

    KIND: ClassVar[str] = "checkpoint.failed"

    step: int
    """The optimizer step it was to hold."""
    place: str
    """Directory or URL it was written to."""
    reason: str
    """What went wrong."""
    fault: str
    """full, unreachable, denied, missing or other."""
    seconds: float
    """How long training was paused for it, in seconds."""


@dataclass(frozen=True)
class CheckpointRestored(EventBody):
    """Workers have loaded a state and train from it."""

    KIND: ClassVar[str] = "checkpoint.restored"

    step: int
    """The optimizer step it holds."""
    path: str
    """Directory or URL; vaults: from the memory of the nodes."""
    seconds: float
    """How long loading it took, in seconds."""
    saved_world_size: int
    """Number of workers that saved it."""
    world_size: int
    """Number of workers that loaded it."""


@dataclass(frozen=True)
class CheckpointRejected(EventBody):
    """A state is not used."""

    KIND: ClassVar[str] = "checkpoint.rejected"

    path: str
    """Directory or URL; vaults: in the memory of the nodes."""
    reason: str
    """What is wrong with it."""

"""Changes of size: requests, nodes that leave, too few workers."""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from orchestrator.domain.events.event_base import EventBody


class ScaleState(StrEnum):
    """How far a request for another number of workers has come."""

    ACCEPTED = "accepted"
    """The run aims for it from now on."""
    DONE = "done"
    """A step was made with as many workers."""
    REFUSED = "refused"


@dataclass(frozen=True)
class GangResized(EventBody):
    """The number of workers changes at a step boundary; no step is repeated."""

    KIND: ClassVar[str] = "gang.resized"

    step: int
    """The last optimizer step before the change."""
    before: int
    """Number of workers before."""
    world_size: int
    """Number of workers now."""


@dataclass(frozen=True)
class GangWaiting(EventBody):
    """There are too few workers, and nodes are needed."""

    KIND: ClassVar[str] = "gang.waiting"

    have: int
    """Workers that are there."""
    need: int
    """Workers that are needed at least."""
    since_s: float
    """Since when, in Unix seconds."""
    step: int
    """The optimizer step whose state is kept meanwhile."""


@dataclass(frozen=True)
class ScaleAnswered(EventBody):
    """The answer to a `convoy scale`."""

    KIND: ClassVar[str] = "scale"

    id: str
    """Id of the request."""
    by: str
    """Who asked: user@host."""
    asked_s: float
    """When, in Unix seconds."""
    workers: int
    """The number of workers that was asked for."""
    state: ScaleState
    """accepted, done or refused."""
    message: str
    """What happens now, or why not; for people."""
    step: int | None = None
    """The first optimizer step with that number of workers; null before."""


@dataclass(frozen=True)
class NodeDraining(EventBody):
    """A node is about to leave."""

    KIND: ClassVar[str] = "node.draining"

    node: str
    """Id of the node."""
    address: str | None
    """Its address; null if it has no worker."""
    ranks: tuple[int, ...]
    """Ranks of its workers."""
    deadline_s: float | None = None
    """When it leaves, in Unix seconds; null if no deadline is known."""
    notice_s: float | None = None
    """The same in seconds from now."""

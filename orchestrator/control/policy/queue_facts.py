"""What the scheduler knows, and what it decides. Values only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from orchestrator.clusters.placement import NodeCapacity, Resources, WorkerRequest

Places = Mapping[str, int]
"""Workers by the id of the node."""


@dataclass(frozen=True)
class QueueShare:
    """One queue's part of the cluster."""

    name: str
    weight: float = 1.0
    """Of its share of what is contended."""
    quota: Resources = field(default_factory=dict)
    """What it always gets, by Ray's resource names. More is borrowed if idle, and given back if its owner needs it. A
    resource that is not named has no quota."""
    limit: Resources = field(default_factory=dict)
    """What its runs never exceed together, borrowed or not."""


@dataclass(frozen=True, slots=True)
class ScheduledRun:
    """A run that waits, or that has capacity."""

    id: str
    queue: str
    user: str
    priority: int
    """Higher goes first."""
    order: int
    """Of submission; unique."""
    ask: WorkerRequest
    """`maximum` is what it can use: no more than samples in a global batch, or than a person asked for."""
    waits: bool
    """Has no capacity and wants it."""
    leaving: bool = False
    """Is being suspended, paused or cancelled: its places come free soon and cannot be taken from it twice."""
    places: Places = field(default_factory=dict)
    """What it has or may still have: booked for it. Of a run that shrinks, the places before."""
    granted: Places = field(default_factory=dict)
    """What it is to have; differs from `places` while it changes."""
    since_s: float = 0.0
    """When it began to wait, or got its capacity: Unix seconds."""
    work_s: float | None = None
    """Worker-seconds until its end: remaining steps times measured step time times workers. None: unknown."""
    limit_s: float | None = None
    """Seconds until its `limits.max_runtime`."""
    changed_s: float | None = None
    """When its grant last changed: Unix seconds. It does not grow again too soon; None: it may grow."""
    reserved: tuple[float, Places] | None = None
    """Of a waiting run: its entry in `Decision.reservations` of the decision before. It is kept as long as it can be,
    so that later runs do not delay the run; None: there was none, or it is not known any more."""

    @property
    def elastic(self) -> bool:
        """Its number of workers may change."""
        return self.ask.minimum < self.ask.maximum

    def remaining_s(self, workers: int) -> float | None:
        """Seconds until its end with so many workers; None: unknown."""
        by_work = self.work_s / max(1, workers) if self.work_s is not None else None
        known = [each for each in (by_work, self.limit_s) if each is not None]
        return min(known) if known else None


@dataclass(frozen=True)
class QueueFacts:
    """Everything that a decision follows from."""

    now_s: float
    """Unix seconds."""
    nodes: tuple[NodeCapacity, ...]
    """Live nodes that are not draining. `free`: without what runs of this queue hold, which `places` says; less than
    `total` only if others use the node."""
    runs: tuple[ScheduledRun, ...]
    queues: Mapping[str, QueueShare]
    autoscales: bool = False
    """Nodes may be added: what does not fit now may later."""


class Obstacle(StrEnum):
    """Why a run waits."""

    CAPACITY = "capacity"
    """Others hold what it needs."""
    RESERVED = "reserved"
    """It would fit, and would delay a run before it."""
    QUOTA = "quota"
    """Its queue has reached its limit."""
    NODES = "nodes"
    """No node that exists can hold it; an autoscaler may add some."""
    NEVER = "never"
    """It can never fit."""
    MAKING_ROOM = "making_room"
    """Runs are being shrunk or suspended for it."""


class Outlook(NamedTuple):
    """What a waiting run may expect. A tuple, since ten thousand are made in a tick."""

    position: int
    """1 is next among the runs that wait."""
    obstacle: Obstacle
    message: str
    """Why it waits, with figures: for people."""
    blockers: tuple[str, ...] = ()
    """Runs whose end or shrinking would let it start, the first to end first."""
    may_start_s: float | None = None
    """Unix seconds; None if it depends on what is not known."""


@dataclass(frozen=True)
class Decision:
    """What changes. A run that is in neither mapping keeps what it has."""

    grants: Mapping[str, Places]
    """New grants by run: it starts, grows, shrinks or moves."""
    suspensions: Mapping[str, str]
    """Runs that give up their capacity, each for another run. For itself if its nodes are gone, those that are left are
    fewer than its minimum, and there is no other place: it waits for one."""
    outlooks: Mapping[str, Outlook]
    """Of every run that waits and gets no grant."""
    reservations: Mapping[str, tuple[float, Places]] = field(default_factory=dict)
    """Of waiting runs: when, and where."""

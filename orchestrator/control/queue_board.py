"""What the last tick saw, for those who answer requests: nothing is asked of drivers or the cluster for an answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.clusters.placement import NodeCapacity
from orchestrator.control.policy.queue_facts import Outlook
from orchestrator.control.ports import DriverFacts


@dataclass(frozen=True)
class TickView:
    """One tick's facts and outlooks."""

    time_s: float
    """Unix seconds."""
    acting: bool
    """This server holds the lease on its database."""
    nodes: tuple[NodeCapacity, ...] | None
    """None: the cluster does not answer, and nothing is decided."""
    drivers: Mapping[str, DriverFacts] = field(default_factory=dict)
    """By run."""
    outlooks: Mapping[str, Outlook] = field(default_factory=dict)
    """By waiting run."""
    problem: str | None = None
    """Why nothing could be decided or written; for people."""


class QueueBoard:
    """Holds the newest `TickView`. Written by the ticker, read by any thread: a view is replaced, never changed."""

    def __init__(self) -> None:
        self.view: TickView | None = None
        """None before the first tick."""

    def publish(self, view: TickView) -> None:
        """Replace the view."""
        self.view = view

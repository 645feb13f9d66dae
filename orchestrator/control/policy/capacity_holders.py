"""Runs that have capacity, as the scheduler sees them, and what it changes about them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.control.policy.gang_places import RowPlaces, part_of
from orchestrator.control.policy.queue_facts import ScheduledRun
from orchestrator.control.policy.worker_shapes import WorkerShape


@dataclass(eq=False)
class CapacityHolder:
    """A run with capacity. Elastic runs hold their minimum until they end; what they have beyond it is extra, and is
    returned when it is needed."""

    run: ScheduledRun
    shape: WorkerShape
    kept: RowPlaces
    """What it is to have, on nodes that are there."""
    booked: RowPlaces
    """That, and what it may still have from before."""
    lost: int
    """Workers that it was to have on nodes that are gone."""
    end_s: float
    """When it ends at the latest, Unix seconds: with its minimum of workers. Infinite if unknown."""
    hard: RowPlaces = field(init=False)
    extras: RowPlaces = field(init=False)
    soft: bool = False
    """Its extras are free for others from the second column on."""
    suspended_for: str | None = None
    changed: bool = False
    started: bool = False

    def __post_init__(self) -> None:
        self.divide({})

    def divide(self, safe: RowPlaces) -> None:
        """Choose what is hard and what is extra; `safe` is where it may stay until its end."""
        self.hard = part_of(self.kept, self.shape.placement, self.run.ask.minimum, safe)
        left = {row: workers - self.hard.get(row, 0) for row, workers in self.kept.items()}
        self.extras = {row: workers for row, workers in left.items() if workers}

    @property
    def everywhere(self) -> int:
        """Workers that it may have at most, also on nodes that drain."""
        places, granted = self.run.places, self.run.granted
        return sum(max(places.get(node, 0), granted.get(node, 0)) for node in {**places, **granted})

    @property
    def leaves(self) -> bool:
        """Its places come free soon, whatever is decided."""
        return self.run.leaving or self.suspended_for is not None

    @property
    def workers(self) -> int:
        """That it is to have."""
        return sum(self.kept.values())

    @property
    def settled(self) -> bool:
        """Its driver has carried out its newest grant."""
        return not self.run.granted or dict(self.run.granted) == dict(self.run.places)


def holder_of(run: ScheduledRun, shape: WorkerShape, rows: Mapping[str, int], now_s: float) -> CapacityHolder:
    """From the facts of a run that has places or is granted some."""
    target = run.granted or run.places
    kept = {rows[node]: workers for node, workers in target.items() if node in rows and workers}
    booked = dict(kept)
    for node, workers in run.places.items():
        if node in rows:
            booked[rows[node]] = max(booked.get(rows[node], 0), workers)
    lost = sum(target.values()) - sum(kept.values())
    left_s = run.remaining_s(run.ask.minimum)
    end_s = math.inf if left_s is None else now_s + max(0.0, left_s)
    return CapacityHolder(run, shape, kept, booked, lost, end_s)

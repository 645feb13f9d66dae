"""What is free on each node from now on: a step function of time, as a matrix."""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence

import numpy as np

from orchestrator.control.policy.gang_places import RowPlaces
from orchestrator.control.policy.worker_shapes import (
    Amounts,
    ShapeTable,
    WorkerCounts,
    WorkerShape,
    fit_of,
    workers_that_fit,
)

HANDOVER_S = 60.0
"""Within this time a driver releases what it is asked for; what ends sooner is worth waiting for."""
MOST_COLUMNS = 96
"""Of the matrix. With more ends than that, ends are rounded up to later ones."""
ROUNDING_S = 1e-6

Holding = tuple[RowPlaces, WorkerShape, int, int]
"""Workers of a shape, from a column (included) to another (excluded)."""


class CapacityProfile:
    """`free` is [resources, nodes, columns]. A column holds from its time to the next one's. The first is now, the
    second is when releases under way are complete, the last is after everything that has no known end."""

    def __init__(self, table: ShapeTable, now_s: float, ends_s: Iterable[float]) -> None:
        later = sorted({end for end in ends_s if now_s + HANDOVER_S < end < math.inf})
        most = MOST_COLUMNS - 3
        if len(later) > most:
            later = sorted({later[round(i * (len(later) - 1) / (most - 1))] for i in range(most)})
        self.times_s = [now_s, now_s + HANDOVER_S, *later, math.inf]
        self.free: Amounts = np.repeat(table.free[:, :, None], len(self.times_s), axis=2)
        self._counts: dict[int, tuple[WorkerShape, WorkerCounts]] = {}

    @property
    def unknown(self) -> int:
        """The last column."""
        return len(self.times_s) - 1

    def column(self, time_s: float) -> int:
        """The first column that begins at that time or later."""
        return bisect_left(self.times_s, time_s - ROUNDING_S)

    def end_of(self, start: int, duration_s: float | None) -> int:
        """The column before which a run ends that starts with column `start`; all columns if that is not known."""
        if duration_s is None:
            return len(self.times_s)
        begin_s = self.times_s[start]
        return max(start + 1, self.unknown if begin_s == math.inf else self.column(begin_s + duration_s))

    def split(self, time_s: float) -> None:
        """Add a column, so that this time is not rounded up; not if there are too many."""
        at = self.column(time_s)
        if len(self.times_s) >= MOST_COLUMNS or abs(self.times_s[min(at, self.unknown)] - time_s) <= 2 * ROUNDING_S:
            return
        if time_s == math.inf or at == 0:
            return
        self.times_s.insert(at, time_s)
        self.free = np.insert(self.free, at, self.free[:, :, at - 1], axis=2)
        for number, (shape, counts) in self._counts.items():
            self._counts[number] = (shape, np.insert(counts, at, counts[:, at - 1], axis=1))

    def hold_all(self, holdings: Sequence[Holding]) -> None:
        """Subtract many at once, before anything else."""
        resources, nodes, columns = self.free.shape
        change = np.zeros((resources, nodes * (columns + 1)))
        cells, weights = [], []
        for places, shape, start, end in holdings:
            for row, workers in places.items():
                cells += [row * (columns + 1) + start, row * (columns + 1) + end]
                amount = shape.bundle * workers
                weights += [-amount, amount]
        if cells:
            stacked = np.array(weights)
            for resource in range(resources):
                change[resource] = np.bincount(cells, stacked[:, resource], nodes * (columns + 1))
        self.free += np.cumsum(change.reshape(resources, nodes, columns + 1), axis=2)[:, :, :columns]

    def hold(self, places: RowPlaces, shape: WorkerShape, start: int, end: int, sign: float = -1.0) -> None:
        """Subtract workers from columns `start` (included) to `end` (excluded); with `sign` 1 they are given back."""
        rows = np.fromiter(places, np.int64, len(places))
        if not len(rows) or start >= end:
            return
        workers = np.array([places[int(row)] for row in rows], np.float64)
        self.free[:, rows, start:end] += sign * np.multiply.outer(shape.bundle, workers)[:, :, None]
        for known, counts in self._counts.values():
            counts[rows, start:end] = workers_that_fit(self.free[:, rows, start:end], known.bundle)

    def counts(self, shape: WorkerShape) -> WorkerCounts:
        """Workers that fit: [nodes, columns]."""
        if shape.number not in self._counts:
            self._counts[shape.number] = (shape, workers_that_fit(self.free, shape.bundle))
        return self._counts[shape.number][1]

    def window(self, shape: WorkerShape, start: int, end: int) -> WorkerCounts:
        """Workers that fit on each node all the time from one column to another: [nodes]."""
        counts: WorkerCounts = self.counts(shape)[:, start:end].min(axis=1)
        return counts

    def holds(self, places: RowPlaces, shape: WorkerShape, start: int, end: int) -> bool:
        """These places are free all the time from one column to another."""
        rows = list(places)
        counts = self.counts(shape)[rows, start:end].min(axis=1)
        return bool((counts >= np.array([places[row] for row in rows])).all())

    def earliest(
        self, shape: WorkerShape, workers: int, duration_s: float | None, first: int = 0, last: int | None = None
    ) -> tuple[int, WorkerCounts] | None:
        """The first column, from `first` to `last`, with which so many workers can start and stay; and what fits
        then."""
        counts = self.counts(shape)
        if not len(counts):
            return None
        if last == 0 and fit_of(counts[:, 0], shape.placement) < workers:
            return None
        enough = _enough(counts, shape.placement, workers)
        start, stop = first, self.unknown if last is None else last
        while start <= stop:
            end = self.end_of(start, duration_s)
            gaps = np.flatnonzero(~enough[start:end])
            if len(gaps):
                start += int(gaps[-1]) + 1
                continue
            window = self.window(shape, start, end)
            if fit_of(window, shape.placement) >= workers:
                return start, window
            start += 1
        return None


def _enough(counts: WorkerCounts, placement: str, workers: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Columns in which so many workers fit."""
    if placement == "strict_pack":
        most: WorkerCounts = counts.max(axis=0)
    else:
        most = ((counts > 0) if placement == "strict_spread" else counts).sum(axis=0)
    return np.greater_equal(most, workers)

"""Curves of long runs in bounded memory: the mean, minimum and maximum over ranges of steps. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite

MOST_POINTS = 800
"""Points of a curve. Above this number two neighbours become one, and each covers twice as many steps."""


@dataclass
class CurvePoint:
    """The values of the steps [first_step, last_step]. Mutable: `merge` changes it."""

    first_step: int
    last_step: int
    count: int
    """Steps with a value."""
    total: float
    """Of their values."""
    low: float
    high: float

    @property
    def mean(self) -> float:
        return self.total / self.count

    def merge(self, other: "CurvePoint") -> None:
        """Take in the point that follows."""
        self.last_step = other.last_step
        self.count += other.count
        self.total += other.total
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)


class Curve:
    """One figure over the steps, which come in ascending order. Exact up to `MOST_POINTS` steps; beyond that each point
    is exact over its range."""

    def __init__(self) -> None:
        self._stride = 1
        """Steps that one point covers: point p has the steps [p * stride, (p + 1) * stride)."""
        self._points: list[CurvePoint] = []

    def __len__(self) -> int:
        return len(self._points)

    def __iter__(self) -> Iterator[CurvePoint]:
        return iter(self._points)

    @property
    def means(self) -> list[float]:
        """Of the points, in order."""
        return [point.mean for point in self._points]

    def add(self, step: int, value: float | None) -> None:
        """Add the value of a step after all others. A value that is missing or not finite is left out."""
        if value is None or not isfinite(value):
            return
        last = self._points[-1] if self._points else None
        if last is not None and last.first_step // self._stride == step // self._stride:
            last.last_step, last.count, last.total = step, last.count + 1, last.total + value
            if value < last.low:
                last.low = value
            elif value > last.high:
                last.high = value
            return
        self._points.append(CurvePoint(step, step, 1, value, value, value))
        if len(self._points) > MOST_POINTS:
            self._thin()

    def _thin(self) -> None:
        self._stride *= 2
        points: list[CurvePoint] = []
        for point in self._points:
            if points and points[-1].first_step // self._stride == point.first_step // self._stride:
                points[-1].merge(point)
            else:
                points.append(point)
        self._points = points

"""Scales of charts: round ticks, and labels for them. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, isfinite, log10

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_LEAST_SPREAD = 1e-6
"""Relative to the values: less is one value, as far as a label can say."""
_SMALL = 1e-3
"""From here on down labels are powers of ten."""
_MOST_DECIMALS = 12


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high`, which are different, with ticks between them."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """Where a value lies: 0 at `low`, 1 at `high`; values outside are moved to the nearer end."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


def axis(
    values: Sequence[float], ticks: int = 5, from_zero: bool = False, rounded: bool = True, unit: float = 1.0
) -> Axis:
    """An axis that holds all finite values. `from_zero`: it begins at 0; `rounded`: it ends at ticks; `unit`: ticks are
    round in it."""
    if unit != 1.0:
        inner = axis([value / unit for value in values], ticks, from_zero, rounded)
        return Axis(inner.low * unit, inner.high * unit, tuple(tick * unit for tick in inner.ticks))
    finite = [value for value in values if isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if from_zero:
        low, high = min(0.0, low), max(0.0, high)
    if high - low <= _LEAST_SPREAD * max(abs(low), abs(high)):
        spread = abs(high) * 0.1 or 1.0
        low, high = (low if from_zero else low - spread), high + spread
    step = _round_step((high - low) / max(1, ticks))
    if rounded:
        low, high = floor(low / step + 1e-9) * step, ceil(high / step - 1e-9) * step
    first = ceil(low / step - 1e-9)
    places = [(first + index) * step for index in range(int((high - first * step) / step + 1e-9) + 1)]
    return Axis(low, high, tuple(places))


def labels(ticks: Sequence[float], write: Callable[[float], str] | None = None) -> list[str]:
    """A label for each tick, with as many decimals as all of them need."""
    if write is not None:
        return [write(tick) for tick in ticks]
    step = min((abs(after - before) for before, after in pairwise(ticks)), default=1.0) or 1.0
    largest = max((abs(tick) for tick in ticks), default=0.0)
    if 0.0 < largest < _SMALL:
        digits = max(1, ceil(log10(largest / step)))
        return [f"{tick:.{digits}e}" if abs(tick) > step / 2 else "0" for tick in ticks]
    decimals = max(0, min(_MOST_DECIMALS, -floor(log10(step) + 1e-9)))
    scaled = step * 10**decimals
    if abs(scaled - round(scaled)) > 1e-3:
        decimals += 1  # steps of 2.5
    return [f"{tick:,.{decimals}f}" for tick in ticks]


def _round_step(step: float) -> float:
    power = 10.0 ** floor(log10(step))
    return next(each * power for each in _STEPS if each * power >= step * (1 - 1e-9))

"""Algebra of half-open ranges over flattened tensors. Pure.

All of ZeRO's state is 1-D ranges of flattened parameters, so a checkpoint is a set of `Interval`s and a restore
at any world size and stage is a set of intersections.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What the numbers of an interval are."""

    MASTER = "master"
    """The fp32 weights that the optimizer updates."""
    EXP_AVG = "exp_avg"
    """First moment of Adam."""
    EXP_AVG_SQ = "exp_avg_sq"
    """Second moment of Adam."""
    FROZEN = "frozen"
    """A parameter no optimizer group holds, in the model's own precision."""
    BUFFER = "buffer"
    """A persistent buffer of the model."""


MOMENTS = (Kind.EXP_AVG, Kind.EXP_AVG_SQ)


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """Elements [start, end) of a flattened tensor."""

    start: int
    end: int

    def __len__(self) -> int:
        return max(0, self.end - self.start)

    def __str__(self) -> str:
        return f"[{self.start}, {self.end})"


def intersect(a: Range, b: Range) -> Range | None:
    """What both ranges hold; None if that is nothing."""
    start, end = max(a.start, b.start), min(a.end, b.end)
    return Range(start, end) if start < end else None


def missing(want: Range, have: Iterable[Range]) -> list[Range]:
    """The parts of `want` that no range of `have` covers, in order. Ranges of `have` may overlap."""
    gaps: list[Range] = []
    position = want.start
    for part in sorted(have):
        if position >= want.end:
            break
        if part.end <= position or not len(part):
            continue
        if part.start > position:
            gaps.append(Range(position, min(part.start, want.end)))
        position = max(position, part.end)
    if position < want.end:
        gaps.append(Range(position, want.end))
    return gaps


def even_slice(length: int, rank: int, world_size: int) -> Range:
    """The share of `rank` when `length` elements are cut evenly: the shares tile [0, length)."""
    return Range(length * rank // world_size, length * (rank + 1) // world_size)

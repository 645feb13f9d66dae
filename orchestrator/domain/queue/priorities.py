"""Priority classes of runs. A run of a higher class goes before all runs of lower ones."""

from enum import StrEnum


class Priority(StrEnum):
    """The classes, the lowest first."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"
    URGENT = "urgent"

    @property
    def rank(self) -> int:
        """Higher goes first; the number that the queue orders by."""
        return RANKS[self]


RANKS = {each: 10 * (number + 1) for number, each in enumerate(Priority)}
"""With room between two classes."""


def priority_of(rank: int) -> Priority:
    """The class with this rank, or the next lower one."""
    return max((each for each in Priority if each.rank <= rank), key=lambda each: each.rank, default=Priority.LOW)

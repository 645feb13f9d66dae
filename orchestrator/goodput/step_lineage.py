"""What the steps cost that a run's present state consists of, and those that were made for nothing. Pure."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.goodput.time_class import TimeClass
from orchestrator.json_values import JsonFields, JsonObject, JsonShapeError, integer, integers, number_rows

LINEAGE_CLASSES = (
    TimeClass.PRODUCTIVE,
    TimeClass.STRAGGLING,
    TimeClass.COMMUNICATION_WAIT,
    TimeClass.DATA_WAIT,
    TimeClass.SNAPSHOT_STALL,
    TimeClass.CHECKPOINT_STALL,
    TimeClass.EVALUATION,
)
"""The classes that a step's time has, in the order of `StepSum.amounts`."""
WALL, TOKENS = len(LINEAGE_CLASSES), len(LINEAGE_CLASSES) + 1
"""Places of the wall-clock seconds of training, and of the tokens, behind them."""
AMOUNTS = TOKENS + 1
MAX_POINTS = 256
"""The newest half of so many steps is known exactly; between older ones it is interpolated."""


@dataclass(frozen=True)
class StepSum:
    """What some steps took that one crew made."""

    crew: int
    amounts: Sequence[float]
    """Worker-seconds by class, wall-clock seconds, tokens."""


class StepLineage:
    """Sums after each step, along the steps that count.

    A repeated step supersedes the earlier record of its number and all later ones. Going back to a step does not
    supersede anything yet: until the next step, training may still continue from a later one.
    """

    def __init__(self) -> None:
        self._steps = [0]
        self._sums = [(0.0,) * AMOUNTS]
        self._crews = [0]
        self.position = 0
        """The step from which training continues."""

    @property
    def counted(self) -> tuple[float, ...]:
        """Sums of the steps up to the position."""
        return self._after(self.position)

    @property
    def last(self) -> int:
        """The last step that was made; 0: none."""
        return self._steps[-1]

    @property
    def crews(self) -> frozenset[int]:
        """Those that made steps which may still turn out to be for nothing."""
        return frozenset(self._crews)

    def undone(self) -> list[StepSum]:
        """Of the steps after the position: for nothing, unless training continues from one of them."""
        return self._behind(self.position)

    def go_on_from(self, step: int) -> None:
        """Training continues from a step, one that was made before or an unknown later one."""
        self.position = max(0, step)

    def add(self, step: int, amounts: Sequence[float], crew: int) -> list[StepSum]:
        """A step was made; what it supersedes."""
        before = self._after(step - 1)
        superseded = self._behind(step - 1)
        keep = max(1, bisect_right(self._steps, step - 1))
        del self._steps[keep:], self._sums[keep:], self._crews[keep:]
        if self._steps[-1] < step - 1:
            self._append(step - 1, before, crew)
        self._append(step, tuple(a + b for a, b in zip(before, amounts, strict=True)), crew)
        self.position = step
        if len(self._steps) > MAX_POINTS:
            half = len(self._steps) // 2
            del self._steps[1:half:2], self._sums[1:half:2], self._crews[1:half:2]
        return superseded

    def _append(self, step: int, sums: tuple[float, ...], crew: int) -> None:
        self._steps.append(step)
        self._sums.append(sums)
        self._crews.append(crew)

    def _after(self, step: int) -> tuple[float, ...]:
        right = bisect_right(self._steps, step)
        if right == 0:
            return self._sums[0]
        first, sums = self._steps[right - 1], self._sums[right - 1]
        if right == len(self._steps) or first == step:
            return sums
        share = (step - first) / (self._steps[right] - first)
        return tuple(a + share * (b - a) for a, b in zip(sums, self._sums[right], strict=True))

    def _behind(self, step: int) -> list[StepSum]:
        """Sums of the steps after one, by the crews that made them."""
        if step >= self._steps[-1]:
            return []
        before, found = self._after(step), dict[int, tuple[float, ...]]()
        for index in range(bisect_right(self._steps, step), len(self._steps)):
            crew, sums = self._crews[index], self._sums[index]
            known = found.get(crew, (0.0,) * AMOUNTS)
            found[crew] = tuple(k + b - a for k, a, b in zip(known, before, sums, strict=True))
            before = sums
        return [StepSum(crew, amounts) for crew, amounts in found.items()]

    def to_json(self) -> JsonObject:
        """All of it, for `from_json`."""
        return {
            "steps": list(self._steps),
            "sums": [list(sums) for sums in self._sums],
            "crews": list(self._crews),
            "position": self.position,
        }

    @classmethod
    def from_json(cls, value: JsonFields) -> "StepLineage":
        """Raises JsonShapeError."""
        lineage = cls()
        steps, crews = integers(value, "steps"), integers(value, "crews")
        sums = [tuple(row) for row in number_rows(value, "sums")]
        wrong = not steps or len(steps) != len(sums) or len(steps) != len(crews) or steps != sorted(set(steps))
        if wrong or any(len(row) != AMOUNTS for row in sums):
            raise JsonShapeError("the steps of the ledger and their sums do not belong together")
        lineage._steps, lineage._sums, lineage._crews = steps, sums, crews
        lineage.position = integer(value, "position")
        return lineage

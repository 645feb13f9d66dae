"""The order of the batches of a run that leaves positions out: arithmetic, nothing is stored or walked.

Without skips the batch of step s is positions [(s-1) b, s b). A skip takes whole batches out of that sequence, and
every later step moves on by as much. Any step's position costs the number of skips, whatever the step.
"""

from collections.abc import Iterable
from dataclasses import dataclass

Range = tuple[int, int]
"""(first position, positions)."""


@dataclass(frozen=True)
class BatchOrder:
    """Which positions each step feeds. Steps are counted from 1."""

    batch: int
    """Samples of a global batch."""
    left_out: tuple[tuple[int, int], ...] = ()
    """[first, end) each, sorted, none touching another, all multiples of `batch`."""

    @classmethod
    def of(cls, batch: int, skips: Iterable[Range] = ()) -> "BatchOrder":
        """The order without `skips`, which may overlap. Raises ValueError if one is not of whole batches."""
        merged: list[tuple[int, int]] = []
        for first, count in sorted(skips):
            if first < 0 or count < 1 or first % batch or count % batch:
                raise ValueError(f"positions [{first}, {first + count}) are not whole batches of {batch}")
            if merged and first <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], first + count))
            else:
                merged.append((first, first + count))
        return cls(batch, tuple(merged))

    def advance(self, position: int, batches: int) -> int:
        """The position of the batch that follows `batches` batches from `position` on."""
        at = position + batches * self.batch
        for first, end in self.left_out:
            if end > position and first <= at:
                at += end - max(first, position)
        return at

    def first_position(self, step: int) -> int:
        """The first position of a step's batch."""
        return self.advance(0, step - 1)

    def end_position(self, step: int) -> int:
        """The position after a step's batch; 0 for step 0."""
        return 0 if step == 0 else self.first_position(step) + self.batch

    def follows(self, step: int, position: int) -> bool:
        """Whether training that has made `step` steps and continues at `position` follows this order: a state that was
        saved before a skip and has seen the skipped samples does not."""
        return self.advance(position, 0) == self.first_position(step + 1) and position >= self.end_position(step)

    def skipped_before(self, position: int) -> int:
        """Positions left out below `position`."""
        return sum(min(end, position) - first for first, end in self.left_out if first < position)

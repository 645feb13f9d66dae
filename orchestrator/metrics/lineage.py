"""How long the steps took that a run's present state consists of, and those that were made for nothing. Pure."""

from bisect import bisect_right
from collections.abc import Mapping

KEPT_POINTS = 256
"""Steps whose time is known exactly are the newest half of these; between older ones it is interpolated."""


class Lineage:
    """Seconds of training after each step, along the steps that count.

    A repeated step supersedes the earlier record of its number and all later ones. Going back to a step does not
    supersede anything yet: until the next step, training may still continue from a later one.
    """

    def __init__(self, points: Mapping[int, float] | None = None, position: int | None = None) -> None:
        """`points`: seconds after steps, from a lineage before this one, and the `position` it was at."""
        self._steps, self._seconds = [0], [0.0]
        for step, seconds in sorted((points or {}).items()):
            if step == 0:
                self._seconds[0] = seconds
            else:
                self._steps.append(step)
                self._seconds.append(max(seconds, self._seconds[-1]))
        self.position = self._steps[-1] if position is None else position
        """The step from which training continues."""
        self.superseded_s = 0.0
        """Of repeated steps."""

    @property
    def counted_s(self) -> float:
        """Of the steps up to the position."""
        return self.after(self.position)

    @property
    def undone_s(self) -> float:
        """Of the steps after the position: wasted unless training continues from one of them."""
        return self._seconds[-1] - self.counted_s

    @property
    def points(self) -> dict[int, float]:
        """Steps and the seconds after them, as `__init__` takes them."""
        return dict(zip(self._steps, self._seconds, strict=True))

    def after(self, step: int) -> float:
        """Seconds of training after a step."""
        right = bisect_right(self._steps, step)
        if right == 0:
            return self._seconds[0]
        first, seconds = self._steps[right - 1], self._seconds[right - 1]
        if right == len(self._steps) or first == step:
            return seconds
        share = (step - first) / (self._steps[right] - first)
        return seconds + share * (self._seconds[right] - seconds)

    def go_on_from(self, step: int) -> None:
        """Training continues from a step, one that was made before or an unknown later one."""
        self.position = max(0, step)

    def add(self, step: int, seconds: float) -> None:
        """A step was made."""
        before_s = self.after(step - 1)
        self.superseded_s += self._seconds[-1] - before_s
        keep = bisect_right(self._steps, step - 1)
        del self._steps[keep:], self._seconds[keep:]
        if not self._steps or self._steps[-1] < step - 1:
            self._steps.append(step - 1)
            self._seconds.append(before_s)
        self._steps.append(step)
        self._seconds.append(before_s + seconds)
        self.position = step
        if len(self._steps) > KEPT_POINTS:
            self._thin()

    def _thin(self) -> None:
        """Drop every other point of the older half."""
        half = len(self._steps) // 2
        del self._steps[1:half:2], self._seconds[1:half:2]

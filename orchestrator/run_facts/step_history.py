"""The steps of a run that count, read in bounded memory: a step that is recorded again supersedes its earlier record
and those of all later steps (`store.run_history.current_steps` keeps them all, and says the same)."""

import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from orchestrator.domain.lease import LeaseOrder, token_in
from orchestrator.metrics.jsonl import parse_line
from orchestrator.run_facts.curve import CurvePoint
from orchestrator.run_facts.jsonl_tail import JsonlTail
from orchestrator.run_facts.step_point import StepPoint, point_from_line
from orchestrator.run_facts.step_series import StepSeries

WINDOW_STEPS = 512
"""So many steps a growing file may go back without being read again: further than a recovery from memory does."""
_STEP = re.compile(rb'"step":\s*(\d+)')
_LEASE = re.compile(rb'"lease":\s*(\d+)\s*}\s*$')
_HEAD_BYTES = 64
"""A line that Convoy writes has its step within these."""
_CLOCK_LINES = 1000
"""Lines between two looks at the clock."""


@dataclass
class _LineSegment:
    """Lines with ascending steps. Those from `below_step` on are superseded."""

    first_line: int
    first_step: int
    below_step: float = float("inf")


@dataclass(frozen=True)
class StepsRead:
    """The steps of a file."""

    series: StepSeries
    superseded: int = 0
    """Records that do not count, because a later one is of the same step or an earlier one."""
    complete: bool = True
    """False: the time was over before all lines were read, and `series` is empty."""


class OutOfTime(Exception):
    """Reading was given up at the deadline."""


@dataclass
class Deadline:
    """A time limit for reading. `clock` is monotonic."""

    limit_s: float = float("inf")
    clock: Callable[[], float] = time.monotonic
    _end_s: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._end_s = self.clock() + self.limit_s

    def check(self) -> None:
        """Raises OutOfTime if it is over."""
        if self.clock() > self._end_s:
            raise OutOfTime


def read_step_series(path: Path, deadline: Deadline | None = None) -> StepsRead:
    """Read a whole `steps.jsonl`: a quick pass finds what is superseded, a second one adds up the rest."""
    limit = deadline or Deadline()
    try:
        segments, lines = _segments(path, limit)
        series = StepSeries()
        for point in _counting(path, segments, lines, limit):
            series.add(point)
    except OutOfTime:
        return StepsRead(StepSeries(), complete=False)
    return StepsRead(series, max(0, lines - series.totals.steps))


def _segments(path: Path, deadline: Deadline) -> tuple[list[_LineSegment], int]:
    """The segments in the order of the file, and how many lines are steps. Grows with the resumes of a run, not with
    its steps."""
    segments: list[_LineSegment] = []
    last_step, lines = -1, 0
    for number, (_, step) in enumerate(_numbered(path, deadline)):
        lines += 1
        if not segments or step <= last_step:
            while segments and segments[-1].first_step >= step:
                segments.pop()
            if segments:
                segments[-1].below_step = min(segments[-1].below_step, step)
            segments.append(_LineSegment(number, step))
        last_step = step
    return segments, lines


def _counting(path: Path, segments: list[_LineSegment], lines: int, deadline: Deadline) -> Iterator[StepPoint]:
    """The steps of the first `lines` lines that count. What a driver has appended meanwhile is left out."""
    place = -1
    for number, (line, step) in enumerate(islice(_numbered(path, deadline), lines)):
        while place + 1 < len(segments) and segments[place + 1].first_line <= number:
            place += 1
        # Lines of a segment that is superseded as a whole have steps from the `below_step` of the one before them on.
        if place < 0 or step >= segments[place].below_step:
            continue
        value = parse_line(line)
        point = point_from_line(value) if value is not None else None
        if point is not None:
            yield point


def _numbered(path: Path, deadline: Deadline) -> Iterator[tuple[bytes, int]]:
    """Every line that is a step and counts, with the number of its step."""
    order = LeaseOrder()
    try:
        file = path.open("rb")
    except OSError:
        return
    with file:
        for number, line in enumerate(file):
            if number % _CLOCK_LINES == 0:
                deadline.check()
            step, token = _step_and_token(line)
            if step is not None and order.counts(token):
                yield line, step


def _step_and_token(line: bytes) -> tuple[int | None, int]:
    """Without parsing the line if it looks as Convoy writes it."""
    found, token = _STEP.search(line, 0, _HEAD_BYTES), _LEASE.search(line[-_HEAD_BYTES:])
    if found is not None and line[:1] == b"{" and line.endswith(b"}\n"):
        return int(found.group(1)), int(token.group(1)) if token else 0
    value = parse_line(line)
    step = value.get("step") if value else None
    return (step if isinstance(step, int) else None), token_in(value or {})


class StepFollower:
    """The steps of a file that grows, for a live display. `refresh` reads what is new. After a run went back further
    than the window, the series begins there."""

    def __init__(self, path: Path, most_bytes: int | None = None) -> None:
        """`most_bytes`: of the file's end; None: all of it."""
        self._tail = JsonlTail(path, most_bytes)
        self._settled = StepSeries()
        self._recent: deque[StepPoint] = deque()
        self._cut = False

    def refresh(self) -> bool:
        """Read what was appended; whether that was anything."""
        fresh = False
        for line in self._tail.read():
            point = point_from_line(line)
            if point is not None:
                fresh = True
                self._take(point)
        return fresh

    def _take(self, point: StepPoint) -> None:
        while self._recent and self._recent[-1].step >= point.step:
            self._recent.pop()
        settled = self._settled.last
        if settled is not None and settled.step >= point.step:
            self._settled, self._cut = StepSeries(), True  # what is added up cannot be taken back
        self._recent.append(point)
        if len(self._recent) > WINDOW_STEPS:
            self._settled.add(self._recent.popleft())

    @property
    def whole(self) -> bool:
        """Whether the series has all steps of the run."""
        return not self._cut and self._tail.skipped_bytes == 0

    @property
    def recent(self) -> tuple[StepPoint, ...]:
        """The newest steps, at most `WINDOW_STEPS`."""
        return tuple(self._recent)

    @property
    def losses(self) -> list[float]:
        """Of the run so far: means over ranges of steps, then the newest steps."""
        recent = [point.loss for point in self._recent if point.loss is not None]
        return self._settled.curves["loss"].means + recent

    def curves(self) -> dict[str, list[CurvePoint]]:
        """Every curve of `step_series.CURVES`: ranges of steps, then the newest steps one by one. At most `MOST_POINTS`
        and `WINDOW_STEPS` points."""
        late = StepSeries()
        for point in self._recent:
            late.add(point)
        return {name: [*settled, *late.curves[name]] for name, settled in self._settled.curves.items()}

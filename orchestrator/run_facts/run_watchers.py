"""The read models of the runs that are being looked at: each is read incrementally, and the ones that were looked at
longest ago are forgotten."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from orchestrator.domain.run_layout import RunLayout
from orchestrator.run_facts.curve import CurvePoint
from orchestrator.run_facts.live_run import WHOLE_BYTES, LiveFacts, LiveRun
from orchestrator.run_facts.step_history import StepFollower

MOST_WATCHED = 32
"""Runs whose read model is kept: about 2 MB each."""

ReadModel = TypeVar("ReadModel")


class _Kept(Generic[ReadModel]):
    """Read models by directory, each with a lock: one thread reads a run's files at a time."""

    def __init__(self, make: Callable[[RunLayout], ReadModel]) -> None:
        self._make = make
        self._kept: OrderedDict[Path, tuple[ReadModel, threading.Lock]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, layout: RunLayout) -> tuple[ReadModel, threading.Lock]:
        with self._lock:
            found = self._kept.pop(layout.root, None) or (self._make(layout), threading.Lock())
            self._kept[layout.root] = found
            if len(self._kept) > MOST_WATCHED:
                self._kept.popitem(last=False)
            return found


class RunWatchers:
    """Progress and curves of runs, for many readers. Thread-safe."""

    def __init__(self) -> None:
        self._live = _Kept(LiveRun)
        self._steps = _Kept(lambda layout: StepFollower(layout.steps, WHOLE_BYTES))

    def progress(self, layout: RunLayout) -> LiveFacts | None:
        """The run now; None if its driver has written nothing yet."""
        live, lock = self._live.of(layout)
        with lock:
            return live.refresh()

    def curves(self, layout: RunLayout, names: tuple[str, ...], most: int) -> dict[str, list[CurvePoint]]:
        """Curves by name, with at most `most` points each (and no fewer than half of it, if there are as many steps).
        Unknown names have no points."""
        steps, lock = self._steps.of(layout)
        with lock:
            steps.refresh()
            curves = steps.curves()
        return {name: thinned(curves.get(name, []), most) for name in names}


def thinned(points: list[CurvePoint], most: int) -> list[CurvePoint]:
    """At most `most` points: neighbours become one. Pure."""
    if len(points) <= most:
        return points
    size = -(-len(points) // most)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [_merged(group) for group in groups]


def _merged(group: list[CurvePoint]) -> CurvePoint:
    first = group[0]
    one = CurvePoint(first.first_step, first.last_step, first.count, first.total, first.low, first.high)
    for each in group[1:]:
        one.merge(each)
    return one

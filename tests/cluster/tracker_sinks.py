"""Trackers that misbehave, for `test_trackers`: each is opened in a tracker's process, by its name."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from orchestrator.trackers.tracker_points import Point
from orchestrator.trackers.tracker_sink import TrackedRun


class Sound:
    """Takes everything, and says where."""

    def __init__(self, run: TrackedRun) -> None:
        self.place = f"memory of {run.run_id}"

    def log(self, point: Point) -> None:
        print("what a library prints is no answer", flush=True)

    def close(self, exit_code: int) -> None:
        print(f"closed with {exit_code}", file=sys.stderr)


class Slow(Sound):
    def log(self, point: Point) -> None:
        time.sleep(0.2)


class Hanging(Sound):
    def log(self, point: Point) -> None:
        time.sleep(3600)


class SlowAtTheEnd(Sound):
    def close(self, exit_code: int) -> None:
        time.sleep(1.5)
        Path("delivered").touch()


class Raising(Sound):
    def log(self, point: Point) -> None:
        if point.step == 3:
            raise ValueError(f"no place left for {os.environ.get('WANDB_API_KEY')}")


class Dying(Sound):
    def log(self, point: Point) -> None:
        if point.step == 3:
            print("Segmentation fault", file=sys.stderr, flush=True)
            os._exit(11)


def sound(run: TrackedRun, report: Callable[[str], None]) -> Sound:
    report("not quite as asked for")
    return Sound(run)


def slow(run: TrackedRun, report: Callable[[str], None]) -> Sound:
    return Slow(run)


def hanging(run: TrackedRun, report: Callable[[str], None]) -> Sound:
    return Hanging(run)


def slow_at_the_end(run: TrackedRun, report: Callable[[str], None]) -> Sound:
    return SlowAtTheEnd(run)


def raising(run: TrackedRun, report: Callable[[str], None]) -> Sound:
    return Raising(run)


def dying(run: TrackedRun, report: Callable[[str], None]) -> Sound:
    return Dying(run)


def never_opened(run: TrackedRun, report: Callable[[str], None]) -> Sound:
    raise RuntimeError("the server says no")

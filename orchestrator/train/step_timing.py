"""Seconds by phase: wall clock on a CPU, CUDA events on a GPU, because the host runs ahead of the device."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, Protocol

import torch

from orchestrator.train.collectives.collective_timer import CollectiveTimer
from orchestrator.train.collectives.device_spans import CollectiveSampler

Phase = Literal["forward", "backward", "optimizer"]
PHASES: tuple[Phase, ...] = ("forward", "backward", "optimizer")


class PhaseClock(Protocol):
    """Times the phases of one step; phases may be entered many times."""

    def running(self) -> AbstractContextManager[None]:
        """Context in which collectives are timed."""

    def begin(self, step: int) -> None:
        """The step that is timed next."""

    def phase(self, name: Phase) -> AbstractContextManager[None]:
        """Context whose time counts for `name`."""

    def seconds(self) -> dict[Phase, float]:
        """Seconds by phase since the last call, which also starts the next step. To be called when the device has done
        what was timed."""

    def waited(self) -> dict[Phase, float]:
        """Of those, the seconds in collectives, since the last call; empty if they were not measured."""


class HostClock:
    """`time.perf_counter` around each phase."""

    def __init__(self, collectives: CollectiveTimer) -> None:
        self._collectives = collectives
        self._seconds: dict[Phase, float] = {}
        self._waited: dict[Phase, float] = {}

    def running(self) -> AbstractContextManager[None]:
        return self._collectives.running()

    def begin(self, step: int) -> None:
        """Every step is timed alike."""

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        started, waited = time.perf_counter(), self._collectives.seconds
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - started
            self._waited[name] = self._waited.get(name, 0.0) + self._collectives.seconds - waited

    def seconds(self) -> dict[Phase, float]:
        seconds, self._seconds = self._seconds, {}
        return seconds

    def waited(self) -> dict[Phase, float]:
        waited, self._waited = self._waited, {}
        return waited


class CudaClock:
    """A pair of CUDA events around each phase. Reading them does not wait for the device; it raises RuntimeError if the
    device has not reached them. Collectives are measured in some steps: see `CollectiveSampler`."""

    def __init__(self) -> None:
        self._spans: list[tuple[Phase, torch.cuda.Event, torch.cuda.Event]] = []
        self._collectives = CollectiveSampler(_event)

    def running(self) -> AbstractContextManager[None]:
        return self._collectives.running()

    def begin(self, step: int) -> None:
        self._collectives.begin(step)

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        begin, end = _event(), _event()
        self._collectives.phase = name
        begin.record()
        try:
            yield
        finally:
            end.record()
            self._spans.append((name, begin, end))

    def seconds(self) -> dict[Phase, float]:
        spans, self._spans = self._spans, []
        result: dict[Phase, float] = {}
        for name, begin, end in spans:
            result[name] = result.get(name, 0.0) + begin.elapsed_time(end) / 1000.0
        return result

    def waited(self) -> dict[Phase, float]:
        found = self._collectives.seconds() or {}
        return {name: found.get(name, 0.0) for name in PHASES} if found else {}


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def phase_clock(device: torch.device, collectives: CollectiveTimer) -> PhaseClock:
    """The clock for a device."""
    return CudaClock() if device.type == "cuda" else HostClock(collectives)

"""What a driver that a server has started writes for it: how far the run is, and how the driver ended."""

import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean

from orchestrator.atomic_files import write_json
from orchestrator.domain.events import Event, TrainingPlanned
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.json_values import JsonFields, JsonObject, integer, number, optional, text
from orchestrator.store.driver_process import DriverProcess

WRITE_S = 1.0
"""From one report to the next, at least."""
AVERAGED_STEPS = 20
"""Of which the mean step time is reported."""


@dataclass(frozen=True)
class DriverReport:
    """The content of `driver-report.json`."""

    driver: DriverProcess
    step: int = 0
    total_steps: int | None = None
    step_time_s: float | None = None
    """Mean of recent steps with the present number of workers."""
    loss: float | None = None
    exit_code: int | None = None
    """None while it drives."""
    error: str | None = None
    """Why it ended before there was a run to drive."""
    address: str = ""
    """Of the cluster."""
    cluster_lost: bool = False
    """It failed, and its cluster took no connections then."""

    def to_json(self) -> JsonObject:
        """The fields as JSON values."""
        return {
            "driver": self.driver.to_json(),
            "step": self.step,
            "total_steps": self.total_steps,
            "step_time_s": self.step_time_s,
            "loss": self.loss,
            "exit_code": self.exit_code,
            "error": self.error,
            "address": self.address,
            "cluster_lost": self.cluster_lost,
        }

    @classmethod
    def from_json(cls, value: JsonFields | None) -> "DriverReport | None":
        """None if it is no report."""
        driver = DriverProcess.from_json(value.get("driver")) if value is not None else None
        if value is None or driver is None:
            return None
        try:
            return cls(
                driver,
                integer(value, "step"),
                optional(integer, value, "total_steps"),
                optional(number, value, "step_time_s"),
                optional(number, value, "loss"),
                optional(integer, value, "exit_code"),
                optional(text, value, "error"),
                optional(text, value, "address") or "",
                value.get("cluster_lost") is True,
            )
        except ValueError:
            return None


class ReportWriter:
    """An observer of the run that keeps the report."""

    def __init__(
        self, layout: RunLayout, address: str, before: DriverReport | None, monotonic_s: Callable[[], float]
    ) -> None:
        """`address`: of the cluster; `before`: of an earlier driver, whose figures hold until there are others."""
        self._layout, self._monotonic_s = layout, monotonic_s
        own = DriverProcess.current()
        figures = replace(before, driver=own) if before is not None else DriverReport(own)
        self._report = replace(figures, address=address, exit_code=None, error=None, cluster_lost=False)
        self._times_s: deque[float] = deque(maxlen=AVERAGED_STEPS)
        self._workers, self._written_s = 0, float("-inf")
        self._write()

    def on_event(self, event: Event) -> None:
        """Take the number of steps."""
        if isinstance(event.body, TrainingPlanned):
            self._report = replace(self._report, total_steps=event.body.total_steps)
            self._write()

    def on_step(self, report: StepReport) -> None:
        """Take the figures of a step."""
        if report.world_size != self._workers:
            self._times_s.clear()  # a first step of a generation is longer than those after it, and drops out soon
            self._workers = report.world_size
        self._times_s.append(report.step_time_s)
        loss = report.loss if report.loss == report.loss else None  # not a number
        self._report = replace(self._report, step=report.step, loss=loss, step_time_s=fmean(self._times_s))
        if self._monotonic_s() - self._written_s >= WRITE_S:
            self._write()

    def end(self, exit_code: int, error: str | None = None, cluster_lost: bool = False) -> None:
        """The driver ends."""
        self._report = replace(self._report, exit_code=exit_code, error=error, cluster_lost=cluster_lost)
        self._write()

    def _write(self) -> None:
        self._written_s = self._monotonic_s()
        with contextlib.suppress(OSError):  # the run goes on without it
            write_json(self._layout.driver_report, self._report.to_json(), durable=False)

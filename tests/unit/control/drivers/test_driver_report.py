"""What a driver writes for its server."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.atomic_files import read_json
from orchestrator.control.drivers.driver_report import WRITE_S, DriverReport, ReportWriter
from orchestrator.domain.run_layout import RunLayout
from orchestrator.store.driver_process import DriverProcess

pytestmark = pytest.mark.unit


def test_figures_are_written_once_a_second_and_at_the_end(tmp_path: Path, report: Callable[..., Any]) -> None:
    layout, now_s = RunLayout(tmp_path), [100.0]

    def read() -> DriverReport:
        found = DriverReport.from_json(read_json(layout.driver_report))
        assert found is not None
        return found

    writer = ReportWriter(layout, "head:1", None, lambda: now_s[0])
    assert read() == DriverReport(DriverProcess.current(), address="head:1")
    writer.on_step(report(step=1, step_time_s=3.0, world_size=1))
    assert read().step == 0
    now_s[0] += WRITE_S
    writer.on_step(report(step=2, step_time_s=1.0, world_size=2))
    writer.on_step(report(step=3, step_time_s=2.0, world_size=2))
    assert (read().step, read().step_time_s) == (2, 1.0)
    writer.end(0)
    assert (read().step, read().step_time_s, read().exit_code) == (3, 1.5, 0)
    again = ReportWriter(layout, "head:2", read(), lambda: now_s[0])
    assert (read().step, read().exit_code, read().address) == (3, None, "head:2")
    again.end(2, "no such file")
    assert (read().exit_code, read().error) == (2, "no such file")

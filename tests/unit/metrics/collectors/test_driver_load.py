import os
import time

import psutil
import pytest

from orchestrator.metrics.collectors.driver_load import DriverLoad
from orchestrator.metrics.collectors.loop_pace import LoopPace

pytestmark = pytest.mark.unit


def values(load: DriverLoad) -> dict[str, float]:
    return {sample.name: sample.value for family in load.collect() for sample in family.samples}


def test_the_process_is_measured_and_the_pace_of_its_loop() -> None:
    pace = LoopPace()
    load = DriverLoad(("run-1", "job"), pace, clock=lambda: 6.0)
    first = values(load)
    assert "convoy_driver_loop_lag_seconds" not in first, "there is no loop yet"
    pace.note(5.0, 0.75)
    files, begin_s = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)], time.process_time()
    while time.process_time() - begin_s < 0.05:  # the kernel counts hundredths of seconds
        pass
    second = values(load)
    for file in files:
        os.close(file)
    assert second["convoy_driver_loop_lag_seconds"] == 0.75
    assert second["convoy_driver_open_files"] >= first["convoy_driver_open_files"] + 15
    assert second["convoy_driver_cpu_seconds_total"] > first["convoy_driver_cpu_seconds_total"]
    assert second["convoy_driver_rss_bytes"] == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)


def test_what_cannot_be_read_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    load = DriverLoad(("run-1", "job"), LoopPace())

    def refused(process: psutil.Process) -> int:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "num_fds", refused)
    assert values(load) == {}

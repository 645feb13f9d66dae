"""What the driver's process itself takes."""

import time
from collections.abc import Callable, Iterable

import psutil
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from orchestrator.metrics.catalog import resource_metrics
from orchestrator.metrics.collectors.families import Common, family
from orchestrator.metrics.collectors.loop_pace import LoopPace


class DriverLoad(Collector):
    """CPU, memory, open files and the pace of the loop, read when they are asked for."""

    def __init__(self, common: Common, pace: LoopPace, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: the one that `pace` is noted with."""
        self._common, self._pace, self._clock = common, pace, clock
        self._process = psutil.Process()

    def collect(self) -> Iterable[Family]:
        """What cannot be read is left out."""
        process, common = self._process, self._common
        try:
            with process.oneshot():
                cpu, rss_bytes, files = process.cpu_times(), process.memory_info().rss, process.num_fds()
        except (psutil.Error, OSError):  # no file descriptor is left to look at /proc with
            return
        yield family(resource_metrics.DRIVER_CPU, common, {(): cpu.user + cpu.system})
        yield family(resource_metrics.DRIVER_RSS, common, {(): rss_bytes})
        yield family(resource_metrics.DRIVER_FILES, common, {(): files})
        yield family(resource_metrics.DRIVER_LAG, common, {(): self._pace.longest_s(self._clock())})

"""The GPUs of the ranks, from what their agents read of NVML."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping

from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from orchestrator.domain.events import Event, GpuMeasured, TrainingPlanned
from orchestrator.domain.ranks.gpu_pace import stale_after_s
from orchestrator.metrics.catalog import resource_metrics
from orchestrator.metrics.catalog.metric_family import Metric
from orchestrator.metrics.collectors.families import Common, Labels, family

REASONS = ("power_cap", "power_brake", "thermal", "hardware")

Figure = Callable[[GpuMeasured], float | None]
_GAUGES: tuple[tuple[Metric, Metric | None, Figure], ...] = (
    (resource_metrics.GPU_UTILIZATION, resource_metrics.GPU_UTILIZATION_STAT, lambda gpu: gpu.utilization),
    (resource_metrics.GPU_MEMORY_USED, resource_metrics.GPU_MEMORY_USED_STAT, lambda gpu: gpu.memory_used_bytes),
    (resource_metrics.GPU_MEMORY_TOTAL, None, lambda gpu: gpu.memory_total_bytes),
    (resource_metrics.GPU_POWER, resource_metrics.GPU_POWER_STAT, lambda gpu: gpu.power_watts),
    (resource_metrics.GPU_TEMPERATURE, resource_metrics.GPU_TEMPERATURE_STAT, lambda gpu: gpu.temperature_celsius),
)
"""Of a single GPU, the same over all GPUs, and what it is."""


class GpuGauges(Collector):
    """Fed with a run's events. Every family is absent while nothing is known of it."""

    def __init__(self, common: Common, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives Unix seconds."""
        self._common, self._clock = common, clock
        self._of_rank: dict[int, tuple[float, GpuMeasured]] = {}
        self._shown: frozenset[int] = frozenset()
        self._world_size = 1

    def on_event(self, event: Event) -> None:
        """Take figures; forget those of ranks that there are no longer."""
        match event.body:
            case TrainingPlanned(world_size=world_size):
                self._world_size = world_size
                for rank in [rank for rank in self._of_rank if rank >= world_size]:
                    del self._of_rank[rank]
            case GpuMeasured() as gpu:
                self._of_rank[gpu.rank] = (self._clock(), gpu)

    def show(self, ranks: Collection[int]) -> None:
        """Which ranks have series of their own from now on."""
        self._shown = frozenset(ranks)

    def collect(self) -> Iterable[Family]:
        """All families with a value."""
        now_s, known = self._clock(), self._of_rank.copy()  # events come in another thread
        stale_s = stale_after_s(self._world_size)
        fresh = {rank: gpu for rank, (read_s, gpu) in known.items() if now_s - read_s <= stale_s}
        shown = {rank: fresh[rank] for rank in sorted(self._shown & fresh.keys())}
        return [found for found in self._families(shown, list(fresh.values())) if found.samples]

    def _families(self, shown: Mapping[int, GpuMeasured], every: list[GpuMeasured]) -> Iterable[Family]:
        common = self._common
        info: dict[Labels, float | None] = {
            (str(rank), gpu.host, gpu.uuid, gpu.name or ""): 1 for rank, gpu in shown.items()
        }
        yield family(resource_metrics.GPU_INFO, common, info)
        for one, all_of_them, read in _GAUGES:
            yield family(one, common, {(str(rank),): read(gpu) for rank, gpu in shown.items()})
            values = sorted(value for value in map(read, every) if value is not None)
            if all_of_them is not None and values:
                middle = values[(len(values) - 1) // 2]
                yield family(all_of_them, common, {("p50",): middle, ("max",): values[-1], ("min",): values[0]})
        told = {str(rank): gpu.throttled for rank, gpu in shown.items() if gpu.throttled is not None}
        reasons: dict[Labels, float | None] = {
            (rank, why): why in held for rank, held in told.items() for why in REASONS
        }
        yield family(resource_metrics.GPU_THROTTLED, common, reasons)
        held_down = [gpu.throttled for gpu in every if gpu.throttled is not None]
        counts: dict[Labels, float | None] = {}
        if held_down:
            counts = {(why,): sum(why in held for held in held_down) for why in REASONS}
        yield family(resource_metrics.GPUS_THROTTLED, common, counts)
        errors: dict[Labels, float | None] = {}
        for rank, gpu in shown.items():
            errors[str(rank), "corrected"] = gpu.ecc_corrected
            errors[str(rank), "uncorrected"] = gpu.ecc_uncorrected
        yield family(resource_metrics.GPU_ECC_ERRORS, common, errors)

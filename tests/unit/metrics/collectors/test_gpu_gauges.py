from dataclasses import replace

import pytest

from orchestrator.domain.events import Event, GpuMeasured, TrainingPlanned
from orchestrator.domain.ranks.gpu_pace import stale_after_s
from orchestrator.metrics.collectors.gpu_gauges import GpuGauges
from tests.events import event

pytestmark = pytest.mark.unit
MEASURED = GpuMeasured(0, "host-0", "GPU-0", "NVIDIA H100", 0.5, 10, 80, 300.0, 60.0, (), 0, 0)


class Gauges:
    """Gauges at a time that the test sets."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.gauges = GpuGauges(("run-1", "job"), lambda: self.now_s)

    def take(self, *measured: GpuMeasured) -> None:
        for each in measured:
            self.gauges.on_event(Event(each, self.now_s))

    def values(self) -> dict[tuple[str, ...], float]:
        return {
            (sample.name, *(value for name, value in sample.labels.items() if name not in ("run", "job"))): sample.value
            for family in self.gauges.collect()
            for sample in family.samples
        }


def gpu(rank: int, **other: object) -> GpuMeasured:
    return replace(MEASURED, rank=rank, uuid=f"GPU-{rank}", **other)


def test_shown_ranks_have_series_and_all_gpus_have_statistics() -> None:
    of = Gauges()
    of.take(*(gpu(rank, utilization=rank / 10, power_watts=100.0 * rank) for rank in range(5)))
    of.take(gpu(5, throttled=("thermal", "power_cap"), utilization=0.5, ecc_corrected=7))
    of.gauges.show([1, 5])
    found = of.values()
    assert found["convoy_gpu_info", "1", "host-0", "GPU-1", "NVIDIA H100"] == 1
    assert found["convoy_gpu_utilization_ratio", "1"] == 0.1
    assert ("convoy_gpu_utilization_ratio", "2") not in found
    assert found["convoy_gpu_memory_used_bytes", "5"] == 10
    assert found["convoy_gpu_memory_total_bytes", "5"] == 80
    assert found["convoy_gpu_temperature_celsius", "5"] == 60
    assert found["convoy_gpu_throttled", "5", "thermal"] == 1
    assert found["convoy_gpu_throttled", "5", "power_brake"] == 0
    assert found["convoy_gpu_ecc_errors_total", "5", "corrected"] == 7
    assert [found["convoy_gpu_utilization_ratio_stat", stat] for stat in ("min", "p50", "max")] == [0.0, 0.2, 0.5]
    assert [found["convoy_gpu_power_watts_stat", stat] for stat in ("min", "p50", "max")] == [0.0, 200.0, 400.0]
    assert found["convoy_gpus_throttled", "thermal"] == 1
    assert found["convoy_gpus_throttled", "hardware"] == 0


def test_what_cannot_be_read_is_absent() -> None:
    of = Gauges()
    assert of.values() == {}
    nothing = dict.fromkeys(("utilization", "memory_used_bytes", "power_watts", "throttled", "ecc_corrected"))
    of.take(gpu(0, **nothing))
    of.gauges.show([0])
    assert {name for name, *_ in of.values()} == {
        "convoy_gpu_info",
        "convoy_gpu_memory_total_bytes",
        "convoy_gpu_temperature_celsius",
        "convoy_gpu_temperature_celsius_stat",
        "convoy_gpu_ecc_errors_total",
    }


def test_series_end_with_their_rank_and_when_nothing_is_heard() -> None:
    of = Gauges()
    of.take(gpu(0), gpu(1), gpu(2))
    of.gauges.show([0, 1, 2])
    of.gauges.on_event(event(TrainingPlanned, world_size=2))
    assert {rank for name, rank, *_ in of.values() if name == "convoy_gpu_power_watts"} == {"0", "1"}
    of.now_s += stale_after_s(1) - 1.0
    of.take(gpu(1))
    of.now_s += 2.0
    assert {rank for name, rank, *_ in of.values() if name == "convoy_gpu_power_watts"} == {"1"}

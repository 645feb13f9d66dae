"""The adapter of NVML, against a library that answers as a test says: there is no GPU here."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.domain.events import EventBody, GpuMeasured
from orchestrator.gang.agent.gpu_figures import GpuReader, GpuWatch, throttle_reasons

pytestmark = pytest.mark.unit
POWER_CAP, HARDWARE, SW_THERMAL, HW_THERMAL, BRAKE, IDLE = 4, 8, 32, 64, 128, 1


class Scripted:
    """Stands for `pynvml`. A function that has no answer raises what NVML raises."""

    class NVMLError(Exception):
        """As of a GPU that is lost, or of a figure that it does not have."""

    NVML_TEMPERATURE_GPU, NVML_VOLATILE_ECC = 0, 0
    NVML_MEMORY_ERROR_TYPE_CORRECTED, NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 0, 1
    nvmlClocksThrottleReasonSwPowerCap = POWER_CAP  # noqa: N815  # the library's names
    nvmlClocksThrottleReasonHwSlowdown = HARDWARE  # noqa: N815
    nvmlClocksThrottleReasonSwThermalSlowdown = SW_THERMAL  # noqa: N815
    nvmlClocksThrottleReasonHwThermalSlowdown = HW_THERMAL  # noqa: N815
    nvmlClocksThrottleReasonHwPowerBrakeSlowdown = BRAKE  # noqa: N815

    def __init__(self, **answers: object) -> None:
        self.answers = answers
        self.calls: list[tuple[object, ...]] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def call(*arguments: object) -> object:
            self.calls.append((name, *arguments))
            short = name.removeprefix("nvmlDeviceGet").removeprefix("nvml")
            if short not in self.answers:
                raise self.NVMLError(f"{name}: not supported")
            answer = self.answers[short]
            return answer(*arguments) if callable(answer) else answer

        return call


def library(**other: object) -> Scripted:
    answers = {
        "Init": None,
        "Shutdown": None,
        "HandleByUUID": "handle",
        "Name": b"NVIDIA H100",
        "UtilizationRates": SimpleNamespace(gpu=87, memory=40),
        "MemoryInfo": SimpleNamespace(total=80 << 30, free=20 << 30, used=60 << 30),
        "PowerUsage": 412_500,
        "Temperature": 63,
        "CurrentClocksThrottleReasons": POWER_CAP | IDLE,
        "TotalEccErrors": lambda handle, kind, counter: 3 if kind == 0 else 1,
    }
    return Scripted(**{**answers, **other})


def test_every_figure_has_its_unit() -> None:
    nvml = library()
    found = GpuReader(nvml, "GPU-abc").read(2, "host-1")
    assert found == GpuMeasured(
        rank=2, host="host-1", uuid="GPU-abc", name="NVIDIA H100", utilization=0.87, memory_used_bytes=60 << 30,
        memory_total_bytes=80 << 30, power_watts=412.5, temperature_celsius=63.0, throttled=("power_cap",),
        ecc_corrected=3, ecc_uncorrected=1,
    )  # fmt: skip
    assert nvml.calls[:2] == [("nvmlInit",), ("nvmlDeviceGetHandleByUUID", "GPU-abc")]


@pytest.mark.parametrize(
    ("missing", "fields"),
    [
        ("Name", ["name"]),
        ("UtilizationRates", ["utilization"]),
        ("MemoryInfo", ["memory_used_bytes", "memory_total_bytes"]),
        ("PowerUsage", ["power_watts"]),
        ("Temperature", ["temperature_celsius"]),
        ("CurrentClocksThrottleReasons", ["throttled"]),
        ("TotalEccErrors", ["ecc_corrected", "ecc_uncorrected"]),
    ],
)
def test_what_nvml_does_not_say_is_absent_and_the_rest_is_there(missing: str, fields: list[str]) -> None:
    nvml = library()
    del nvml.answers[missing]
    found = vars(GpuReader(nvml, "GPU-abc").read(0, "host"))
    assert [name for name, value in found.items() if value is None] == fields


def test_a_gpu_that_nvml_does_not_know_gives_nvml_back() -> None:
    nvml = library()
    del nvml.answers["HandleByUUID"]
    with pytest.raises(Scripted.NVMLError):
        GpuReader(nvml, "GPU-abc")
    assert nvml.calls[-1] == ("nvmlShutdown",)


@pytest.mark.parametrize(
    ("bits", "reasons"),
    [
        (0, ()),
        (IDLE, ()),
        (POWER_CAP, ("power_cap",)),
        (HARDWARE, ("hardware",)),
        (HARDWARE | HW_THERMAL, ("thermal",)),
        (SW_THERMAL, ("thermal",)),
        (HARDWARE | BRAKE, ("power_brake",)),
        (POWER_CAP | SW_THERMAL, ("power_cap", "thermal")),
    ],
)
def test_reasons_of_slow_clocks(bits: int, reasons: tuple[str, ...]) -> None:
    assert throttle_reasons(library(), bits) == reasons


class Agent:
    """What the watch asks and tells."""

    def __init__(self, nvml: Scripted | None, wanted: int = 2) -> None:
        self.nvml, self.wanted = nvml, wanted
        self.rank: int | None = None
        self.gpu: str | None = None
        self.reports: list[EventBody] = []
        self.enough = threading.Event()

    def report(self, body: EventBody) -> None:
        self.reports.append(body)
        if len(self.reports) >= self.wanted:
            self.enough.set()

    def load(self) -> Scripted:
        if self.nvml is None:
            raise ImportError("no pynvml")
        return self.nvml

    def watch(self) -> GpuWatch:
        def place() -> tuple[int, int] | None:
            return None if self.rank is None else (self.rank, 8)

        return GpuWatch(place, "host", self.report, lambda: self.gpu, self.load, interval_s=lambda ranks: ranks / 8000)


def test_the_watch_reads_while_the_worker_trains_and_gives_nvml_back() -> None:
    nvml = library()
    agent = Agent(nvml)
    watch = agent.watch()
    assert not agent.enough.wait(0.05), "the worker trains nothing, and CUDA is not in use"
    assert nvml.calls == []
    agent.gpu, agent.rank = "GPU-abc", 3
    assert agent.enough.wait(5.0)
    watch.close()
    assert {body.rank for body in agent.reports if isinstance(body, GpuMeasured)} == {3}
    assert nvml.calls[-1] == ("nvmlShutdown",)
    assert nvml.calls.count(("nvmlInit",)) == 1


@pytest.mark.parametrize("answers", [None, {"Init": None, "Shutdown": None}, {}])
def test_without_nvml_or_the_gpu_the_thread_ends(answers: dict[str, object] | None) -> None:
    agent = Agent(None if answers is None else Scripted(**answers))
    agent.gpu, agent.rank = "GPU-abc", 0
    watch = agent.watch()
    assert watch._thread.join(5.0)
    assert agent.reports == []

"""What NVML says about the GPU that a worker trains on, read in a thread of the worker's agent.

A figure that a GPU, a driver or a sandbox does not offer is absent; no error of NVML fails a worker. NVML counts GPUs
in the order of the PCI bus and CUDA need not, so a GPU is named by its UUID, which torch knows once CUDA runs.
"""

import sys
import threading
from collections.abc import Callable
from typing import TypeVar

from orchestrator.domain.events import EventBody, GpuMeasured
from orchestrator.domain.ranks.gpu_pace import reading_interval_s
from orchestrator.gang.agent.nvml_library import Nvml
from orchestrator.lasting_thread import LastingThread

ENDS_WITHIN_S = 2.0
_MILLIWATTS = 1000.0
_PERCENT = 100.0

T = TypeVar("T")


def throttle_reasons(nvml: Nvml, bits: int) -> tuple[str, ...]:
    """The reasons in NVML's bits; those that are no fault (idle, settings of an administrator) are left out. Hardware
    is what has no name of its own: a slowdown of the board that is neither thermal nor the power brake."""
    brake = nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown
    hot = nvml.nvmlClocksThrottleReasonSwThermalSlowdown | nvml.nvmlClocksThrottleReasonHwThermalSlowdown
    hardware = bits & nvml.nvmlClocksThrottleReasonHwSlowdown and not bits & (brake | hot)
    found = {
        "power_cap": bits & nvml.nvmlClocksThrottleReasonSwPowerCap,
        "power_brake": bits & brake,
        "thermal": bits & hot,
        "hardware": hardware,
    }
    return tuple(name for name, is_so in found.items() if is_so)


class GpuReader:
    """Reads one GPU. Raises `NVMLError` if NVML or the GPU is not there; `close` gives NVML back."""

    def __init__(self, nvml: Nvml, uuid: str) -> None:
        self._nvml, self._uuid = nvml, uuid
        nvml.nvmlInit()
        try:
            self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        except nvml.NVMLError:
            self.close()
            raise

    def read(self, rank: int, host: str) -> GpuMeasured:
        """All figures now."""
        nvml, handle = self._nvml, self._handle
        name = self._ask(lambda: nvml.nvmlDeviceGetName(handle))
        used = self._ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        memory = self._ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        power = self._ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        bits = self._ask(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
        temperature = self._ask(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        return GpuMeasured(
            rank=rank,
            host=host,
            uuid=self._uuid,
            name=name.decode(errors="replace") if isinstance(name, bytes) else name,
            utilization=None if used is None else used.gpu / _PERCENT,
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            power_watts=None if power is None else power / _MILLIWATTS,
            temperature_celsius=None if temperature is None else float(temperature),
            throttled=None if bits is None else throttle_reasons(nvml, bits),
            ecc_corrected=self._ecc_errors(nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
            ecc_uncorrected=self._ecc_errors(nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
        )

    def close(self) -> None:
        """Whatever happens, NVML is not used any more."""
        self._ask(self._nvml.nvmlShutdown)

    def _ecc_errors(self, kind: int) -> int | None:
        nvml, handle = self._nvml, self._handle
        return self._ask(lambda: int(nvml.nvmlDeviceGetTotalEccErrors(handle, kind, nvml.NVML_VOLATILE_ECC)))

    def _ask(self, call: Callable[[], T]) -> T | None:
        """None if NVML cannot say."""
        try:
            return call()
        except self._nvml.NVMLError:
            return None


def load_nvml() -> Nvml:
    """The module `pynvml`. Raises ImportError."""
    import pynvml

    library: Nvml = pynvml
    return library


def training_gpu() -> str | None:
    """NVML's UUID of the GPU that CUDA uses in this process; None before CUDA is used."""
    torch = sys.modules.get("torch")  # `gang` does not import it
    if torch is None or not torch.cuda.is_initialized():
        return None
    found = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    return found if found.startswith(("GPU-", "MIG-")) else f"GPU-{found}"


class GpuWatch:
    """Reports figures regularly until it is closed, see `gpu_pace`. Without NVML, or without a GPU, nothing is
    reported."""

    def __init__(
        self,
        place: Callable[[], tuple[int, int] | None],
        host: str,
        report: Callable[[EventBody], None],
        uuid: Callable[[], str | None] = training_gpu,
        load: Callable[[], Nvml] = load_nvml,
        interval_s: Callable[[int], float] = reading_interval_s,
    ) -> None:
        """`place`: rank and world size of this worker; None while it trains nothing. `report` must not block. `uuid`:
        the GPU's, once it is known. `interval_s`: of a gang with that world size."""
        self._place, self._host, self._report = place, host, report
        self._uuid, self._load, self._interval_s = uuid, load, interval_s
        self._reader: GpuReader | None = None
        self._over = threading.Event()
        self._thread = LastingThread("gpu-figures", self._turn)

    def close(self) -> None:
        """Stop; waits for a reading at most `ENDS_WITHIN_S`."""
        self._over.set()
        self._thread.join(ENDS_WITHIN_S)

    def _turn(self) -> bool:
        """One reading. Ends for good if the library is missing or does not know the GPU."""
        place, uuid = self._place(), self._uuid()
        rank, world_size = place or (0, 1)
        if place is not None and uuid is not None:
            try:
                if self._reader is None:
                    nvml = self._load()
                    self._reader = self._opened(nvml, uuid)
            except ImportError:
                return False
            if self._reader is None:
                return False
            self._report(self._reader.read(rank, self._host))
        if not self._over.wait(self._interval_s(world_size)):
            return True
        if self._reader is not None:
            self._reader.close()
        return False

    @staticmethod
    def _opened(nvml: Nvml, uuid: str) -> GpuReader | None:
        try:
            return GpuReader(nvml, uuid)
        except nvml.NVMLError:
            return None

"""The part of the module `pynvml` that is used, with types: it has none. A contract test compares the names."""
# ruff: noqa: N802, N815  # the names are the library's

from typing import Protocol


class Utilization(Protocol):
    """`nvmlUtilization_t`."""

    gpu: int
    """Percent of the last sample period."""


class GpuMemory(Protocol):
    """`nvmlMemory_t`, in bytes."""

    used: int
    total: int


class GpuHandle(Protocol):
    """What NVML calls a device: opaque."""


class Nvml(Protocol):
    """The part of the module `pynvml` that is used. Every function raises `NVMLError`."""

    NVMLError: type[Exception]
    NVML_TEMPERATURE_GPU: int
    NVML_MEMORY_ERROR_TYPE_CORRECTED: int
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED: int
    NVML_VOLATILE_ECC: int
    nvmlClocksThrottleReasonSwPowerCap: int
    nvmlClocksThrottleReasonHwPowerBrakeSlowdown: int
    nvmlClocksThrottleReasonSwThermalSlowdown: int
    nvmlClocksThrottleReasonHwThermalSlowdown: int
    nvmlClocksThrottleReasonHwSlowdown: int

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str, /) -> GpuHandle: ...

    def nvmlDeviceGetName(self, handle: GpuHandle, /) -> str | bytes: ...

    def nvmlDeviceGetUtilizationRates(self, handle: GpuHandle, /) -> Utilization: ...

    def nvmlDeviceGetMemoryInfo(self, handle: GpuHandle, /) -> GpuMemory: ...

    def nvmlDeviceGetPowerUsage(self, handle: GpuHandle, /) -> int:
        """Milliwatts."""

    def nvmlDeviceGetTemperature(self, handle: GpuHandle, sensor: int, /) -> int: ...

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: GpuHandle, /) -> int: ...

    def nvmlDeviceGetTotalEccErrors(self, handle: GpuHandle, kind: int, counter: int, /) -> int: ...

"""The GPUs of this machine, and those that Ray assigned to a worker process."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from orchestrator.domain.devices.device import AMD_MASK, NVIDIA_MASK, local_gpus

NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")
AMD_DRIVER = Path("/dev/kfd")


def count_gpus(listing: Path = NVIDIA_GPUS) -> int:
    """NVIDIA GPUs of this machine. The driver lists them in /proc; some sandboxes hide that, and the driver's library
    (NVML) is asked. 0 if there is none, or if nobody can tell."""
    return len(list(listing.glob("*"))) or _count_by_nvml()


def _count_by_nvml() -> int:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, or no library of it
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0
    finally:
        pynvml.nvmlShutdown()


def mask_variable(nvidia: bool, amd: bool) -> str:
    """The variable that Ray and the driver's library mask GPUs with on this machine."""
    return AMD_MASK if amd and not nvidia else NVIDIA_MASK


def machine_mask_variable() -> str:
    """See `mask_variable`: of this machine."""
    return mask_variable(NVIDIA_GPUS.exists(), AMD_DRIVER.exists())


def gpus_for(gpus_per_worker: int, environ: Mapping[str, str], warn: Callable[[str], None]) -> tuple[str, ...]:
    """The GPUs of this machine that a local cluster is to use; see `local_gpus`. `environ`: the user's."""
    variable, present = machine_mask_variable(), count_gpus()
    mask = environ.get(variable, environ.get(NVIDIA_MASK))  # ROCm reads that too if its own is not set
    found = local_gpus(gpus_per_worker, mask, present)
    if gpus_per_worker and present and not found:
        warn(f"{variable} is `{mask}`: it hides all {present} GPUs of this machine, and the workers need GPUs")
    return found


def show_assigned_gpus() -> tuple[str, ...]:
    """Let this worker process see the GPUs that Ray assigned to it, and no others; their ids. Also if the node's
    environment tells Ray not to set the mask (RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES). To be called before CUDA is
    used."""
    import ray

    assigned = tuple(map(str, ray.get_runtime_context().get_accelerator_ids().get("GPU", [])))
    show_gpus(assigned)
    return assigned


def show_gpus(ids: Sequence[str]) -> None:
    """Let this process see these GPUs and no others. To be called before CUDA is used."""
    from ray._private.accelerators import get_accelerator_manager_for_resource

    manager = get_accelerator_manager_for_resource("GPU")
    variable = manager.get_visible_accelerator_ids_env_var() if manager is not None else None
    if variable is not None:  # Apple's GPU has none
        os.environ[variable] = ",".join(ids)

"""The device that a worker trains on: the spec decides (`resources.gpus_per_worker`), not what a process sees.

Everything here is pure: `train.device` finds out what a process can use, `gang.gpus` what a machine has.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CPU, CUDA = "cpu", "cuda"
"""Device types as torch names them. GPUs of AMD are `cuda` too: torch's ROCm build keeps the name."""

ACCELERATOR_VARIABLE = "DS_ACCELERATOR"
"""Read by DeepSpeed once, when it is imported."""
NVIDIA_MASK, AMD_MASK = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"
"""Read by the driver's library once, at the first call that needs a device."""
RECOVERY_IN_PROCESS = {
    # The watchdog of ProcessGroupNCCL must leave communicators and the process alone: the driver decides who is gone,
    # and `torch.distributed._abort_process_group` asks for 0.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    # An error that the watchdog finds must not end the process, as std::terminate would.
    "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0",
    # After an error the watchdog would sleep four times as long for a dump that nobody reads.
    "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC": "0",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    # The monitor of the watchdog ends the process whatever the error handling is
    # (https://github.com/pytorch/pytorch/issues/155916).
    "TORCH_NCCL_ENABLE_MONITORING": "0",
}
"""Of GPU workers: survivors of a lost peer continue in the same process. Read when a process group is made."""
GPU_DEFAULTS = {
    # Aborts hang with NVLink SHARP (https://nvidia.github.io/nvidia-resiliency-ext/inprocess/usage_guide.html).
    "NCCL_NVLS_ENABLE": "0",
    # After an out-of-memory error, what the allocator has cached is of use for other sizes too.
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
}
"""Of GPU workers, unless the user says otherwise."""
CARRIED_PREFIXES = ("NCCL_", "TORCH_NCCL_", "TORCH_FR_", "PYTORCH_", "TORCH_LOGS", "CUDA_LAUNCH_BLOCKING")
"""Variables of the driver's environment that GPU workers get on every node."""
NO_GPUS = {NVIDIA_MASK: "", AMD_MASK: "-1"}
"""Masks that hide every GPU. ROCm takes an empty one for no mask."""


@dataclass(frozen=True)
class Device:
    """What a worker trains on."""

    type: str
    """`cpu` or `cuda`."""
    index: int = 0
    """Among the GPUs that the process sees."""

    @property
    def backend(self) -> str:
        """Of the process group."""
        return "nccl" if self.type == CUDA else "gloo"


@dataclass(frozen=True)
class DeviceProblem:
    """Why a worker cannot use the requested GPU, and what to do about it."""

    why: str
    hint: str


@dataclass(frozen=True)
class FoundDevice:
    """What torch found in a process that is to use a GPU."""

    torch: str
    """Its version."""
    built_for: str | None
    """`CUDA 12.8`, `ROCm 7.0`; None: it was built for CPUs only."""
    devices: int = 0
    """GPUs that it sees."""
    error: str | None = None
    """What it said when it could not initialise them."""
    shared: bool = False
    """A daemon of NVIDIA's Multi-Process Service (MPS) runs: processes share a context on the device."""


def deterministic_environment(deterministic: bool) -> dict[str, str]:
    """Variables of a process that is to compute deterministically on a GPU. They are read when cuBLAS starts and when
    transformers calls flash-attn (https://docs.nvidia.com/cuda/cublas/#results-reproducibility)."""
    return {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "FLASH_ATTENTION_DETERMINISTIC": "1"} if deterministic else {}


def device_environment(gpus: int) -> dict[str, str]:
    """Variables of a process that trains on a GPU, or of one that must not touch any.

    For CPUs the GPUs are hidden, whatever the process inherits: Ray does not set the masks if it assigns no GPU. Ray
    decides which GPU a worker sees. `user_variables` has those that the user may change.
    """
    return {ACCELERATOR_VARIABLE: CUDA, **RECOVERY_IN_PROCESS} if gpus else {ACCELERATOR_VARIABLE: CPU, **NO_GPUS}


def user_variables(gpus: int, environ: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """Variables of a worker that are the user's to choose: our defaults for GPUs, over them what the driver's
    environment says of CUDA and NCCL, over that the job's own (`resources.env`)."""
    if not gpus:
        return dict(own)
    carried = {name: value for name, value in environ.items() if name.startswith(CARRIED_PREFIXES)}
    return {**GPU_DEFAULTS, **carried, **own}


def visible_gpus(mask: str) -> tuple[str, ...]:
    """The GPUs that a value of CUDA_VISIBLE_DEVICES names, as CUDA reads it: ordinals, or identifiers that begin with
    `GPU-` or `MIG-`. What follows an entry that is none of these is ignored; a repeated entry hides all of them."""
    prefix = next((kind for kind in ("GPU-", "MIG-") if mask.strip().startswith(kind)), None)
    named: list[str] = []
    for entry in (part.strip() for part in mask.split(",")):
        if prefix is not None:
            name = entry if entry.startswith(prefix) else None
        else:
            ordinal = re.match(r"\+?(\d+)", entry)
            name = str(int(ordinal[1])) if ordinal else None
        if name is None:
            break
        if name in named:
            return ()
        named.append(name)
    return tuple(named)


def local_gpus(gpus_per_worker: int, mask: str | None, present: int) -> tuple[str, ...]:
    """The GPUs of this machine that a local cluster may use: none for workers on CPUs, else those of the user's mask,
    or all `present` ones if there is no mask. If 0 are present, they could not be counted, and the mask is used as it
    is."""
    if not gpus_per_worker:
        return ()
    if mask is None:
        return tuple(str(index) for index in range(present))
    named = visible_gpus(mask)
    if present:
        # CUDA ignores an ordinal that does not exist, and all that follow.
        beyond = next((i for i, name in enumerate(named) if name.isdecimal() and int(name) >= present), len(named))
        named = named[:beyond]
    return named


def dealt(gpus: Sequence[str], nodes: int, index: int) -> tuple[str, ...]:
    """The share of one of `nodes` local nodes."""
    return tuple(gpus[len(gpus) * index // nodes : len(gpus) * (index + 1) // nodes])


def decide_device(gpus: int, mask: str | None, local_rank: int, found: FoundDevice | None) -> Device | DeviceProblem:
    """The device that a worker trains on, or why it cannot train on the requested one.

    `gpus`: of `resources.gpus_per_worker`. `mask`: what the process may see, None if it may see all. `local_rank`: its
    number among the workers of its host that see the same GPUs. `found` is not used if `gpus` is 0.
    """
    if not gpus:
        return Device(CPU)
    assert found is not None
    if found.built_for is None:
        return DeviceProblem(
            f"torch {found.torch} on its node is built for CPUs only",
            "install a CUDA or ROCm build of torch on that node (https://pytorch.org/get-started/locally)",
        )
    if mask is not None and not visible_gpus(mask):
        return DeviceProblem(
            f"no GPU is visible to its process (the mask is `{mask}`)",
            f"check {NVIDIA_MASK} ({AMD_MASK} with ROCm) in the environment of the node, and its GPUs in `ray status`",
        )
    if found.shared:
        return DeviceProblem(
            "its GPU is shared through MPS, which ends all processes on a GPU if one of them fails",
            "stop it on that node (`echo quit | nvidia-cuda-mps-control`), or use MIG",
        )
    if found.error is not None:
        return explain_error(found.error, mask)
    if not found.devices:
        return explain_error("torch found no GPU", mask)
    if local_rank < found.devices:
        return Device(CUDA, local_rank)
    if found.devices == 1 and mask is not None:  # each worker was shown its own
        return Device(CUDA, 0)
    return DeviceProblem(
        f"it is worker number {local_rank + 1} on a host with {found.devices} GPUs",
        f"start at most {found.devices} workers there",
    )


_CAUSES = (
    (r"re-initialize CUDA in forked", "CUDA was used before its process was forked",
     "this is a bug in Convoy: please report it"),
    (r"no NVIDIA driver", "no NVIDIA driver answers",
     "install the driver; in a container, pass the GPUs through (`docker run --gpus all`)"),
    (r"driver .*(too old|insufficient)|insufficient.* driver", "the NVIDIA driver is too old for this build of torch",
     "update the driver, or install a build of torch for an older CUDA"),
    (r"no kernel image|not compatible with the current PyTorch", "this build of torch does not support that GPU",
     "install a build of torch for its compute capability"),
    (r"busy or unavailable", "the GPU is used by another process",
     "`nvidia-smi` names the process; `nvidia-smi -q -d COMPUTE` shows whether its mode is exclusive"),
    (r"\becc\b", "the GPU has a memory error that cannot be corrected",
     "`nvidia-smi -q -d ECC`; reset the GPU, or exclude its node"),
    (r"out of memory|alloc(ation)?[ _]failed", "its memory is used by other processes",
     "`nvidia-smi` lists them; the memory of a killed worker may take some seconds to be freed"),
    (r"system not yet initialized|error 802", "the links between GPUs are not set up",
     "start the fabric manager: `systemctl start nvidia-fabricmanager`"),
    (r"no CUDA GPUs|no HIP GPUs|no CUDA-capable device|found no GPU|invalid device ordinal",
     "the GPU that was assigned to it does not exist",
     "the node offers more GPUs than it has, or its mask names a missing GPU: `nvidia-smi -L`, `ray status`"),
)  # fmt: skip


def explain_error(error: str, mask: str | None) -> DeviceProblem:
    """The meaning of an error of torch or of the GPU driver, from its text.

    The text of the error is kept only if no cause is known. It may mention memory, which would read like a batch that
    is too large; a smaller batch does not help on a device whose memory other processes use.
    """
    for pattern, why, hint in _CAUSES:
        if re.search(pattern, error, re.IGNORECASE):
            shown = "" if mask is None else f" (the mask is `{mask}`)"
            return DeviceProblem(f"{why}{shown}", hint)
    return DeviceProblem(f"a small computation on it fails: {error}", "`nvidia-smi` on that node")

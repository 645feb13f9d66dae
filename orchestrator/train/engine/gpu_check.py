"""What a process can train on: finds out about its GPU by using it. The decision itself is `domain.device`."""

import os
import socket
from pathlib import Path

import torch

from orchestrator.domain.devices.device import (
    AMD_MASK,
    CUDA,
    NVIDIA_MASK,
    Device,
    DeviceProblem,
    FoundDevice,
    decide_device,
    explain_error,
)
from orchestrator.domain.devices.device_room import DeviceRoom
from orchestrator.domain.errors import BrokenDeviceError
from orchestrator.domain.session import Session

SIDE = 64
PRODUCT_SUM = SIDE**3 * 0.25
"""Sum over the product of two SIDE x SIDE matrices of 0.5: exact in every precision that a GPU multiplies in."""
ERROR_CHARACTERS = 300
MPS_VARIABLE, MPS_DIRECTORY = "CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"
"""Directory of the daemon's pipes (https://docs.nvidia.com/deploy/mps)."""


def worker_device(session: Session, gpus: int) -> torch.device:
    """The device this worker trains on; `gpus`: of `resources.gpus_per_worker`.

    Raises BrokenDeviceError if the spec promises a GPU that does not work: nothing is trained on a CPU instead.
    """
    found = usable_device(gpus, session.local_rank)
    if isinstance(found, DeviceProblem):
        raise BrokenDeviceError(
            f"rank {session.rank} on {socket.gethostname()} ({session.node_ip}) cannot use the GPU that "
            f"resources.gpus_per_worker requests: {found.why}",
            hint=found.hint,
        )
    return torch.device(found.type) if found.type != CUDA else torch.device(found.type, found.index)


def check_gpu() -> DeviceProblem | DeviceRoom:
    """Why this process cannot use the one GPU that it was shown, or how much memory that has. `gang` names it by
    string."""
    found = usable_device(1, 0)
    return found if isinstance(found, DeviceProblem) else device_room(torch.device(found.type, found.index))


def device_room(device: torch.device) -> DeviceRoom:
    """Memory of a GPU that this process has used. What torch's allocator holds of it counts as free."""
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    free_bytes = min(total_bytes, free_bytes + torch.cuda.memory_reserved(device))
    return DeviceRoom(free_bytes, total_bytes, torch.cuda.get_device_name(device))


def usable_device(gpus: int, local_rank: int) -> Device | DeviceProblem:
    """See `decide_device`; a GPU has also multiplied two small matrices. Touches no GPU if `gpus` is 0."""
    if not gpus:
        return decide_device(0, None, local_rank, None)
    mask = own_mask()
    device = decide_device(gpus, mask, local_rank, find_gpus())
    if isinstance(device, DeviceProblem):
        return device
    error = try_gpu(device.index)
    return device if error is None else explain_error(error, mask)


def own_mask() -> str | None:
    """What this process may see, as the driver's library reads it."""
    if torch.version.hip is not None and AMD_MASK in os.environ:
        return os.environ[AMD_MASK]
    return os.environ.get(NVIDIA_MASK)


def find_gpus() -> FoundDevice:
    """Initialise torch's GPUs. `torch.cuda.is_available` would not do: it does not say why there is none, and once
    DeepSpeed is imported it asks how many the driver lists, not whether they can be used."""
    if torch.version.cuda is not None:
        built_for: str | None = f"CUDA {torch.version.cuda}"
    else:
        built_for = f"ROCm {torch.version.hip}" if torch.version.hip is not None else None
    if built_for is None:
        return FoundDevice(torch.__version__, None)
    try:
        if has_mps(Path(os.environ.get(MPS_VARIABLE, MPS_DIRECTORY))):
            return FoundDevice(torch.__version__, built_for, shared=True)
        torch.cuda.init()  # type: ignore[no-untyped-call]
        return FoundDevice(torch.__version__, built_for, torch.cuda.device_count())
    except Exception as error:  # noqa: BLE001  # the driver's library raises what it likes
        return FoundDevice(torch.__version__, built_for, 0, _text(error))


def has_mps(directory: Path) -> bool:
    """Whether a daemon of NVIDIA's Multi-Process Service listens on the pipe in its directory; CUDA would use it."""
    try:
        os.close(os.open(directory / "control", os.O_WRONLY | os.O_NONBLOCK))
    except OSError:  # there is none, or nobody reads it any more
        return False
    return True


def try_gpu(index: int) -> str | None:
    """What a small computation on a GPU raised, or that its result is wrong; None if it is right."""
    try:
        device = torch.device(CUDA, index)
        half = torch.full((SIDE, SIDE), 0.5, device=device)
        total = float((half @ half).sum())
        torch.cuda.synchronize(device)
    except Exception as error:  # noqa: BLE001  # see find_gpus
        return _text(error)
    return None if total == PRODUCT_SUM else f"a product that sums to {PRODUCT_SUM:g} came out as {total:g}"


def _text(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:ERROR_CHARACTERS]

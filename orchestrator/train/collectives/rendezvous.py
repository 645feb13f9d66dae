"""Process group: from a `Session` to an initialised `torch.distributed`, and its end."""

import contextlib
import os
import socket
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, Store, TCPStore

from orchestrator.domain.devices.device import CUDA, Device
from orchestrator.domain.errors import DeviceError
from orchestrator.domain.session import Session
from orchestrator.host_identity import boot_id

STORE_KEY = "store"
TIMEOUT = timedelta(minutes=10)


def join_process_group(session: Session, device: torch.device, timeout: timedelta = TIMEOUT) -> None:
    """Initialise `torch.distributed` over all workers of the session: gloo on CPUs, NCCL on GPUs.

    Rank 0 lets the kernel choose the store's port and publishes it, so there is no race for a port. It publishes its
    kind of device too: ranks of different kinds would wait for each other in two backends. Raises TimeoutError if
    rank 0 does not publish in time, and DeviceError if its device is of another kind.
    """
    if session.world_size == 1:
        store: Store = HashStore()
    elif session.rank == 0:
        store = _hosted_store(session.node_ip, timeout)
        session.publish(STORE_KEY, f"{device.type} {session.node_ip}:{store.port}")
    else:
        first, _, place = session.lookup(STORE_KEY, timeout.total_seconds()).partition(" ")
        _require_same_device(session, device.type, first)
        host, _, port = place.rpartition(":")
        store = TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=timeout)
    backend = Device(device.type).backend
    if device.type == CUDA:
        torch.cuda.set_device(device)
    dist.init_process_group(backend, store=store, rank=session.rank, world_size=session.world_size, timeout=timeout)
    # DeepSpeed takes these from the environment only. LOCAL_SIZE makes it assume its own launcher's node layout.
    os.environ["LOCAL_RANK"] = str(device.index or 0)
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(session.rank), str(session.world_size)
    os.environ.pop("LOCAL_SIZE", None)


def _require_same_device(session: Session, own: str, first: str) -> None:
    if own != first:
        raise DeviceError(
            f"rank {session.rank} on {session.node_ip} trains on {own}, rank 0 on {first}: all ranks of a run need the "
            "same kind of device",
            hint="all nodes need the same version of Convoy, and all ranks the same job file",
        )


def _hosted_store(address: str, timeout: timedelta) -> TCPStore:
    """A store on a free port of this address alone; left to itself torch would listen on every address of the host."""
    info = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(info[0], socket.SOCK_STREAM) as listener:
        listener.bind(info[4])
        listener.listen(1024)
        port = listener.getsockname()[1]
        return TCPStore(
            address,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timeout,
            master_listen_fd=listener.detach(),  # the store owns it from here
        )


def ranks_on_host() -> int:
    """Ranks of the process group on this rank's host, or in its container. Collective."""
    own = f"{socket.gethostname()} {boot_id()}"
    names: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(names, own)
    return names.count(own)


def leave_process_group() -> None:
    """End the process groups, and have DeepSpeed forget them, also if they were aborted. Idempotent."""
    if dist.is_initialized():
        dist.destroy_process_group()
    _release_deepspeed()


def abort_process_groups() -> None:
    """Abort all of NCCL's communicators in this process and forget the groups. For any thread.

    Kernels that wait on the device end with garbage in their results. The process and its device can continue. Call it
    once for each generation.
    """
    with contextlib.suppress(ValueError, AssertionError):  # the groups ended meanwhile
        dist.distributed_c10d._abort_process_group()


def _release_deepspeed() -> None:
    """Make DeepSpeed forget its groups, which have ended: it would build the next engine with them."""
    if "deepspeed" not in sys.modules:
        return
    from deepspeed.utils import groups

    groups._release_process_group_references(None)

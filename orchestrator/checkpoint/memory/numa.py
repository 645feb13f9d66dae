"""Allocates memory on the NUMA node of the GPU whose state it will hold, on machines with several nodes.

Otherwise all cells are on the node of the processor on which the vault happens to run, and copies of the other sockets'
GPUs cross the link between the sockets.
"""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SYSTEM = Path("/sys")
_CALLS = {"x86_64": (238, 239), "aarch64": (237, 236)}
"""Numbers of set_mempolicy and get_mempolicy, for which the C library has no functions: numactl's has."""
_PREFERRED = 1
"""MPOL_PREFERRED: another node is used if that one is full."""
_FREE = (0, 4)
"""MPOL_DEFAULT and MPOL_LOCAL."""
_NODES = 1024
_Mask = ctypes.c_ulong * (_NODES // (8 * ctypes.sizeof(ctypes.c_ulong)))


def node_of(pci_address: str, system: Path = SYSTEM) -> int | None:
    """NUMA node of a device, such as `0000:dc:00.0`; None if the machine has only one node, or does not report it."""
    try:
        online = (system / "devices/system/node/online").read_text().strip()
        node = int((system / "bus/pci/devices" / pci_address.lower() / "numa_node").read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 and online not in ("", "0") else None


@contextmanager
def preferring(node: int | None) -> Iterator[None]:
    """Context in which this thread allocates memory, a memfd's included, on a node if there is room. Does nothing for
    None, on other processors, and if the process was started with a policy of its own (`numactl`)."""
    before = None if node is None or not 0 <= node < _NODES else thread_policy()
    if before is None or node is None or before[0] not in _FREE:
        yield
        return
    mask = _Mask()
    bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    mask[node // bits] = 1 << node % bits
    _set(_PREFERRED, mask)
    try:
        yield
    finally:
        _set(*before)


def thread_policy() -> tuple[int, "ctypes.Array[ctypes.c_ulong]"] | None:
    """Mode and nodes of this thread's memory policy; None if the kernel has none."""
    calls = _CALLS.get(platform.machine())
    mode, mask = ctypes.c_int(), _Mask()
    if calls is None:
        return None
    library = ctypes.CDLL(None, use_errno=True)
    failed = library.syscall(calls[1], ctypes.byref(mode), mask, ctypes.c_ulong(_NODES), None, ctypes.c_ulong(0))
    return None if failed else (mode.value, mask)


def _set(mode: int, mask: "ctypes.Array[ctypes.c_ulong]") -> None:
    # The kernel reads one bit less than `maxnode`.
    ctypes.CDLL(None).syscall(_CALLS[platform.machine()][0], mode, mask, ctypes.c_ulong(_NODES + 1))

"""Injects an out-of-memory error for a drill: for one step of one worker the allocator really has no memory left."""

import ctypes
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from orchestrator.domain.events import FaultInjected
from orchestrator.train.train_context import TrainContext

LARGEST_BYTES = 16 << 20
"""Below what glibc takes from the kernel directly (`MALLOC_MMAP_THRESHOLD_`): that is refused anyway."""
SMALLEST_BYTES = 32 << 10
"""Free pieces below this are left."""
SPARED = 64
"""Small free pieces that remain: other threads of the process, Ray's included, would end it if they got no memory."""
TELL_S = 0.3
"""Time for the event to reach the driver first: a process without memory may die before it can report. It is part of
`detected`."""


class OomInjection:
    """Takes the memory at the steps of the plan, and frees it afterwards, because the process continues."""

    def __init__(self, context: TrainContext) -> None:
        session = context.session
        self._context = context
        self._steps = {i.step for i in context.plan.injections if i.kind == "oom" and i.rank == session.rank}

    @contextmanager
    def at(self, step: int) -> Iterator[None]:
        """Context for the computation of a step. Its out-of-memory error is passed on."""
        if step not in self._steps:
            yield
            return
        session, device = self._context.session, self._context.device
        session.report_event(FaultInjected("oom", step, session.rank))
        time.sleep(TELL_S)
        with _device_full(device) if device.type == "cuda" else _address_space_full():
            yield


@contextmanager
def _address_space_full() -> Iterator[None]:
    """RLIMIT_AS is set to what the process has, and what its allocator has free is used up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    held: list[torch.Tensor] = []
    spared = [torch.empty(SMALLEST_BYTES, dtype=torch.uint8) for _ in range(2 * SPARED)]
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    try:
        resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE"), hard))
        _use_up(held, torch.device("cpu"))
        del spared[::2]
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        held.clear()


@contextmanager
def _device_full(device: torch.device) -> Iterator[None]:
    """The same with the device's memory: PyTorch's allocator may reserve no more than it has."""
    held: list[torch.Tensor] = []
    torch.cuda.empty_cache()
    total_bytes = torch.cuda.get_device_properties(device).total_memory
    try:
        torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved(device) / total_bytes, device)
        _use_up(held, device)
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        held.clear()


def _use_up(held: list[torch.Tensor], device: torch.device) -> None:
    """Allocate, never touching it, until pieces of `SMALLEST_BYTES` are refused."""
    size_bytes = LARGEST_BYTES
    while size_bytes >= SMALLEST_BYTES:
        try:
            held.append(torch.empty(size_bytes, dtype=torch.uint8, device=device))
        except RuntimeError:  # `torch.OutOfMemoryError` on a device is one too
            size_bytes //= 2

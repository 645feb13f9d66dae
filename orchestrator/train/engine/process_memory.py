"""Memory of this process, and of its device."""

import ctypes
import resource
from pathlib import Path

import torch

from orchestrator.domain.ranks.rank_report import RankMemory

_STATM = Path("/proc/self/statm")


def rank_memory(device: torch.device) -> RankMemory:
    """Bytes right now. Peak device memory is since the process began, or the second step of the newest gang
    (`memory_parts`)."""
    rss = int(_STATM.read_text().split()[1]) * resource.getpagesize()
    # Linux counts ru_maxrss in KiB. It is sampled by the kernel and may lag behind the current size.
    peak = max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, rss)
    if device.type != "cuda":
        return RankMemory(rss_bytes=rss, peak_rss_bytes=peak)
    return RankMemory(
        rss_bytes=rss,
        peak_rss_bytes=peak,
        allocated_bytes=torch.cuda.memory_allocated(device),
        reserved_bytes=torch.cuda.memory_reserved(device),
        peak_allocated_bytes=torch.cuda.max_memory_allocated(device),
    )


def return_free_memory() -> None:
    """Give the operating system the pages that the allocator holds without use. Up to a few milliseconds.

    glibc takes blocks of up to 32 MiB from its heap, of which it returns only the end by itself: freed parameters
    would be counted as used until something of their size is allocated.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)

"""Memory of this process, and of its device."""

import resource
from pathlib import Path

import torch

from orchestrator.domain.report import RankMemory

_STATM = Path("/proc/self/statm")


def rank_memory(device: torch.device) -> RankMemory:
    """Bytes right now. Peak device memory is since the process began or `torch.cuda.reset_peak_memory_stats`."""
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

"""How often the GPUs of a gang are read. Pure."""

INTERVAL_S = 15.0
"""Between two readings of a GPU, as between two scrapes of a Prometheus with its defaults."""
MOST_READINGS_PER_S = 34.0
"""That a driver takes from all of its workers: a larger gang is read less often."""
_MISSED = 4
"""Readings; without so many, a figure counts as old."""


def reading_interval_s(world_size: int) -> float:
    """Between two readings of one GPU, in a gang of that size."""
    return max(INTERVAL_S, world_size / MOST_READINGS_PER_S)


def stale_after_s(world_size: int) -> float:
    """From when on a figure is not shown: the worker is gone, or NVML does not answer."""
    return _MISSED * reading_interval_s(world_size)

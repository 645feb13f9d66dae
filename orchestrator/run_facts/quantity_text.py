"""Figures as text: sizes, times, counts, small graphs. Pure; widths are in characters."""

import math
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise

_SPARKS = "▁▂▃▄▅▆▇█"
DASH = "-"


def size(count: float | None) -> str:
    """Bytes in binary units: `1.5 GiB`."""
    if count is None:
        return DASH
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float | None) -> str:
    """`0.42 s`, `12.3 s`, `4:05`, `1:02:03`, `3d 4:00:00`."""
    if seconds is None or not math.isfinite(seconds):
        return DASH
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes}:{rest:02d}"
    days, hours = divmod(hours, 24)
    return f"{days}d {hours}:{minutes:02d}:{rest:02d}" if days else f"{hours}:{minutes:02d}:{rest:02d}"


def clock(seconds: float) -> str:
    """A time left or passed, without fractions: `0:42`, `1:02:03`."""
    return duration(seconds) if seconds >= 60 else f"0:{int(seconds):02d}"


def count(value: float | None) -> str:
    """`987`, `12,345`, `1.6 M`, `3.2 G`."""
    if value is None:
        return DASH
    if abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value / 1e6:.1f} M" if abs(value) < 1e9 else f"{value / 1e9:.1f} G"


def loss(value: float | None) -> str:
    """Four decimals; `nan` and `inf` as they are."""
    return DASH if value is None else f"{value:.4f}"


def change(first: float | None, last: float | None) -> str:
    """By how many percent `last` is below (-) or above (+) `first`."""
    if first is None or last is None or first == 0 or not math.isfinite(last / first):
        return DASH
    return f"{(last - first) / abs(first) * 100:+.1f}%"


def when(time_s: float) -> str:
    """Local date and time to the second."""
    return datetime.fromtimestamp(time_s).strftime("%Y-%m-%d %H:%M:%S")


def ago(seconds: float) -> str:
    """`12 s ago`, `5 min ago`, `3 h ago`, `2 days ago`."""
    for limit, unit_s, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{max(0, seconds) / unit_s:.0f} {unit} ago"
    return f"{seconds / 86_400:.0f} days ago"


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """A graph one line high; more values than `width` are averaged in groups, values that are not finite are left
    out."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    columns = min(width, len(finite))
    bounds = [round(i * len(finite) / columns) for i in range(columns + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in pairwise(bounds)]
    low, high = min(means), max(means)
    top = len(_SPARKS) - 1
    span = high - low
    return "".join(_SPARKS[round((mean - low) / span * top) if span > 0 else 0] for mean in means)


def printable(text: str) -> str:
    """`text` without control characters: output of a model or a worker must not control the terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)


def bar(share: float, width: int) -> str:
    """A share of 0 to 1 as a bar."""
    filled = round(min(1.0, max(0.0, share)) * width)
    return "█" * filled + "░" * (width - filled)

"""What the peers needed, measured again or, as that takes many minutes, as it was measured on this machine before."""

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

KEPT = Path(__file__).with_name("peer-figures.json")


@dataclass(frozen=True)
class Figure:
    """What was measured, and when."""

    values: dict[str, float]
    date: str


@dataclass(frozen=True)
class Peers:
    """Where the peers' figures come from."""

    fresh: bool
    """Measure them again, and keep them."""
    path: Path = KEPT

    def get(self, name: str, measure: Callable[[], dict[str, float]]) -> Figure | None:
        """The figures of that name; None where there are none of a machine like this one."""
        if self.fresh:
            figure = Figure(measure(), f"{datetime.now(UTC):%Y-%m-%d}")
            kept = {**self._kept(), name: {"machine": machine(), "date": figure.date, "values": figure.values}}
            self.path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")
            return figure
        found = self._kept().get(name)
        return Figure(found["values"], found["date"]) if found is not None and found["machine"] == machine() else None

    def _kept(self) -> dict[str, dict]:
        return json.loads(self.path.read_text()) if self.path.exists() else {}


def machine() -> str:
    """What has to be the same for seconds to be comparable."""
    memory = psutil.virtual_memory().total / 2**30
    return f"{platform.machine()}, {psutil.cpu_count()} cores, {memory:.0f} GiB, {cpu_name()}"


def cpu_name() -> str:
    """Of the first processor; empty where the kernel does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")

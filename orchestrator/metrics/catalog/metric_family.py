"""What the catalog knows of one metric family."""

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
Origin = Literal["worker", "driver", "vault", "ledger", "nvml"]
"""Who measures: the workers (step reports), the driver (events and its own process), the nodes' vaults (surveys), the
ledger of goodput, or NVML, which each worker's agent reads."""

COMMON_LABELS = ("run", "job")
"""Every metric carries the run's id and the job's name."""


@dataclass(frozen=True)
class Metric:
    """One metric family."""

    name: str
    kind: Kind
    unit: str
    """Unit as text; "" for a plain count or ratio."""
    help: str
    labels: tuple[str, ...] = ()
    """Labels besides `COMMON_LABELS`; each has few values: ranks, phases, states."""
    buckets: tuple[float, ...] = ()
    """Upper bounds, for a histogram."""
    origin: Origin = field(kw_only=True)
    unused: str = field(default="", kw_only=True)
    """Why no dashboard, alert or rule uses it; "" for a metric that some must use."""

    @property
    def all_labels(self) -> tuple[str, ...]:
        return COMMON_LABELS + self.labels

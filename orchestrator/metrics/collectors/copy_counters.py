"""Snapshots and replication of all vaults together, from their answers to surveys."""

from collections.abc import Iterable, Mapping, Sequence

from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from orchestrator.checkpoint.memory.copy_totals import REPLICATION_BOUNDS_S, CopyFigures
from orchestrator.checkpoint.survey.durability import VaultReport
from orchestrator.domain.events import Event, VaultsAdopted
from orchestrator.metrics.catalog import resource_metrics
from orchestrator.metrics.collectors.families import Common, family, histogram

_NOTHING = CopyFigures(0, 0, 0, (0,) * (len(REPLICATION_BOUNDS_S) + 1), 0.0, 0)


class CopyCounter:
    """Adds up what vaults count each for itself. One that ends takes nothing away, and one that is adopted brings
    nothing of the time before."""

    def __init__(self) -> None:
        self._seen: dict[str, CopyFigures] = {}
        """By address of the vault: its totals in its last answer."""
        self._adopting = False
        self.total: CopyFigures | None = None
        """Of this driver's time; None before a vault has said anything."""

    def on_event(self, event: Event) -> None:
        """Learn that the vaults were there before this driver."""
        if isinstance(event.body, VaultsAdopted) and not self._seen:
            self._adopting = True

    def take(self, reports: Sequence[VaultReport]) -> None:
        """The vaults have answered. Those that have not are asked again."""
        found = {report.address: report.copies for report in reports if report.copies is not None}
        if not found:
            return
        before: Mapping[str, CopyFigures] = found if self._adopting else self._seen
        self._adopting = False
        total = self.total or _NOTHING
        for address, now in found.items():
            total = _sum(total, _difference(now, before.get(address, _NOTHING)))
        queued_bytes = sum(figures.queued_bytes for figures in found.values())
        self.total = _sum(total, _NOTHING, queued_bytes)
        self._seen = {report.address: found.get(report.address, self._seen.get(report.address, _NOTHING))
                      for report in reports}  # fmt: skip


def _sum(one: CopyFigures, other: CopyFigures, queued_bytes: int = 0) -> CopyFigures:
    return CopyFigures(
        one.snapshots + other.snapshots,
        one.snapshot_bytes + other.snapshot_bytes,
        one.replicated_bytes + other.replicated_bytes,
        tuple(map(sum, zip(one.replicated_counts, other.replicated_counts, strict=True))),
        one.replicated_s + other.replicated_s,
        queued_bytes,
    )


def _difference(now: CopyFigures, before: CopyFigures) -> CopyFigures:
    """What has been counted since; everything, if it is a new vault at the same address."""
    if now.snapshots < before.snapshots or sum(now.replicated_counts) < sum(before.replicated_counts):
        return now
    return CopyFigures(
        now.snapshots - before.snapshots,
        now.snapshot_bytes - before.snapshot_bytes,
        now.replicated_bytes - before.replicated_bytes,
        tuple(new - old for new, old in zip(now.replicated_counts, before.replicated_counts, strict=True)),
        now.replicated_s - before.replicated_s,
        0,
    )


class CopyCollector(Collector):
    """The sums as metrics; absent before a survey."""

    def __init__(self, common: Common, counter: CopyCounter) -> None:
        self._common, self._counter = common, counter

    def collect(self) -> Iterable[Family]:
        total, common = self._counter.total, self._common
        if total is None:
            return
        yield family(resource_metrics.SNAPSHOT_BYTES, common, {(): total.snapshot_bytes})
        yield family(resource_metrics.REPLICATION_BYTES, common, {(): total.replicated_bytes})
        yield family(resource_metrics.REPLICATION_QUEUED, common, {(): total.queued_bytes})
        seconds = resource_metrics.REPLICATION_SECONDS
        yield histogram(seconds, common, total.replicated_counts, total.replicated_s)

"""The goodput ledger as metrics, worked out when they are asked for."""

from collections.abc import Callable, Iterable

from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from orchestrator.goodput.ledger_result import LedgerResult
from orchestrator.goodput.time_class import TimeClass
from orchestrator.metrics import metric_catalog
from orchestrator.metrics.collectors.families import Common, Labels, family


class GoodputCollector(Collector):
    """The ledger of one run."""

    def __init__(self, common: Common, ledger: Callable[[], LedgerResult]) -> None:
        self._common, self._ledger = common, ledger

    def collect(self) -> Iterable[Family]:
        """A family for each metric. Every class of time has a series, so that an increase is seen from 0; costs are
        absent without a price."""
        result, common = self._ledger(), self._common
        device = "gpu" if result.gpu_hours > 0.0 else "cpu"
        classes: dict[Labels, float | None] = {(each.value,): result.seconds.get(each, 0.0) for each in TimeClass}
        yield family(metric_catalog.WORKER_TIME, common, classes)
        yield family(metric_catalog.GOODPUT, common, {(): result.goodput})
        yield family(metric_catalog.ETTR, common, {(): result.ettr})
        yield family(metric_catalog.RESERVED_SECONDS, common, {(device,): result.reserved_s or None})
        if result.cost is not None:
            lost: dict[Labels, float | None] = {(cause.value,): usd for cause, usd in result.cost.lost_usd.items()}
            yield family(metric_catalog.COST, common, {(): result.cost.spent_usd})
            yield family(metric_catalog.COST_LOST, common, lost)

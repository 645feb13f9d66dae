"""The goodput ledger as metrics, worked out when they are asked for."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from orchestrator.goodput.ledger_result import LedgerResult
from orchestrator.goodput.time_class import TimeClass
from orchestrator.metrics import metric_catalog
from orchestrator.metrics.catalog.metric_family import Metric

LEDGER_METRICS = (
    metric_catalog.WORKER_TIME,
    metric_catalog.GOODPUT,
    metric_catalog.ETTR,
    metric_catalog.RESERVED_SECONDS,
    metric_catalog.COST,
    metric_catalog.COST_LOST,
)
"""What the collector serves."""


class GoodputCollector(Collector):
    """The ledger of one run."""

    def __init__(self, common: tuple[str, str], ledger: Callable[[], LedgerResult]) -> None:
        """`common`: values of the labels that every metric has."""
        self._common, self._ledger = common, ledger

    def collect(self) -> Iterable[Family]:
        """A family for each metric. Every class of time has a series, so that an increase is seen from 0; costs are
        absent without a price."""
        result = self._ledger()
        device = "gpu" if result.gpu_hours > 0.0 else "cpu"
        classes = {each.value: result.seconds.get(each, 0.0) for each in TimeClass}
        families = [
            self._family(metric_catalog.WORKER_TIME, classes),
            self._family(metric_catalog.GOODPUT, {"": result.goodput}),
            self._family(metric_catalog.ETTR, {"": result.ettr}),
            self._family(metric_catalog.RESERVED_SECONDS, {device: result.reserved_s} if result.reserved_s else {}),
        ]
        if result.cost is not None:
            lost = {cause.value: usd for cause, usd in result.cost.lost_usd.items()}
            families.append(self._family(metric_catalog.COST, {"": result.cost.spent_usd}))
            families.append(self._family(metric_catalog.COST_LOST, lost))
        return families

    def _family(self, metric: Metric, values: Mapping[str, float]) -> Family:
        family = GaugeMetricFamily(metric.name, metric.help, labels=metric.all_labels)
        for label, value in values.items():
            family.add_metric((*self._common, *((label,) if metric.labels else ())), value)
        return family

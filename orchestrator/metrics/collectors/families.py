"""Metric families of values that are worked out when they are asked for."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family

from orchestrator.metrics.catalog.metric_family import Metric

Labels = tuple[str, ...]
Common = tuple[str, str]
"""Values of `metric_family.COMMON_LABELS`."""


OwnLabels = TypeVar("OwnLabels", bound=Labels)


def family(metric: Metric, common: Common, values: Mapping[OwnLabels, float | None]) -> Family:
    """A counter or gauge. `values`: by the values of the metric's own labels; None is left out."""
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    found = kind(metric.name, metric.help, labels=metric.all_labels)
    for labels, value in values.items():
        if value is not None:
            found.add_metric((*common, *labels), value)
    return found


def histogram(metric: Metric, common: Common, counts: Sequence[int], total: float) -> Family:
    """A histogram without labels of its own. `counts`: observations in each bucket of the metric, and last those above
    all of them."""
    found = HistogramMetricFamily(metric.name, metric.help, labels=metric.all_labels)
    buckets, below = [], 0
    for bound, count in zip((*metric.buckets, float("inf")), counts, strict=True):
        below += count
        buckets.append(("+Inf" if bound == float("inf") else str(bound), float(below)))
    found.add_metric(common, buckets, total)
    return found

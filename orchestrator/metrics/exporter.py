"""A run's metrics for Prometheus, kept by an observer. `metrics_endpoint` serves them."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestrator import __version__
from orchestrator.domain.events import (
    CheckpointFailed,
    CheckpointRejected,
    CheckpointRestored,
    CheckpointSaved,
    CheckpointStarted,
    DataProgress,
    DataReady,
    EvalFinished,
    Event,
    GangResized,
    GangWaiting,
    MemoryMeasured,
    NodeDraining,
    NumericFaultFound,
    RecoveryFinished,
    RecoveryReason,
    RecoveryStarted,
    RunState,
    ScaleAnswered,
    ScaleState,
    StateChanged,
    TrainingPlanned,
    WarningIssued,
    WorkerFailed,
    WorkerHung,
)
from orchestrator.domain.ranks.rank_report import RankReport
from orchestrator.domain.ranks.rank_summary import EVERY_STEP_RANKS, SLOWEST, RankSpread
from orchestrator.domain.step_report import StepReport
from orchestrator.goodput.ledger_result import LedgerResult
from orchestrator.metrics import metric_catalog
from orchestrator.metrics.catalog import metric_family, resource_metrics, safety_metrics
from orchestrator.metrics.collectors.copy_counters import CopyCollector
from orchestrator.metrics.collectors.driver_load import DriverLoad
from orchestrator.metrics.collectors.goodput_collector import GoodputCollector
from orchestrator.metrics.collectors.gpu_gauges import GpuGauges
from orchestrator.metrics.collectors.loop_pace import LoopPace
from orchestrator.metrics.collectors.node_gauges import NodeGauges
from orchestrator.metrics.collectors.recovery_phases import RecoveryPhase, RecoveryTimer
from orchestrator.metrics.durability_recorder import COMPUTED, DurabilityCollector, DurabilityRecorder


class MetricsObserver:
    """Keeps every metric of the catalog for one run, in a registry of its own."""

    def __init__(
        self,
        run_id: str,
        job: str,
        ledger: Callable[[], LedgerResult] | None = None,
        clock: Callable[[], float] = time.time,
        slowness: Callable[[], dict[int, float]] | None = None,
        durability: DurabilityRecorder | None = None,
        pace: LoopPace | None = None,
    ) -> None:
        """`ledger` gives the run's ledger as it is when scraped (`LedgerRecorder.snapshot`), `clock` Unix seconds,
        `slowness` the ratio of each rank (`StragglerRecorder.ratios`); `pace`: of the driver's loop."""
        self.registry = CollectorRegistry()
        self._common = (run_id, job)
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}
        self._histograms: dict[str, Histogram] = {}
        self._ranks_shown: list[str] = []
        """Labels of the ranks that have series of their own."""
        for metric in metric_catalog.CATALOG:
            if metric.origin in ("ledger", "nvml") or metric in _COLLECTED:
                continue
            if metric.kind == "gauge":
                self._gauges[metric.name] = Gauge(metric.name, metric.help, metric.all_labels, registry=self.registry)
            elif metric.kind == "counter":
                counter = Counter(metric.name, metric.help, metric.all_labels, registry=self.registry)
                self._counters[metric.name] = counter
                if not metric.labels:
                    counter.labels(*self._common)  # a counter is there, at 0, before anything is counted
            else:
                found = Histogram(
                    metric.name, metric.help, metric.all_labels, registry=self.registry, buckets=metric.buckets
                )
                self._histograms[metric.name] = found
                if not metric.labels:
                    found.labels(*self._common)
        self._nodes, self._gpus = NodeGauges(self._common), GpuGauges(self._common, clock)
        self._collect(ledger, slowness, durability, pace)
        self._recovery = RecoveryTimer()
        self._set(metric_catalog.RUN_INFO, 1, __version__)
        self._set_state(RunState.PREPARING)
        self._writing: set[int] = set()
        """Steps of the checkpoints that vaults are writing."""
        self._set(resource_metrics.DURABLE_WRITES_QUEUED, 0)
        self._reason = RecoveryReason.UNKNOWN
        """Of the recovery that has begun."""
        for reason in RecoveryReason:
            self._count(safety_metrics.RECOVERIES, 0, reason.value)  # an increase shows only if there was a 0
        for phase in RecoveryPhase:
            self._count(safety_metrics.RECOVERY_PHASE_SECONDS, 0, phase.value)
        self._checkpoint_s = clock()
        age = self._gauges[safety_metrics.CHECKPOINT_AGE.name].labels(*self._common)
        age.set_function(lambda: max(0.0, clock() - self._checkpoint_s))

    def _collect(
        self,
        ledger: Callable[[], LedgerResult] | None,
        slowness: Callable[[], dict[int, float]] | None,
        durability: DurabilityRecorder | None,
        pace: LoopPace | None,
    ) -> None:
        """Have the values asked for that are worked out with each scrape."""
        if ledger is not None:
            self.registry.register(GoodputCollector(self._common, ledger))
        if slowness is not None:
            self.registry.register(_SlownessCollector(self._common, slowness))
        if durability is not None:
            self.registry.register(DurabilityCollector(self._common, durability))
            self.registry.register(CopyCollector(self._common, durability.copies))
        if pace is not None:
            self.registry.register(DriverLoad(self._common, pace))
        self.registry.register(self._nodes)
        self.registry.register(self._gpus)

    def on_event(self, event: Event) -> None:
        """Update what the event changes."""
        self._nodes.on_event(event)
        self._gpus.on_event(event)
        for phase, seconds in (self._recovery.on_event(event) or {}).items():
            self._count(safety_metrics.RECOVERY_PHASE_SECONDS, seconds, phase.value)
        match event.body:
            case StateChanged(state):
                self._set_state(state)
                self._set(safety_metrics.MISSING_WORKERS, 0)  # the event that follows says how many
            case TrainingPlanned() as plan:
                self._set(metric_catalog.TOTAL_STEPS, plan.total_steps)
                self._set(metric_catalog.WORKERS, plan.world_size)
            case DataProgress() as data:
                self._set(metric_catalog.DATA_DONE, data.done_bytes)
                self._set(metric_catalog.DATA_TOTAL, data.total_bytes)
            case DataReady() as ready:
                self._set(metric_catalog.DATA_TOKENS, ready.tokens)
                self._set(metric_catalog.DATA_DOCUMENTS, ready.documents)
                self._set(metric_catalog.DATA_BAD, ready.bad_records)
                self._set(metric_catalog.DATA_SAMPLES, ready.train_samples, "train")
                self._set(metric_catalog.DATA_SAMPLES, ready.validation_samples, "validation")
            case EvalFinished() as evaluation:
                self._set(metric_catalog.VALIDATION_LOSS, evaluation.loss)
            case MemoryMeasured() as memory:
                for source, parts in (("measured", memory.measured), ("predicted", memory.predicted)):
                    for part, size_bytes in parts.items():
                        self._set(resource_metrics.MEMORY_PART, size_bytes, part, source)
            case WarningIssued():
                self._count(safety_metrics.WARNINGS, 1)
            case _:
                self._on_checkpoint(event)
                self._on_trouble(event)

    def _on_checkpoint(self, event: Event) -> None:
        """What has to do with checkpoints in storage."""
        match event.body:
            case CheckpointStarted(step=step):
                self._writing.add(step)
            case CheckpointSaved() as saved:
                self._writing.discard(saved.step)
                self._checkpoint_s = event.time_s
                self._count(safety_metrics.CHECKPOINTS, 1)
                self._count(safety_metrics.CHECKPOINT_BYTES, saved.bytes)
                self._count(safety_metrics.CHECKPOINT_SECONDS, saved.seconds)
                self._set(safety_metrics.CHECKPOINT_STEP, saved.step)
                written_s = saved.seconds if saved.write_seconds is None else saved.write_seconds
                self._observe(resource_metrics.DURABLE_WRITE_SECONDS, written_s)
            case CheckpointFailed(step=step):
                self._writing.discard(step)
                self._count(safety_metrics.CHECKPOINT_FAILURES, 1)
            case CheckpointRestored():
                self._count(safety_metrics.CHECKPOINT_RESTORES, 1)
            case CheckpointRejected():
                self._count(safety_metrics.CHECKPOINT_REJECTIONS, 1)
        self._set(resource_metrics.DURABLE_WRITES_QUEUED, len(self._writing))

    def _on_trouble(self, event: Event) -> None:
        """What has to do with lost workers, bad numbers and changes of size."""
        match event.body:
            case WorkerFailed():
                self._count(safety_metrics.WORKER_FAILURES, 1)
            case WorkerHung():
                self._count(safety_metrics.HANGS, 1)
            case RecoveryStarted() as started:
                self._reason = started.reason
            case RecoveryFinished() as recovery:
                self._count(safety_metrics.RECOVERIES, 1, self._reason.value)
                self._count(safety_metrics.RECOMPUTED_STEPS, recovery.steps_recomputed)
                self._observe(safety_metrics.RECOVERY_SECONDS, recovery.seconds)
            case GangResized():
                self._count(safety_metrics.RESIZES, 1)
            case NumericFaultFound() as found:
                self._count(safety_metrics.NUMERIC_FAULTS, 1, found.fault.value)
                self._count(safety_metrics.SKIPPED_SAMPLES, found.skipped_count)
            case ScaleAnswered(state=ScaleState.ACCEPTED) as answer:
                self._set(safety_metrics.TARGET_WORKERS, answer.workers)
            case NodeDraining():
                self._count(safety_metrics.DRAINING_NODES, 1)
            case GangWaiting() as waiting:
                self._set(safety_metrics.MISSING_WORKERS, waiting.need - waiting.have)
                self._set(metric_catalog.WORKERS, waiting.have)

    def on_step(self, report: StepReport) -> None:
        """Update the figures of the last step and what is counted."""
        gauges = {
            metric_catalog.STEP: report.step,
            metric_catalog.EPOCH: report.epoch,
            metric_catalog.LOSS: report.loss,
            metric_catalog.GRAD_NORM: report.grad_norm,
            metric_catalog.LEARNING_RATE: report.lr,
            metric_catalog.LOSS_SCALE: report.loss_scale,
            metric_catalog.TOKENS_PER_SECOND: report.tokens_per_s,
            metric_catalog.SAMPLES_PER_SECOND: report.samples / report.step_time_s if report.step_time_s > 0 else None,
            metric_catalog.FLOPS_PER_SECOND: None if report.tflops_per_s is None else report.tflops_per_s * 1e12,
            metric_catalog.MFU: report.mfu,
            metric_catalog.WORKERS: report.world_size,
            metric_catalog.LAST_STEP_TIME: report.time_s,
            safety_metrics.PROTECTED_STEP: report.protected_step,
        }
        for metric, value in gauges.items():
            self._set(metric, value)
        self._count(metric_catalog.STEPS, 1)
        self._count(metric_catalog.SKIPPED_STEPS, int(report.skipped))
        self._count(metric_catalog.TOKENS, report.tokens)
        self._count(metric_catalog.SAMPLES, report.samples)
        self._observe(metric_catalog.STEP_SECONDS, report.step_time_s)
        self._take_spread(report.ranks.spread, report.world_size)
        self._take_communication(report)
        for slowest_rank in report.ranks.slowest[:1]:
            self._set(metric_catalog.SLOWEST_RANK, slowest_rank.rank)
        every = report.ranks.every if report.world_size <= EVERY_STEP_RANKS else ()
        self._take_ranks(every or report.ranks.slowest)

    def _take_spread(self, spread: RankSpread, world_size: int) -> None:
        """Update what is known of all ranks together."""
        for name, figure in vars(spread).items():
            if figure is None or (name == "collective_s" and spread.communication_s is None):
                continue
            seconds = name.removesuffix("_s")
            metric, kind = metric_catalog.WORKER_SECONDS, seconds
            if seconds == name:
                metric, kind = resource_metrics.WORKER_MEMORY, name.removesuffix("_bytes")
            elif seconds not in ("own", "collective"):
                self._observe(metric_catalog.PHASE_SECONDS, figure.mean(world_size), seconds)
            for stat, value in (("p50", figure.p50), ("p99", figure.p99), ("max", figure.max)):
                self._set(metric, value, kind, stat)

    def _take_communication(self, report: StepReport) -> None:
        """Update what is known of collectives and of snapshots."""
        spread = report.ranks.spread
        if spread.communication_s is not None:
            mean_s = spread.communication_s.mean(report.world_size)
            self._observe(metric_catalog.PHASE_SECONDS, mean_s, "communication")
            if report.step_time_s > 0:
                self._set(metric_catalog.COMMUNICATION, min(1.0, mean_s / report.step_time_s))
        if spread.snapshot_s.max > 0:
            self._observe(resource_metrics.SNAPSHOT_SECONDS, spread.snapshot_s.max)

    def _take_ranks(self, ranks: Sequence[RankReport]) -> None:
        """Update the series of single ranks. Those of others, which were shown before, end."""
        self._gpus.show([report.rank for report in ranks])
        labels = tuple(str(report.rank) for report in ranks)
        if sorted(labels) != self._ranks_shown:
            self._ranks_shown = sorted(labels)
            for metric in _OF_RANKS:
                self._gauges[metric.name].clear()
        for label, report in zip(labels, ranks, strict=True):
            memory = report.memory
            values = (memory.rss_bytes, memory.peak_rss_bytes, memory.allocated_bytes, memory.reserved_bytes)
            for metric, value in zip(_OF_RANKS, (*values, memory.peak_allocated_bytes), strict=True):
                self._set(metric, value, label)

    def _set_state(self, state: RunState) -> None:
        for known in RunState:
            self._set(metric_catalog.RUN_STATE, int(known is state), known.value)

    def _set(self, metric: metric_family.Metric, value: object, *labels: str) -> None:
        if isinstance(value, int | float):
            self._gauges[metric.name].labels(*self._common, *labels).set(value)

    def _count(self, metric: metric_family.Metric, value: object, *labels: str) -> None:
        if isinstance(value, int | float) and value >= 0:
            self._counters[metric.name].labels(*self._common, *labels).inc(value)

    def _observe(self, metric: metric_family.Metric, seconds: float, *labels: str) -> None:
        self._histograms[metric.name].labels(*self._common, *labels).observe(seconds)


_OF_RANKS = (
    resource_metrics.RSS,
    resource_metrics.PEAK_RSS,
    resource_metrics.ALLOCATED,
    resource_metrics.RESERVED,
    resource_metrics.PEAK_ALLOCATED,
)
"""Memory of single ranks, in the order of `RankMemory`."""


_COLLECTED = (
    *COMPUTED,
    safety_metrics.STRAGGLER,
    resource_metrics.NODE_INFO,
    resource_metrics.SNAPSHOT_BYTES,
    resource_metrics.REPLICATION_SECONDS,
    resource_metrics.REPLICATION_BYTES,
    resource_metrics.REPLICATION_QUEUED,
    resource_metrics.DRIVER_CPU,
    resource_metrics.DRIVER_RSS,
    resource_metrics.DRIVER_LAG,
    resource_metrics.DRIVER_FILES,
)
"""Metrics whose values are asked for with each scrape, besides those of the ledger and of NVML."""


class _SlownessCollector(Collector):
    """Ratios of the ranks there are: those of a larger gang before are gone with it."""

    def __init__(self, common: tuple[str, str], slowness: Callable[[], dict[int, float]]) -> None:
        self._common = common
        self._slowness = slowness

    def collect(self) -> Iterable[Metric]:
        metric = safety_metrics.STRAGGLER
        family = GaugeMetricFamily(metric.name, metric.help, labels=metric.all_labels)
        ratios = self._slowness()
        ranks = sorted(ratios) if len(ratios) <= EVERY_STEP_RANKS else slowest(ratios)
        for rank, ratio in ((rank, ratios[rank]) for rank in ranks):
            family.add_metric((*self._common, str(rank)), ratio)
        return [family]


def slowest(ratios: Mapping[int, float]) -> list[int]:
    """The ranks with the largest ratios, the slowest first."""
    return sorted(ratios, key=lambda rank: (-ratios[rank], rank))[:SLOWEST]

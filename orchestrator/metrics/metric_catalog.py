"""Every metric Convoy exports, once: those below, and those of the modules in `catalog`. The exporter,
`docs/metrics.md` and the dashboards are made from this list.

Names follow the Prometheus conventions: base units, unit as suffix, `_total` on counters.
"""

from collections.abc import Mapping, Sequence

from orchestrator.metrics.catalog.metric_family import Metric
from orchestrator.metrics.catalog.resource_metrics import RESOURCES
from orchestrator.metrics.catalog.safety_metrics import SAFETY

_STEP_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

RUN_STATE = Metric(
    "convoy_run_state",
    "gauge",
    "",
    "1 for the present state of the run, 0 for the others.",
    ("state",),
    origin="driver",
)
RUN_INFO = Metric(
    "convoy_run_info", "gauge", "", "Always 1; `version` is the version of Convoy.", ("version",), origin="driver"
)
WORKERS = Metric("convoy_workers", "gauge", "workers", "Workers that took part in the last step.", origin="worker")
STEP = Metric("convoy_step", "gauge", "steps", "Optimizer steps completed.", origin="worker")
TOTAL_STEPS = Metric(
    "convoy_total_steps", "gauge", "steps", "Optimizer steps that the run will make in total.", origin="driver"
)
EPOCH = Metric("convoy_epoch", "gauge", "epochs", "Passes over the training samples so far.", origin="worker")
STEPS = Metric(
    "convoy_steps_total", "counter", "steps", "Optimizer steps of this driver, repeated ones included.", origin="driver"
)
TOKENS = Metric(
    "convoy_tokens_total", "counter", "tokens", "Real (not padding) tokens trained on by this driver.", origin="worker"
)
SAMPLES = Metric("convoy_samples_total", "counter", "samples", "Samples trained on by this driver.", origin="worker")
LOSS = Metric(
    "convoy_loss", "gauge", "nats", "Training loss of the last step, mean over target tokens.", origin="worker"
)
VALIDATION_LOSS = Metric(
    "convoy_validation_loss", "gauge", "nats", "Validation loss of the last evaluation.", origin="worker"
)
GRAD_NORM = Metric(
    "convoy_grad_norm", "gauge", "", "Global L2 norm of the gradient before clipping, last step.", origin="worker"
)
LEARNING_RATE = Metric("convoy_learning_rate", "gauge", "", "Learning rate of the last step.", origin="worker")
LOSS_SCALE = Metric(
    "convoy_loss_scale", "gauge", "", "Factor of the loss in the last step; only with precision fp16.", origin="worker"
)
SKIPPED_STEPS = Metric(
    "convoy_skipped_steps_total",
    "counter",
    "steps",
    "Steps of this driver without an update, because gradients in fp16 overflowed.",
    origin="worker",
)
TOKENS_PER_SECOND = Metric(
    "convoy_tokens_per_second",
    "gauge",
    "tokens/s",
    "Tokens per second of all workers together, last step.",
    origin="worker",
)
SAMPLES_PER_SECOND = Metric(
    "convoy_samples_per_second",
    "gauge",
    "samples/s",
    "Samples per second of all workers together, last step.",
    origin="worker",
)
FLOPS_PER_SECOND = Metric(
    "convoy_model_flops_per_second",
    "gauge",
    "FLOP/s",
    "Model FLOP/s of all workers, without recomputation, last step.",
    origin="worker",
)
MFU = Metric(
    "convoy_mfu_ratio",
    "gauge",
    "",
    "Model FLOP utilisation, 0 to 1; absent if the device's peak is unknown.",
    origin="worker",
)
STEP_SECONDS = Metric(
    "convoy_step_duration_seconds",
    "histogram",
    "seconds",
    "Wall time of a step.",
    buckets=_STEP_BUCKETS,
    origin="worker",
)
PHASE_SECONDS = Metric(
    "convoy_step_phase_duration_seconds",
    "histogram",
    "seconds",
    "Seconds of a step by phase, mean over the ranks: data_wait, forward, backward, optimizer, checkpoint, snapshot; "
    "and communication, the part of forward, backward and optimizer in collectives, absent if it is not measured.",
    ("phase",),
    buckets=_STEP_BUCKETS,
    origin="worker",
)
COMMUNICATION = Metric(
    "convoy_communication_ratio",
    "gauge",
    "",
    "Share of the last step that the ranks spent in collectives, waiting for others or transferring; mean over the "
    "ranks, 0 to 1. Absent if it is not measured; on GPUs it is of the last step that was sampled.",
    origin="worker",
)
SLOWEST_RANK = Metric(
    "convoy_slowest_rank",
    "gauge",
    "",
    "Number of the rank that took longest in the last step without waiting for others.",
    origin="worker",
)
LAST_STEP_TIME = Metric(
    "convoy_last_step_timestamp_seconds",
    "gauge",
    "seconds",
    "Unix time of the last step; an old value means that training is stuck.",
    origin="driver",
)
WORKER_SECONDS = Metric(
    "convoy_worker_step_seconds",
    "gauge",
    "seconds",
    "Seconds of the last step by phase: p50, p99 and max over the workers. The phases are those of "
    "`convoy_step_phase_duration_seconds`, own (without waiting for others) and collective (waiting for others).",
    ("phase", "stat"),
    origin="worker",
)
DATA_DONE = Metric(
    "convoy_data_processed_bytes",
    "gauge",
    "bytes",
    "Text processed in the current phase of data preparation.",
    origin="driver",
)
DATA_TOTAL = Metric(
    "convoy_data_to_process_bytes", "gauge", "bytes", "Text to process in that phase in total.", origin="driver"
)
DATA_TOKENS = Metric("convoy_data_tokens", "gauge", "tokens", "Tokens of the prepared corpus.", origin="driver")
DATA_DOCUMENTS = Metric(
    "convoy_data_documents", "gauge", "documents", "Documents of the prepared corpus.", origin="driver"
)
DATA_SAMPLES = Metric(
    "convoy_data_samples", "gauge", "samples", "Samples: train and validation.", ("split",), origin="driver"
)
DATA_BAD = Metric("convoy_data_bad_records", "gauge", "records", "Records that could not be read.", origin="driver")
WORKER_TIME = Metric(
    "convoy_worker_time_seconds",
    "gauge",
    "seconds",
    "Worker-seconds by class of the goodput ledger, earlier drivers included; together, the seconds of all workers "
    "from reservation to release.",
    ("class",),
    origin="ledger",
)
GOODPUT = Metric(
    "convoy_goodput_ratio",
    "gauge",
    "",
    "Share of the workers' time that was spent on steps that count, 0 to 1.",
    origin="ledger",
)
ETTR = Metric(
    "convoy_ettr_ratio",
    "gauge",
    "",
    "Effective training time ratio, 0 to 1: wall time of steps that count, divided by the wall time of the run.",
    origin="ledger",
)
RESERVED_SECONDS = Metric(
    "convoy_reserved_seconds",
    "gauge",
    "seconds",
    "Worker-seconds from reservation to release, by device: gpu, cpu.",
    ("device",),
    origin="ledger",
)
COST = Metric(
    "convoy_cost_usd", "gauge", "USD", "What the reserved time costs; absent if no price is set.", origin="ledger"
)
COST_LOST = Metric(
    "convoy_cost_lost_usd",
    "gauge",
    "USD",
    "What the time that was not productive costs, by cause; absent if no price is set.",
    ("cause",),
    origin="ledger",
)

CATALOG: tuple[Metric, ...] = (
    *(value for value in list(globals().values()) if isinstance(value, Metric)),
    *SAFETY,
    *RESOURCES,
)
"""All of the above in their order, then the other parts."""


def reference_markdown(uses: Mapping[str, Sequence[str]] | None = None) -> str:
    """`docs/metrics.md`. `uses`: by the name of a metric, the panels, alerts and rules that use it; None leaves the
    column out."""
    lines = [
        "# Metrics",
        "",
        "Generated from `orchestrator/metrics/metric_catalog.py`, `orchestrator/metrics/catalog` and"
        " `orchestrator/dashboards` by `python -m orchestrator.dashboards.monitoring_reference`; a test compares them.",
        "",
        "A run serves them at `/metrics`, on a free port of loopback or on `metrics.port` (`CONVOY_METRICS_PORT`). The"
        " address is printed and is in the event `metrics.serving`, and Prometheus finds it by a file. Binding to"
        " another address (`metrics.host`) needs a token of at least 16 characters in `CONVOY_METRICS_TOKEN`, and every"
        " request then needs `Authorization: Bearer TOKEN`. [Monitoring](../monitoring/README.md) shows how runs get"
        " into Prometheus and Grafana. Below the metrics are the [dashboards](#dashboards) and the [alerts](#alerts)"
        " with what to do about each.",
        "",
        "Every metric has the labels `run` (the run's id) and `job` (the job's name); other labels are listed. Counters"
        " count from the start of the run's driver: they start at 0 when a run is resumed, as Prometheus expects.",
        "",
        "The origin is who measures: worker (step reports), driver (events and its own process), vault (surveys of the"
        " nodes' memory), ledger (of goodput), nvml (read by each worker's agent on GPUs).",
        "",
        *_row(("Metric", "Kind", "Unit", "Labels", "Origin", "What it is"), "Used by" if uses is not None else None),
        *_row(("---",) * 6, "---" if uses is not None else None),
    ]
    for metric in CATALOG:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        used = None if uses is None else ", ".join(uses.get(metric.name, ())) or metric.unused
        lines += _row((f"`{metric.name}`", metric.kind, metric.unit, labels, metric.origin, metric.help), used)
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str], last: str | None) -> list[str]:
    """One row of a Markdown table."""
    every = [*cells, *([] if last is None else [last])]
    return ["| " + " | ".join(every) + " |"]

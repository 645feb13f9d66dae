"""Every metric Convoy exports, once. The exporter, `docs/metrics.md` and the dashboards are made from this list.

Names follow the Prometheus conventions: base units, unit as suffix, `_total` on counters.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

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

    @property
    def all_labels(self) -> tuple[str, ...]:
        return COMMON_LABELS + self.labels


RUN_STATE = Metric("convoy_run_state", "gauge", "", "1 for the present state of the run, 0 for the others.", ("state",))
RUN_INFO = Metric("convoy_run_info", "gauge", "", "Always 1; `version` is the version of Convoy.", ("version",))
WORKERS = Metric("convoy_workers", "gauge", "workers", "Workers that took part in the last step.")
STEP = Metric("convoy_step", "gauge", "steps", "Optimizer steps completed.")
TOTAL_STEPS = Metric("convoy_total_steps", "gauge", "steps", "Optimizer steps that the run will make in total.")
EPOCH = Metric("convoy_epoch", "gauge", "epochs", "Passes over the training samples so far.")
STEPS = Metric("convoy_steps_total", "counter", "steps", "Optimizer steps of this driver, repeated ones included.")
TOKENS = Metric("convoy_tokens_total", "counter", "tokens", "Real (not padding) tokens trained on by this driver.")
SAMPLES = Metric("convoy_samples_total", "counter", "samples", "Samples trained on by this driver.")
LOSS = Metric("convoy_loss", "gauge", "nats", "Training loss of the last step, mean over target tokens.")
VALIDATION_LOSS = Metric("convoy_validation_loss", "gauge", "nats", "Validation loss of the last evaluation.")
GRAD_NORM = Metric("convoy_grad_norm", "gauge", "", "Global L2 norm of the gradient before clipping, last step.")
LEARNING_RATE = Metric("convoy_learning_rate", "gauge", "", "Learning rate of the last step.")
TOKENS_PER_SECOND = Metric(
    "convoy_tokens_per_second", "gauge", "tokens/s", "Tokens per second of all workers together, last step."
)
FLOPS_PER_SECOND = Metric(
    "convoy_model_flops_per_second", "gauge", "FLOP/s", "Model FLOP/s of all workers, without recomputation, last step."
)
MFU = Metric("convoy_mfu_ratio", "gauge", "", "Model FLOP utilisation, 0 to 1; absent if the device's peak is unknown.")
STEP_SECONDS = Metric(
    "convoy_step_duration_seconds",
    "histogram",
    "seconds",
    "Wall time of a step.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)
PHASE_SECONDS = Metric(
    "convoy_step_phase_seconds_total",
    "counter",
    "seconds",
    "Step time by phase (data_wait, forward, backward, optimizer, checkpoint, snapshot), mean over the ranks.",
    ("phase",),
)
LAST_STEP_TIME = Metric(
    "convoy_last_step_timestamp_seconds",
    "gauge",
    "seconds",
    "Unix time of the last step; an old value means that training is stuck.",
)
WORKER_SECONDS = Metric(
    "convoy_worker_step_seconds",
    "gauge",
    "seconds",
    "Seconds of the last step by phase: p50, p99 and max over the workers. The phases are "
    "those of `convoy_step_phase_seconds_total`, own (without waiting for others) and collective (waiting for others).",
    ("phase", "stat"),
)
WORKER_MEMORY = Metric(
    "convoy_worker_memory_bytes",
    "gauge",
    "bytes",
    "Memory in the last step: p50, p99 and max over the workers. Kinds: rss, peak_rss, and on "
    "GPUs allocated, reserved, peak_allocated.",
    ("kind", "stat"),
)
RSS = Metric(
    "convoy_worker_rss_bytes",
    "gauge",
    "bytes",
    "Resident host memory of a worker. Series with a rank are of all workers if there are at most 8, else of the "
    "slowest 4.",
    ("rank",),
)
PEAK_RSS = Metric("convoy_worker_peak_rss_bytes", "gauge", "bytes", "Peak resident host memory of a worker.", ("rank",))
ALLOCATED = Metric(
    "convoy_worker_device_allocated_bytes", "gauge", "bytes", "Device memory in tensors; only on GPUs.", ("rank",)
)
RESERVED = Metric(
    "convoy_worker_device_reserved_bytes", "gauge", "bytes", "Device memory held by the allocator.", ("rank",)
)
PEAK_ALLOCATED = Metric(
    "convoy_worker_device_peak_allocated_bytes", "gauge", "bytes", "Peak device memory in tensors.", ("rank",)
)
WORKER_FAILURES = Metric("convoy_worker_failures_total", "counter", "", "Workers that failed.")
HANGS = Metric("convoy_worker_hangs_total", "counter", "", "Workers that were ended because of a hang.")
STRAGGLER = Metric(
    "convoy_straggler_ratio",
    "gauge",
    "",
    "A worker's own time in recent steps, without waiting for others, divided by the others' median; 1.5 is slow. Of "
    "all workers if there are at most 8, else of the 4 with the largest ratio.",
    ("rank",),
)
RECOVERIES = Metric("convoy_recoveries_total", "counter", "", "Recoveries from lost workers and numeric faults.")
RECOVERY_SECONDS = Metric(
    "convoy_recovery_duration_seconds",
    "histogram",
    "seconds",
    "From the detection of a lost worker to the end of the first step after it.",
    buckets=(0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0),
)
RECOMPUTED_STEPS = Metric(
    "convoy_recomputed_steps_total", "counter", "steps", "Finished steps that recoveries recomputed."
)
RESIZES = Metric("convoy_resizes_total", "counter", "", "Changes of the number of workers at a step boundary.")
TARGET_WORKERS = Metric(
    "convoy_target_workers",
    "gauge",
    "workers",
    "Number of workers last requested with `convoy scale`; absent if none was.",
)
MISSING_WORKERS = Metric(
    "convoy_missing_workers",
    "gauge",
    "workers",
    "Workers that a waiting run still needs before it can continue; else 0.",
)
DRAINING_NODES = Metric(
    "convoy_draining_nodes_total", "counter", "nodes", "Nodes of the cluster that were announced to be drained."
)
PROTECTED_STEP = Metric(
    "convoy_protected_step", "gauge", "steps", "Newest step whose state is complete in the memory of nodes and peers."
)
STEPS_AT_RISK = Metric(
    "convoy_steps_at_risk",
    "gauge",
    "steps",
    "Finished steps that the loss of any one node could cost, with checkpoints in storage taken into account.",
)
TIER_STEP = Metric(
    "convoy_tier_step",
    "gauge",
    "steps",
    "Newest step that is complete in a tier: memory of the ranks' own nodes, memory of their peers, storage.",
    ("tier",),
)
COPIES_MIN = Metric("convoy_copies_min", "gauge", "copies", "Smallest number of copies in memory of any shard.")
UNRECOVERABLE_NODES = Metric(
    "convoy_unrecoverable_nodes", "gauge", "nodes", "Nodes whose loss would leave no complete step in memory."
)
VAULT_UP = Metric(
    "convoy_vault_up",
    "gauge",
    "",
    "1 if the node's vault answered the last survey, else 0. Of at most 256 nodes: those without an answer first, then "
    "those that use the most memory.",
    ("node",),
)
VAULT_BYTES = Metric("convoy_vault_bytes", "gauge", "bytes", "Memory that a node's vault uses.", ("node",))
VAULT_PLANNED_BYTES = Metric(
    "convoy_vault_planned_bytes",
    "gauge",
    "bytes",
    "Largest memory that one node's vault is expected to use, except during recoveries.",
)
NUMERIC_FAULTS = Metric(
    "convoy_numeric_faults_total",
    "counter",
    "",
    "Losses and gradients that were not finite, and loss spikes (loss_not_finite, gradient_not_finite, loss_spike).",
    ("kind",),
)
SKIPPED_SAMPLES = Metric(
    "convoy_skipped_samples_total", "counter", "samples", "Samples left out by rollbacks after numeric faults."
)
WARNINGS = Metric("convoy_warnings_total", "counter", "", "Warnings of the run.")
CHECKPOINTS = Metric("convoy_checkpoints_total", "counter", "", "Checkpoints written.")
CHECKPOINT_BYTES = Metric("convoy_checkpoint_bytes_total", "counter", "bytes", "Bytes of checkpoints written.")
CHECKPOINT_SECONDS = Metric("convoy_checkpoint_seconds_total", "counter", "seconds", "Time spent writing checkpoints.")
CHECKPOINT_STEP = Metric("convoy_checkpoint_step", "gauge", "steps", "Step of the newest checkpoint.")
CHECKPOINT_FAILURES = Metric(
    "convoy_checkpoint_failures_total",
    "counter",
    "",
    "Checkpoints that could not be written: disk full, bucket unreachable. Training continues; alert on an increase.",
)
CHECKPOINT_AGE = Metric(
    "convoy_checkpoint_age_seconds",
    "gauge",
    "seconds",
    "Time since the last checkpoint was written; before the first, since the driver started.",
)
CHECKPOINT_RESTORES = Metric("convoy_checkpoint_restores_total", "counter", "", "Restores of training state.")
CHECKPOINT_REJECTIONS = Metric(
    "convoy_checkpoint_rejections_total", "counter", "", "Checkpoints that were found damaged."
)
DATA_DONE = Metric(
    "convoy_data_processed_bytes", "gauge", "bytes", "Text processed in the current phase of data preparation."
)
DATA_TOTAL = Metric("convoy_data_to_process_bytes", "gauge", "bytes", "Text to process in that phase in total.")
DATA_TOKENS = Metric("convoy_data_tokens", "gauge", "tokens", "Tokens of the prepared corpus.")
DATA_DOCUMENTS = Metric("convoy_data_documents", "gauge", "documents", "Documents of the prepared corpus.")
DATA_SAMPLES = Metric("convoy_data_samples", "gauge", "samples", "Samples: train and validation.", ("split",))
DATA_BAD = Metric("convoy_data_bad_records", "gauge", "records", "Records that could not be read.")
CATEGORY_SECONDS = Metric(
    "convoy_run_seconds",
    "gauge",
    "seconds",
    "Wall time of the run by category, earlier drivers included. Training that is thrown away moves to `lost`.",
    ("category",),
)
GOODPUT = Metric("convoy_goodput_ratio", "gauge", "", "Share of wall time spent on steps that count, 0 to 1.")

CATALOG: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""All of the above, in their order."""


def reference_markdown() -> str:
    """`docs/metrics.md`."""
    lines = [
        "# Metrics",
        "",
        "Generated from `orchestrator/metrics/metric_catalog.py` by `python -m orchestrator.metrics.metric_catalog`; a "
        "test compares the two.",
        "",
        "A run serves them at `/metrics`, on a free port of loopback or on `metrics.port` (`CONVOY_METRICS_PORT`). The"
        " address is printed and is in the event `metrics.serving`, and Prometheus finds it by a file. Binding to"
        " another address (`metrics.host`) needs a token of at least 16 characters in `CONVOY_METRICS_TOKEN`, and every"
        " request then needs `Authorization: Bearer TOKEN`. [Monitoring](../monitoring/README.md) shows how runs get"
        " into Prometheus and Grafana.",
        "",
        "Every metric has the labels `run` (the run's id) and `job` (the job's name); other labels are listed. Counters"
        " count from the start of the run's driver: they start at 0 when a run is resumed, as Prometheus expects.",
        "",
        "| Metric | Kind | Unit | Labels | What it is |",
        "| --- | --- | --- | --- | --- |",
    ]
    for metric in CATALOG:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.kind} | {metric.unit} | {labels} | {metric.help} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reference_markdown(), end="")

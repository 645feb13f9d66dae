"""The part of the catalog about faults, recoveries, copies in memory and checkpoints."""

from orchestrator.metrics.catalog.metric_family import Metric

WORKER_FAILURES = Metric("convoy_worker_failures_total", "counter", "", "Workers that failed.", origin="driver")
HANGS = Metric(
    "convoy_worker_hangs_total", "counter", "", "Workers that were ended because of a hang.", origin="driver"
)
STRAGGLER = Metric(
    "convoy_straggler_ratio",
    "gauge",
    "",
    "A worker's own time in recent steps, without waiting for others, divided by the others' median; 1.5 is slow. Of "
    "all workers if there are at most 8, else of the 4 with the largest ratio.",
    ("rank",),
    origin="driver",
)
RECOVERIES = Metric(
    "convoy_recoveries_total",
    "counter",
    "",
    "Finished recoveries by reason: worker_died, node_died, node_silent, hang, worker_error, out_of_memory, "
    "device_error, numeric_fault, driver_lost, unknown.",
    ("reason",),
    origin="driver",
)
RECOVERY_SECONDS = Metric(
    "convoy_recovery_duration_seconds",
    "histogram",
    "seconds",
    "From the detection of a lost worker to the end of the first step after it.",
    buckets=(0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0),
    origin="driver",
)
RECOVERY_PHASE_SECONDS = Metric(
    "convoy_recovery_phase_seconds_total",
    "counter",
    "seconds",
    "Time of finished recoveries by phase: detection (of the fault), decision (what to continue from), rebuild (the "
    "gang), restore (the state), first_step.",
    ("phase",),
    origin="driver",
)
RECOMPUTED_STEPS = Metric(
    "convoy_recomputed_steps_total", "counter", "steps", "Finished steps that recoveries recomputed.", origin="driver"
)
RESIZES = Metric(
    "convoy_resizes_total", "counter", "", "Changes of the number of workers at a step boundary.", origin="driver"
)
TARGET_WORKERS = Metric(
    "convoy_target_workers",
    "gauge",
    "workers",
    "Number of workers last requested with `convoy scale`; absent if none was.",
    origin="driver",
)
MISSING_WORKERS = Metric(
    "convoy_missing_workers",
    "gauge",
    "workers",
    "Workers that a waiting run still needs before it can continue; else 0.",
    origin="driver",
)
DRAINING_NODES = Metric(
    "convoy_draining_nodes_total",
    "counter",
    "nodes",
    "Nodes of the cluster that were announced to be drained.",
    origin="driver",
)
PROTECTED_STEP = Metric(
    "convoy_protected_step",
    "gauge",
    "steps",
    "Newest step whose state is complete in the memory of nodes and peers.",
    origin="vault",
)
STEPS_AT_RISK = Metric(
    "convoy_steps_at_risk",
    "gauge",
    "steps",
    "Finished steps that the loss of any one node could cost, with checkpoints in storage taken into account.",
    origin="driver",
)
TIER_STEP = Metric(
    "convoy_tier_step",
    "gauge",
    "steps",
    "Newest step that is complete in a tier: memory of the ranks' own nodes, memory of their peers, storage.",
    ("tier",),
    origin="vault",
)
COPIES_MIN = Metric(
    "convoy_copies_min", "gauge", "copies", "Smallest number of copies in memory of any shard.", origin="vault"
)
UNRECOVERABLE_NODES = Metric(
    "convoy_unrecoverable_nodes",
    "gauge",
    "nodes",
    "Nodes whose loss would leave no complete step in memory.",
    origin="vault",
)
VAULT_UP = Metric(
    "convoy_vault_up",
    "gauge",
    "",
    "1 if the node's vault answered the last survey, else 0. Of at most 256 nodes: those without an answer first, then "
    "those that use the most memory.",
    ("node",),
    origin="vault",
)
VAULT_BYTES = Metric(
    "convoy_vault_bytes", "gauge", "bytes", "Memory that a node's vault uses.", ("node",), origin="vault"
)
VAULT_PLANNED_BYTES = Metric(
    "convoy_vault_planned_bytes",
    "gauge",
    "bytes",
    "Largest memory that one node's vault is expected to use, except during recoveries.",
    origin="vault",
)
NUMERIC_FAULTS = Metric(
    "convoy_numeric_faults_total",
    "counter",
    "",
    "Losses and gradients that were not finite, and loss spikes (loss_not_finite, gradient_not_finite, loss_spike).",
    ("kind",),
    origin="driver",
)
SKIPPED_SAMPLES = Metric(
    "convoy_skipped_samples_total",
    "counter",
    "samples",
    "Samples left out by rollbacks after numeric faults.",
    origin="driver",
)
WARNINGS = Metric("convoy_warnings_total", "counter", "", "Warnings of the run.", origin="driver")
CHECKPOINTS = Metric("convoy_checkpoints_total", "counter", "", "Checkpoints written.", origin="driver")
CHECKPOINT_BYTES = Metric(
    "convoy_checkpoint_bytes_total", "counter", "bytes", "Bytes of checkpoints written.", origin="driver"
)
CHECKPOINT_SECONDS = Metric(
    "convoy_checkpoint_seconds_total", "counter", "seconds", "Time spent writing checkpoints.", origin="driver"
)
CHECKPOINT_STEP = Metric("convoy_checkpoint_step", "gauge", "steps", "Step of the newest checkpoint.", origin="driver")
CHECKPOINT_FAILURES = Metric(
    "convoy_checkpoint_failures_total",
    "counter",
    "",
    "Checkpoints that could not be written: disk full, bucket unreachable. Training continues; alert on an increase.",
    origin="driver",
)
CHECKPOINT_AGE = Metric(
    "convoy_checkpoint_age_seconds",
    "gauge",
    "seconds",
    "Time since the last checkpoint was written; before the first, since the driver started.",
    origin="driver",
)
CHECKPOINT_RESTORES = Metric(
    "convoy_checkpoint_restores_total", "counter", "", "Restores of training state.", origin="driver"
)
CHECKPOINT_REJECTIONS = Metric(
    "convoy_checkpoint_rejections_total", "counter", "", "Checkpoints that were found damaged.", origin="driver"
)

SAFETY: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""All of the above, in their order."""

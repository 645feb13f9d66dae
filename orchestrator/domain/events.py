"""What happened, as values. Workers and the driver emit events; `events.jsonl`, metrics and the terminal read them.

A step is not an event: it is a `StepReport` and goes to `steps.jsonl`.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from orchestrator.domain.step_report import StepReport


class EventKind(StrEnum):
    """Every kind of event, with the fields it carries."""

    RUN_CREATED = "run.created"
    """run_id, spec_hash, convoy_version, resumed_from_step."""
    CHANGES_ACCEPTED = "run.changes_accepted"
    """step (training goes on after it with what has changed), changes (a list, each with its part: data, tokenizer,
    model or code, and what changed)."""
    STATE_CHANGED = "run.state"
    """state (a `RunState`), reason."""
    CLUSTER_READY = "cluster.ready"
    """address, nodes, cpus, gpus, seconds."""
    DATA_PROGRESS = "data.progress"
    """phase (scan, tokenizer, tokenize, index), done_bytes, total_bytes, documents, tokens, cached. Not on disk."""
    DATA_READY = "data.ready"
    """fingerprint, cached, documents, bad_records, tokens, train_samples, validation_samples, seconds."""
    DATA_SKIPPED = "data.skipped"
    """source, reason, count, first (path and place)."""
    PLAN = "plan"
    """world_size, shares, micro_batch, accumulation, total_steps, parameters."""
    DEVICE_PLANNED = "device.planned"
    """micro_batch, need_bytes (on each GPU, at the peak), parts (bytes by what they are for), free_bytes (on the
    smallest GPU when its worker started), total_bytes, device (its name). Only where workers train on GPUs."""
    WORKER_STARTED = "worker.started"
    """rank, node, pid, device, seconds."""
    WORKER_PHASE = "worker.phase"
    """rank, phase (import, rendezvous, build, restore, train, export). Rank 0 alone reports phases."""
    WORKER_LOG = "worker.log"
    """rank, line. Not written to events.jsonl: worker output goes to `logs/rank-N.log`."""
    WORKER_FAILED = "worker.failed"
    """rank, error, traceback."""
    WORKER_HUNG = "worker.hung"
    """rank (null where nobody can be named), node, step, phase, seconds (without any progress), reason, stacks
    (directory with a file for each worker), stack (of this one)."""
    WORKER_SLOW = "worker.slow"
    """rank, node, slow (false: it no longer is), phase (in which it loses most), ratio (of its own time to the others'
    median), steps (compared). Waiting for other ranks is not its own time."""
    RECOVERY_STARTED = "recovery.started"
    """incident (counted from 1 in the run), rank, cause, detected_s (Unix), step (the last one finished), from_step
    (what training goes on from), source (vaults, storage, beginning), checkpoint (its path, where it is one), skipped
    (null, or after a numeric fault the first position and the number of the samples that are left out)."""
    RECOVERED = "recovery.finished"
    """incident, step (the first new one, or the last if none was left to make), world_size, seconds (from detection to
    that step's end, or the export's), steps_recomputed."""
    RESIZED = "gang.resized"
    """step (the last one before), before, world_size. At a step boundary; nothing is made again."""
    NUMERIC_FAULT = "numeric.fault"
    """fault (a `FaultKind`), step, rank (null: of all together), value (text where JSON has no number for it),
    first_position, count (of its batch), action (rollback, stop, give_up, continue), from_step, skipped_first,
    skipped_count (these null but for a rollback)."""
    FAULT_INJECTED = "fault.injected"
    """fault (nan, spike, oom), step, rank. A fault that a worker makes on purpose, for a drill."""
    SCALE = "scale"
    """id, by, asked_s (Unix), workers, state (accepted, done, refused), message, step (the first with as many)."""
    NODE_DRAINING = "node.draining"
    """node, address, ranks (of the workers there), deadline_s (Unix, null where there is none), notice_s (from now)."""
    WAITING = "gang.waiting"
    """have, need (workers), since_s (Unix), step (whose state is kept meanwhile)."""
    VAULTS_PLANNED = "vaults.planned"
    """node_bytes (most that one node's vault will take), recovery_bytes (for a moment in a recovery), cell_bytes (two
    slots of one worker), copies (of each worker's state, on other nodes)."""
    SNAPSHOTS_PLANNED = "snapshots.planned"
    """state_bytes (of one worker), stall_s (of training, for a copy), interval_s (between copies, by the budget),
    interval_steps (null where the budget decides), sent_bytes (by a node, to its peers), sent_s, repeated_s (training
    that losing a node repeats at most; null: all since the last checkpoint), read_s (until the state is there again),
    copied_s (until it has its copies again), copy_bytes_per_s, link_bytes_per_s (assumed, not measured)."""
    VAULTS_ADOPTED = "vaults.adopted"
    """step (the newest on record that they hold whole; null: none), vaults, workers_ended (of the driver before),
    seconds."""
    VAULTS_KEPT = "vaults.kept"
    """step, vaults, until_s (Unix). The run is over; what its vaults hold is newer than storage and can be resumed."""
    EVAL = "eval"
    """step, loss, perplexity, tokens, seconds."""
    CHECKPOINT_SAVED = "checkpoint.saved"
    """step, path, bytes, seconds (that training stood still), write_seconds (null: it stood still for all of it),
    world_size, stage."""
    CHECKPOINT_STARTED = "checkpoint.started"
    """step, place, world_size, stage, seconds (that training stood still). The vaults write it in the background."""
    CHECKPOINT_FAILED = "checkpoint.failed"
    """step, place, reason, fault (full, unreachable, denied, missing, other), seconds. Training goes on; the last step
    is tried again."""
    CHECKPOINT_RESTORED = "checkpoint.restored"
    """step, path, seconds, saved_world_size, world_size."""
    CHECKPOINT_REJECTED = "checkpoint.rejected"
    """path, reason."""
    EXPORTED = "exported"
    """path, bytes, parameters, seconds."""
    SAMPLE = "sample"
    """prompt, text."""
    METRICS_SERVING = "metrics.serving"
    """url."""
    WARNING = "warning"
    """message."""


@dataclass(frozen=True)
class Event:
    """One thing that happened. `time_s` is Unix time; `fields` holds JSON values only."""

    kind: EventKind
    time_s: float
    fields: dict[str, Any] = field(default_factory=dict)


class Observer(Protocol):
    """Whoever wants to know: the recorder (disk), the metrics, the terminal."""

    def on_event(self, event: Event) -> None:
        """Take one event. Must not raise and must not block for long."""

    def on_step(self, report: StepReport) -> None:
        """Take the report of one optimizer step."""


class RunState(StrEnum):
    """Where a run is in its life. The last three are final; `stopped` and `failed` can be resumed."""

    PREPARING = "preparing"
    STARTING = "starting"
    RUNNING = "running"
    RECOVERING = "recovering"
    WAITING = "waiting"  # for workers, of which there are too few; state is kept
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"

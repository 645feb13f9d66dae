"""What `convoy show` prints of a run: the facts as one JSON value, and the same as text."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from orchestrator.atomic_files import read_json
from orchestrator.checkpoint.storage.storage import is_url
from orchestrator.cli.display import formatting
from orchestrator.cli.display.end_summary import command
from orchestrator.domain.events import (
    ChangesAccepted,
    CheckpointFailed,
    CheckpointSaved,
    EvalFinished,
    Event,
    EventBody,
    ModelExported,
    NodeDraining,
    NumericFaultFound,
    RecoveryFinished,
    RecoveryStarted,
    RunState,
    TrainingPlanned,
    WarningIssued,
    WorkerFailed,
)
from orchestrator.domain.events.event_codec import encode_body
from orchestrator.domain.ranks.rank_report import RankReport
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.goodput.ledger_result import LedgerResult
from orchestrator.goodput.time_class import TimeClass
from orchestrator.json_values import JsonFields, JsonObject, JsonValue, integer, optional
from orchestrator.store.recorded_ledger import ledger_of
from orchestrator.store.run_history import current_steps, read_events, read_last_ranks
from orchestrator.store.run_store import RunRecord

SHOWN_SHARE = 0.005
"""Classes of time with a smaller share are left out."""


@dataclass
class EventSummary:
    """What the events of a run add up to. Mutable: `take` changes it."""

    plan: TrainingPlanned | None = None
    """The newest."""
    evaluations: list[EvalFinished] = field(default_factory=list)
    checkpoints: list[CheckpointSaved] = field(default_factory=list)
    failures: list[WorkerFailed] = field(default_factory=list)
    """Those that the run has not recovered from."""
    recoveries: list[RecoveryFinished] = field(default_factory=list)
    numeric_faults: list[NumericFaultFound] = field(default_factory=list)
    draining: list[NodeDraining] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    changes: list[tuple[float, ChangesAccepted]] = field(default_factory=list)
    """With the times."""
    exported: ModelExported | None = None

    def take(self, event: Event) -> None:
        """Take the next event."""
        match event.body:
            case TrainingPlanned() as body:
                self.plan = body
            case ChangesAccepted() as body:
                self.changes.append((event.time_s, body))
            case EvalFinished() as body:
                self.evaluations.append(body)
            case CheckpointSaved() as body:
                self.checkpoints.append(body)
            case CheckpointFailed() as body:
                self.warnings.append(body.reason)
            case WarningIssued() as body:
                self.warnings.append(body.message)
            case NodeDraining() as body:
                self.draining.append(body)
            case ModelExported() as body:
                self.exported = body
            case body:
                self._take_trouble(body)

    def _take_trouble(self, body: EventBody) -> None:
        match body:
            case WorkerFailed():
                self.failures.append(body)
            case NumericFaultFound():
                self.numeric_faults.append(body)
                self.failures.clear()  # workers raised because of it
            case RecoveryStarted():
                self.failures.clear()  # recovered from; the incident page has it
            case RecoveryFinished():
                self.recoveries.append(body)

    def to_json(self) -> JsonObject:
        """The fields of the events, by what they are about."""
        lists: dict[str, Sequence[EventBody]] = {
            "evaluations": self.evaluations,
            "failures": self.failures,
            "recoveries": self.recoveries,
            "numeric_faults": self.numeric_faults,
            "draining": self.draining,
        }
        changes: list[JsonValue] = [{"time_s": time_s, **encode_body(body)} for time_s, body in self.changes]
        return {
            "plan": None if self.plan is None else encode_body(self.plan),
            **{name: [encode_body(body) for body in bodies] for name, bodies in lists.items()},
            "warnings": list(self.warnings),
            "changes": changes,
            "exported": None if self.exported is None else encode_body(self.exported),
        }


@dataclass(frozen=True)
class TrainingFigures:
    """Figures over all steps; the first is left out of the pace if there are more: it warms up."""

    first_loss: float
    last_loss: float
    epoch: float
    tokens: int
    tokens_per_s: float | None
    step_time_s: float
    data_wait_share: float | None
    """0 to 1, mean over the ranks."""
    mfu: float | None
    world_size: int
    on_gpus: bool
    peak_total_bytes: int
    """Peak memory of all workers in the last step: of their GPUs, or on CPUs resident."""
    peak_most_bytes: int
    """The same of the worker with the most."""
    peak_rss_bytes: list[int]
    """Of each rank, when all of them were last recorded."""
    peak_device_bytes: list[int] | None
    """Of each rank; None on CPUs."""


@dataclass(frozen=True)
class RunFacts:
    """Everything known about a run."""

    record: RunRecord
    events: EventSummary
    kept: tuple[bool | None, ...]
    """For each checkpoint that was saved, whether it is still there; None: a bucket would have to be asked."""
    training: TrainingFigures | None
    losses: tuple[float, ...]
    """Of each step."""
    data: JsonObject | None
    """`data.json`."""
    ledger: LedgerResult | None
    """None if nothing was recorded."""

    def to_json(self) -> JsonObject:
        """For programs; what the run's files do not hold is null or empty."""
        record, saved = self.record, zip(self.events.checkpoints, self.kept, strict=True)
        return {
            **record.to_json(),
            "driver": record.driver.to_json() if record.driver else None,
            **self.events.to_json(),
            "checkpoints": [{**encode_body(each), "kept": kept} for each, kept in saved],
            "training": None if self.training is None else asdict(self.training),
            "losses": list(self.losses),
            "data": self.data,
            "ledger": None if self.ledger is None else self.ledger.to_json(),
        }


def facts(record: RunRecord) -> RunFacts:
    """What the files of a run say."""
    layout, events = record.layout, EventSummary()
    steps = current_steps(layout.steps)
    for event in read_events(layout.events):
        events.take(event)
    return RunFacts(
        record=record,
        events=events,
        kept=tuple(_kept(saved, layout) for saved in events.checkpoints),
        training=_training(steps, read_last_ranks(layout)),
        losses=tuple(step.loss for step in steps),
        data=read_json(layout.data),
        ledger=ledger_of(layout),
    )


def _training(steps: list[StepReport], recorded: Sequence[RankReport]) -> TrainingFigures | None:
    """`recorded`: the newest reports of every rank."""
    if not steps:
        return None
    steady = steps[1:] or steps
    seconds = sum(step.step_time_s for step in steady)
    last = steps[-1]
    ranks = last.ranks.every or recorded
    device = [rank.memory.peak_allocated_bytes for rank in ranks if rank.memory.peak_allocated_bytes is not None]
    on_gpu = last.ranks.spread.peak_allocated_bytes
    peak = last.ranks.spread.peak_rss_bytes if on_gpu is None else on_gpu
    waited = sum(step.ranks.spread.data_wait_s.mean(step.world_size) for step in steady)
    mfus = [step.mfu for step in steady if step.mfu is not None]
    return TrainingFigures(
        first_loss=steps[0].loss,
        last_loss=steps[-1].loss,
        epoch=steps[-1].epoch,
        tokens=sum(step.tokens for step in steps),
        tokens_per_s=sum(step.tokens for step in steady) / seconds if seconds > 0 else None,
        step_time_s=seconds / len(steady),
        data_wait_share=waited / seconds if seconds > 0 else None,
        mfu=sum(mfus) / len(mfus) if mfus else None,
        world_size=last.world_size,
        on_gpus=on_gpu is not None,
        peak_total_bytes=int(peak.total),
        peak_most_bytes=int(peak.max),
        peak_rss_bytes=[rank.memory.peak_rss_bytes for rank in ranks],
        peak_device_bytes=device or None,
    )


def text(run: RunFacts, now_s: float) -> str:
    """The facts as text."""
    record, events = run.record, run.events
    first, *more = formatting.printable(record.reason or "").split("\n")
    lines = [f"{record.id}  {record.status}" + (f": {first}" if first else ""), *(f"  {line}" for line in more)]
    if record.lost:
        lines.append("  the run was not ended, but its driver is gone")
    lines.append(
        f"  created     {formatting.when(record.created_s)}, updated {formatting.ago(now_s - record.updated_s)}"
    )
    lines.append(f"  directory   {record.directory}")
    total = record.total_steps
    if total:
        lines.append(f"  step        {record.step} of {total}  {formatting.bar(record.step / total, 30)}")
    if record.asked_workers is not None:
        lines.append(
            f"  requested   {record.asked_workers} workers (convoy scale); the last step had {record.progress.workers}"
        )
    for each in events.draining[-3:]:
        lines.append(f"  draining    node {each.node[:8]}, with workers {list(each.ranks)}")
    lines += _plan_lines(run) + _training_lines(run) + _kept_lines(run) + _trouble_lines(run)
    lines += _ledger_lines(run.ledger)
    resumable = not record.active and record.state is not RunState.SUCCEEDED
    if resumable and any(kept is not False for kept in run.kept):
        lines += ["", f"Continue it: {command(f'convoy run --resume {record.id}', record.directory.parent)}"]
    return "\n".join(lines)


def _trouble_lines(run: RunFacts) -> list[str]:
    record, events, lines = run.record, run.events, []
    for time_s, accepted in events.changes[-3:]:
        lines.append(f"  changed     {formatting.when(time_s)}, accepted, used after step {accepted.step}:")
        lines += [f"              {what}" for what in formatting.changes(accepted.changes)]
    if events.recoveries:
        lines.append(f"  recovered   {formatting.recoveries(events.recoveries)}; see {record.layout.incidents}")
    if events.numeric_faults:
        left_out = sum(each.skipped_count or 0 for each in events.numeric_faults)
        lines.append(f"  numeric     {len(events.numeric_faults)} faults, {left_out} samples left out")
    for failure in events.failures[:1]:
        if failure.error not in (record.reason or ""):
            lines += ["", f"Worker {failure.rank} failed: {formatting.printable(failure.error)}"]
    return lines + [f"  warning     {formatting.printable(message)}" for message in events.warnings[-3:]]


def _plan_lines(run: RunFacts) -> list[str]:
    lines = []
    plan, data = run.events.plan, run.data
    if plan:
        lines.append(
            f"  workers     {plan.world_size}, micro batch {plan.micro_batch},"
            f" accumulation {plan.accumulation}, {formatting.count(plan.parameters)} parameters"
        )
    if data and data.get("train_samples"):
        tokens = _whole(data, "train_tokens") + _whole(data, "validation_tokens")
        train, held = _whole(data, "train_samples"), _whole(data, "validation_samples")
        lines.append(
            f"  data        {formatting.count(tokens)} tokens, {formatting.count(train)} training + "
            f"{formatting.count(held)} validation samples"
        )
    return lines


def _whole(value: JsonFields, key: str) -> int:
    return optional(integer, value, key) or 0


def _training_lines(run: RunFacts) -> list[str]:
    training = run.training
    if training is None:
        return []
    first, last = training.first_loss, training.last_loss
    lines = [
        f"  loss        {formatting.loss(first)} -> {formatting.loss(last)} ({formatting.change(first, last)})",
        f"              {formatting.sparkline(run.losses)}",
    ]
    evaluations = [each.loss for each in run.events.evaluations if not math.isnan(each.loss)]
    if evaluations:
        first, last = evaluations[0], evaluations[-1]
        lines.append(
            f"  validation  {formatting.loss(first)} -> {formatting.loss(last)} ({formatting.change(first, last)})"
        )
        lines.append(f"              {formatting.sparkline(evaluations)}")
    share = training.data_wait_share
    lines.append(
        f"  pace        {formatting.count(training.tokens_per_s)} tokens/s,"
        f" {formatting.duration(training.step_time_s)} per step"
        + (f", {share:.1%} of it waiting for data" if share is not None else "")
        + (f", MFU {training.mfu:.1%}" if training.mfu is not None else "")
    )
    if training.peak_most_bytes:
        where = "on the GPU" if training.on_gpus else "resident"
        total, most = formatting.size(training.peak_total_bytes), formatting.size(training.peak_most_bytes)
        lines.append(f"  memory      {total} {where} at peak, most {most} in a worker")
    return lines


def _kept(saved: CheckpointSaved, layout: RunLayout) -> bool | None:
    """Whether a checkpoint is still there: old ones are removed as new ones are written. None if a bucket would have to
    be asked."""
    if is_url(saved.path):
        return None
    return layout.checkpoint(saved.step).is_dir() or (bool(saved.path) and Path(saved.path).is_dir())


def _kept_lines(run: RunFacts) -> list[str]:
    lines, saved = [], run.events.checkpoints
    if saved:
        newest = saved[-1]
        steps = ", ".join(str(each.step) for each, kept in zip(saved, run.kept, strict=True) if kept) or "none"
        where = f"the newest {newest.path}" if run.kept[-1] is None else f"kept: step {steps}"
        lines.append(
            f"  checkpoints {len(saved)} written, {where};"
            f" the last {formatting.size(newest.bytes)} in {formatting.duration(newest.seconds)}"
        )
    if run.events.exported:
        lines.append(f"  model       {run.events.exported.path}")
    return lines


def _ledger_lines(ledger: LedgerResult | None) -> list[str]:
    if ledger is None or not ledger.reserved_s:
        return []
    what = f"{formatting.duration(ledger.reserved_s)} of worker time"
    lines = ["", f"Where {what} went (goodput {ledger.goodput:.0%}, ETTR {ledger.ettr:.0%}; `convoy goodput`):"]
    for time_class in TimeClass:
        seconds = ledger.seconds.get(time_class, 0.0)
        share = seconds / ledger.reserved_s
        if share >= SHOWN_SHARE:
            name = time_class.value.replace("_", " ")
            lines.append(f"  {name:<18} {formatting.duration(seconds):>8}  {share:>4.0%}  {formatting.bar(share, 30)}")
    return lines

"""The text of `convoy show`, made from the read model of a run."""

import math
from collections.abc import Sequence
from typing import TypeVar

from orchestrator.cli.display import formatting
from orchestrator.cli.display.end_summary import command
from orchestrator.domain.events import RunState
from orchestrator.goodput.ledger_result import LedgerResult
from orchestrator.goodput.time_class import TimeClass
from orchestrator.run_facts.lenient_json import whole_or_none
from orchestrator.run_facts.run_model import RunFacts

_T = TypeVar("_T")

SHOWN_SHARE = 0.005
"""Classes of time with a smaller share are left out."""


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
    for each in _newest(events.draining):
        lines.append(f"  draining    node {each.node[:8]}, with workers {list(each.ranks)}")
    lines += _plan_lines(run) + _training_lines(run) + _kept_lines(run) + _trouble_lines(run)
    lines += _time_lines(run.ledger)
    resumable = not record.active and record.state is not RunState.SUCCEEDED
    if resumable and any(kept is not False for kept in run.kept):
        lines += ["", f"Continue it: {command(f'convoy run --resume {record.id}', record.directory.parent)}"]
    return "\n".join(lines)


def _trouble_lines(run: RunFacts) -> list[str]:
    record, events, lines = run.record, run.events, []
    for time_s, accepted in _newest(events.changes):
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
    return lines + [f"  warning     {formatting.printable(message)}" for message in _newest(events.warnings)]


def _plan_lines(run: RunFacts) -> list[str]:
    lines = []
    plan, data = run.events.plan, run.data
    if plan:
        lines.append(
            f"  workers     {plan.world_size}, micro batch {plan.micro_batch},"
            f" accumulation {plan.accumulation}, {formatting.count(plan.parameters)} parameters"
        )
    if data and data.get("train_samples"):
        counts = ("train_tokens", "validation_tokens", "train_samples", "validation_samples")
        trained, held_back, train, held = (whole_or_none(data, name) or 0 for name in counts)
        lines.append(
            f"  data        {formatting.count(trained + held_back)} tokens, {formatting.count(train)} training + "
            f"{formatting.count(held)} validation samples"
        )
    return lines


def _training_lines(run: RunFacts) -> list[str]:
    training = run.training
    if training is None:
        return []
    first, last = _or_nan(training.first_loss), _or_nan(training.last_loss)
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


def _kept_lines(run: RunFacts) -> list[str]:
    lines, saved = [], run.events.checkpoints
    if saved:
        newest = saved[-1]
        steps = ", ".join(str(each.step) for each, kept in zip(saved, run.kept, strict=True) if kept) or "none"
        where = f"the newest {newest.path}" if run.kept[-1] is None else f"kept: step {steps}"
        lines.append(
            f"  checkpoints {run.events.totals.checkpoints} written, {where};"
            f" the last {formatting.size(newest.bytes)} in {formatting.duration(newest.seconds)}"
        )
    if run.events.exported:
        lines.append(f"  model       {run.events.exported.path}")
    return lines


def _time_lines(ledger: LedgerResult | None) -> list[str]:
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


def _newest(items: Sequence[_T]) -> list[_T]:
    """The last three."""
    return list(items)[-3:]


def _or_nan(loss: float | None) -> float:
    """A loss that is recorded as null is not a number."""
    return math.nan if loss is None else loss

"""What `convoy show` prints of a run: the facts as one JSON value, and the same as text."""

from pathlib import Path
from typing import Any

from orchestrator.atomic_files import read_json
from orchestrator.checkpoint.storage.storage import is_url
from orchestrator.cli.display import formatting
from orchestrator.cli.display.end_summary import command
from orchestrator.domain.events import EventKind, RunState
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.store.run_history import current_steps, read_events
from orchestrator.store.run_store import RunRecord


def facts(record: RunRecord) -> dict[str, Any]:
    """Everything known about the run; null or empty if its files do not have it."""
    layout = record.layout
    steps = current_steps(layout.steps)
    value: dict[str, Any] = record.to_json()
    value["driver"] = record.driver.to_json() if record.driver else None
    value |= {
        "plan": None,
        "evaluations": [],
        "checkpoints": [],
        "failures": [],
        "recoveries": [],
        "numeric_faults": [],
        "draining": [],
        "warnings": [],
        "changes": [],
        "exported": None,
    }
    for event in read_events(layout.events):
        match event.kind:
            case EventKind.PLAN:
                value["plan"] = event.fields
            case EventKind.CHANGES_ACCEPTED:
                value["changes"].append({"time_s": event.time_s, **event.fields})
            case EventKind.EVAL:
                value["evaluations"].append(event.fields)
            case EventKind.CHECKPOINT_SAVED:
                value["checkpoints"].append({**event.fields, "kept": _kept(event.fields, layout)})
            case EventKind.CHECKPOINT_FAILED:
                value["warnings"].append(event.fields.get("reason"))
            case EventKind.WORKER_FAILED:
                value["failures"].append(event.fields)
            case EventKind.NUMERIC_FAULT:
                value["numeric_faults"].append(event.fields)
                value["failures"].clear()  # workers raised because of it
            case EventKind.RECOVERY_STARTED:
                value["failures"].clear()  # recovered from; the incident page has it
            case EventKind.RECOVERED:
                value["recoveries"].append(event.fields)
            case EventKind.NODE_DRAINING:
                value["draining"].append(event.fields)
            case EventKind.WARNING:
                value["warnings"].append(event.fields.get("message"))
            case EventKind.EXPORTED:
                value["exported"] = event.fields
    value["training"] = _training(steps)
    value["losses"] = [step.loss for step in steps]
    value["data"] = read_json(layout.data)
    value["ledger"] = read_json(layout.ledger)
    return value


def _training(steps: list[StepReport]) -> dict[str, Any] | None:
    """Figures over all steps; the pace leaves out the first step, which warms up, if there are more."""
    if not steps:
        return None
    steady = steps[1:] or steps
    seconds = sum(step.step_time_s for step in steady)
    ranks = steps[-1].ranks
    device = [rank.memory.peak_allocated_bytes for rank in ranks if rank.memory.peak_allocated_bytes is not None]
    waited = sum(sum(rank.phases.data_wait_s for rank in step.ranks) / max(1, len(step.ranks)) for step in steady)
    mfus = [step.mfu for step in steady if step.mfu is not None]
    return {
        "first_loss": steps[0].loss,
        "last_loss": steps[-1].loss,
        "epoch": steps[-1].epoch,
        "tokens": sum(step.tokens for step in steps),
        "tokens_per_s": sum(step.tokens for step in steady) / seconds if seconds > 0 else None,
        "step_time_s": seconds / len(steady),
        "data_wait_share": waited / seconds if seconds > 0 else None,
        "mfu": sum(mfus) / len(mfus) if mfus else None,
        "world_size": steps[-1].world_size,
        "peak_rss_bytes": [rank.memory.peak_rss_bytes for rank in ranks],
        "peak_device_bytes": device or None,
    }


def text(record: RunRecord, value: dict[str, Any], now_s: float) -> str:
    """The facts as text."""
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
    for each in value["draining"][-3:]:
        lines.append(f"  draining    node {str(each.get('node'))[:8]}, with workers {each.get('ranks')}")
    lines += _plan_lines(value) + _training_lines(value) + _kept_lines(value)
    for each in value["changes"][-3:]:
        lines.append(f"  changed     {formatting.when(each['time_s'])}, accepted, used after step {each.get('step')}:")
        lines += [f"              {what}" for what in formatting.changes(each.get("changes") or [])]
    if value["recoveries"]:
        lines.append(f"  recovered   {formatting.recoveries(value['recoveries'])}; see {record.layout.incidents}")
    if value["numeric_faults"]:
        left_out = sum(int(each.get("skipped_count") or 0) for each in value["numeric_faults"])
        lines.append(f"  numeric     {len(value['numeric_faults'])} faults, {left_out} samples left out")
    for failure in value["failures"][:1]:
        if str(failure.get("error")) not in (record.reason or ""):
            lines += ["", f"Worker {failure.get('rank')} failed: {formatting.printable(str(failure.get('error')))}"]
    lines += [f"  warning     {formatting.printable(str(message))}" for message in value["warnings"][-3:]]
    lines += _ledger_lines(value["ledger"])
    resumable = not record.active and record.state is not RunState.SUCCEEDED
    if resumable and any(each["kept"] is not False for each in value["checkpoints"]):
        lines += ["", f"Continue it: {command(f'convoy run --resume {record.id}', record.directory.parent)}"]
    return "\n".join(lines)


def _plan_lines(value: dict[str, Any]) -> list[str]:
    lines = []
    plan, data = value["plan"], value["data"]
    if plan:
        parameters = f", {formatting.count(plan['parameters'])} parameters" if plan.get("parameters") else ""
        lines.append(
            f"  workers     {plan.get('world_size')}, micro batch {plan.get('micro_batch')},"
            f" accumulation {plan.get('accumulation')}{parameters}"
        )
    if data and data.get("train_samples"):
        tokens = formatting.count(data.get("train_tokens", 0) + data.get("validation_tokens", 0))
        train, held = formatting.count(data["train_samples"]), formatting.count(data.get("validation_samples"))
        lines.append(f"  data        {tokens} tokens, {train} training + {held} validation samples")
    return lines


def _training_lines(value: dict[str, Any]) -> list[str]:
    training = value["training"]
    if not training:
        return []
    first, last = training["first_loss"], training["last_loss"]
    lines = [
        f"  loss        {formatting.loss(first)} -> {formatting.loss(last)} ({formatting.change(first, last)})",
        f"              {formatting.sparkline([loss for loss in value['losses'] if loss is not None])}",
    ]
    evaluations = [each for each in value["evaluations"] if each.get("loss") is not None]
    if evaluations:
        first, last = evaluations[0]["loss"], evaluations[-1]["loss"]
        lines.append(
            f"  validation  {formatting.loss(first)} -> {formatting.loss(last)} ({formatting.change(first, last)})"
        )
        lines.append(f"              {formatting.sparkline([each['loss'] for each in evaluations])}")
    share = training["data_wait_share"]
    pace = formatting.count(training["tokens_per_s"])
    lines.append(
        f"  pace        {pace} tokens/s, {formatting.duration(training['step_time_s'])} per step"
        + (f", {share:.1%} of it waiting for data" if share is not None else "")
        + (f", MFU {training['mfu']:.1%}" if training["mfu"] is not None else "")
    )
    kind = "peak_device_bytes" if training["peak_device_bytes"] else "peak_rss_bytes"
    each = training[kind]
    if each:
        where = "on the GPU" if kind == "peak_device_bytes" else "resident"
        lines.append(
            f"  memory      {formatting.size(sum(each))} {where} at peak, most {formatting.size(max(each))} in a worker"
        )
    return lines


def _kept(saved: dict[str, Any], layout: RunLayout) -> bool | None:
    """Whether a checkpoint is still there: old ones are removed as new ones are written. None if a bucket would
    have to be asked."""
    path = str(saved.get("path", ""))
    if is_url(path):
        return None
    return layout.checkpoint(int(saved.get("step", -1))).is_dir() or (bool(path) and Path(path).is_dir())


def _kept_lines(value: dict[str, Any]) -> list[str]:
    lines = []
    kept = [each for each in value["checkpoints"] if each["kept"]]
    if value["checkpoints"]:
        newest = value["checkpoints"][-1]
        steps = ", ".join(str(each.get("step")) for each in kept) or "none"
        where = f"the newest {newest['path']}" if newest["kept"] is None else f"kept: step {steps}"
        lines.append(
            f"  checkpoints {len(value['checkpoints'])} written, {where};"
            f" the last {formatting.size(newest.get('bytes'))} in {formatting.duration(newest.get('seconds'))}"
        )
    if value["exported"]:
        lines.append(f"  model       {value['exported'].get('path')}")
    return lines


def _ledger_lines(ledger: dict[str, Any] | None) -> list[str]:
    if not ledger or not ledger.get("elapsed_s"):
        return []
    elapsed_s = ledger["elapsed_s"]
    lines = ["", f"Where {formatting.duration(elapsed_s)} went (goodput {ledger.get('goodput', 0):.0%}):"]
    for category, seconds in ledger.get("seconds", {}).items():
        if seconds >= 0.005 * elapsed_s:
            share = seconds / elapsed_s
            name = category.replace("_", " ")
            lines.append(f"  {name:<17} {formatting.duration(seconds):>8}  {share:>4.0%}  {formatting.bar(share, 30)}")
    return lines

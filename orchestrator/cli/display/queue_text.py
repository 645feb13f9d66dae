"""Runs in a queue, queues, nodes and tokens as text for the terminal."""

from collections.abc import Mapping, Sequence

from orchestrator.cli.display import formatting
from orchestrator.cli.display.plain_display import describe
from orchestrator.cli.display.run_view import ShownRun
from orchestrator.domain.events.event_codec import decode_event
from orchestrator.domain.queue.queue_states import QueueState
from orchestrator.metrics.jsonl import finite
from orchestrator.run_facts.quantity_text import DASH, ago, clock, loss, printable, when
from orchestrator.wire.cluster_messages import NodeView, QueueView, TokenView
from orchestrator.wire.record_messages import ProgressView
from orchestrator.wire.run_messages import RunEvent, RunView

SHORT_ID = 12
"""Characters of a node's id that are shown."""


def state_text(run: RunView) -> str:
    """The state as shown in a table: of an active run what it does."""
    if run.state is QueueState.ACTIVE and run.run_state is not None:
        return run.run_state.value
    return run.state.value


def runs_table(runs: Sequence[RunView], now_s: float) -> str:
    """A line for each run, the newest first."""
    rows: list[tuple[str, ...]] = [
        ("RUN", "STATE", "QUEUE", "PRIORITY", "USER", "WORKERS", "STEP", "LOSS", "LEFT", "SUBMITTED")
    ]
    rows += [_row(run, now_s) for run in runs]
    lines = formatting.table(rows).split("\n")
    waiting = [run for run in runs if run.waits is not None]
    if waiting:
        lines += ["", "waiting:"]
        lines += [f"  {run.id}  {wait_text(run, now_s)}" for run in waiting]
    return "\n".join(lines)


def _row(run: RunView, now_s: float) -> tuple[str, ...]:
    wanted = f"{run.min_workers}" if run.min_workers == run.max_workers else f"{run.min_workers}-{run.max_workers}"
    return (
        run.id,
        state_text(run),
        printable(run.queue),
        run.priority,
        printable(run.user),
        f"{run.workers} of {wanted}",
        f"{run.step}/{run.total_steps}" if run.total_steps else str(run.step),
        loss(run.loss),
        clock(run.eta_s) if run.eta_s is not None else DASH,
        ago(now_s - run.submitted_s),
    )


def wait_text(run: RunView, now_s: float) -> str:
    """Why a run waits, as one line; empty if it does not."""
    waits = run.waits
    if waits is None:
        return ""
    place = f"position {waits.position}: " if waits.position is not None else ""
    starts = f"; may start in {clock(max(0.0, waits.may_start_s - now_s))}" if waits.may_start_s is not None else ""
    return printable(f"{place}{waits.message}{starts}")


def run_text(run: RunView, progress: ProgressView | None, now_s: float) -> str:
    """Everything about one run."""
    resources = ", ".join(f"{amount_text(name, amount)}" for name, amount in sorted(run.worker_resources.items()))
    same = run.min_workers == run.max_workers
    wanted = f"{run.min_workers}" if same else f"{run.min_workers} to {run.max_workers}"
    rows = [
        ("state", state_text(run) + (f": {printable(run.reason)}" if run.reason else "")),
        *_wait_rows(run, now_s),
        ("queue", f"{printable(run.queue)}, priority {run.priority}, {printable(run.user)} ({printable(run.team)})"),
        ("workers", f"{run.workers} booked, {wanted} wanted" + (f", {resources} each" if resources else "")),
        ("nodes", ", ".join(f"{node[:SHORT_ID]}: {count}" for node, count in sorted(run.nodes.items())) or DASH),
        ("submitted", when(run.submitted_s) + (f", started {when(run.started_s)}" if run.started_s else "")),
    ]
    if run.ended_s is not None:
        rows.append(("ended", when(run.ended_s)))
    if run.attempt > 1 or run.retry_at_s is not None:
        later = f", tried again in {clock(max(0.0, run.retry_at_s - now_s))}" if run.retry_at_s is not None else ""
        rows.append(("attempt", f"{run.attempt}{later}"))
    if run.after:
        rows.append(("after", ", ".join(run.after)))
    if run.group:
        rows.append(("group", printable(run.group)))
    rows += _progress_rows(run, progress)
    rows.append(("directory", run.directory))
    lines = [f"  {label:<11}{text}" for label, text in rows]
    return "\n".join([f"{run.id}  {printable(run.name)}", *lines])


def _wait_rows(run: RunView, now_s: float) -> list[tuple[str, str]]:
    waits = run.waits
    if waits is None:
        return []
    rows = [("waits", printable(waits.message))]
    if waits.position is not None:
        rows.append(("position", "next" if waits.position == 1 else str(waits.position)))
    if waits.blockers:
        rows.append(("freed by", f"{', '.join(waits.blockers[:5])}{', ...' if len(waits.blockers) > 5 else ''}"))
    starts = "not known" if waits.may_start_s is None else f"in about {clock(max(0.0, waits.may_start_s - now_s))}"
    return [*rows, ("may start", starts)]


def _progress_rows(run: RunView, progress: ProgressView | None) -> list[tuple[str, str]]:
    step, total = (progress.step, progress.total_steps) if progress is not None else (run.step, run.total_steps)
    if not step and total is None:
        return []
    share = f" ({step / total:.0%})" if total else ""
    parts = [f"step {step}" + (f" of {total}{share}" if total else "")]
    value = progress.loss if progress is not None else run.loss
    if value is not None:
        parts.append(f"loss {loss(value)}")
    if progress is not None and progress.tokens_per_s is not None:
        parts.append(f"{formatting.count(progress.tokens_per_s)} tokens/s")
    rows = [("progress", ", ".join(parts))]
    eta_s = run.eta_s if run.eta_s is not None else progress.eta_s if progress is not None else None
    if eta_s is not None:
        rows.append(("time left", clock(eta_s)))
    if progress is not None:
        rows += [("incident", printable(text)) for text in progress.incidents]
        rows += [("warning", printable(text)) for text in progress.summary]
    return rows


def amount_text(name: str, amount: float) -> str:
    """`2 CPU`, `16 GiB memory`."""
    if name in ("memory", "object_store_memory"):
        return f"{formatting.size(amount)} {name}"
    return f"{amount:g} {name}"


def queues_table(queues: Sequence[QueueView]) -> str:
    """A line for each queue, then who waits in it."""
    rows: list[tuple[str, ...]] = [("QUEUE", "USED", "QUOTA", "LIMIT", "BORROWED", "WEIGHT", "RUNNING", "WAITING")]
    for each in queues:
        rows.append((
            printable(each.name), _amounts(each.used), _amounts(each.quota), _amounts(each.limit),
            _amounts(each.borrowed), f"{each.weight:g}", str(each.running), str(len(each.waiting)),
        ))  # fmt: skip
    lines = formatting.table(rows).split("\n")
    for each in queues:
        if each.waiting:
            more = f", and {len(each.waiting) - 10} more" if len(each.waiting) > 10 else ""
            lines += ["", f"{printable(each.name)}, in the order in which they would start:"]
            lines += [f"  {place}. {run}" for place, run in enumerate(each.waiting[:10], start=1)]
            lines += [f"  {more.removeprefix(', ')}"] if more else []
    return "\n".join(lines)


def nodes_table(nodes: Sequence[NodeView], now_s: float) -> str:
    """A line for each node."""
    rows: list[tuple[str, ...]] = [("NODE", "ADDRESS", "BOOKED", "OF", "WORKERS", "STATE")]
    for each in nodes:
        state = "ready"
        if each.draining:
            until = f", goes in {clock(max(0.0, each.deadline_s - now_s))}" if each.deadline_s is not None else ""
            state = f"draining{until}"
        runs = sum(each.runs.values())
        rows.append((each.id[:SHORT_ID], each.address, _amounts(each.booked), _amounts(each.total), str(runs), state))
    return formatting.table(rows)


def tokens_table(tokens: Sequence[TokenView], now_s: float) -> str:
    """A line for each token."""
    rows: list[tuple[str, ...]] = [("ID", "NAME", "USER", "TEAM", "ROLE", "CREATED", "EXPIRES", "USED", "STATE")]
    for each in tokens:
        expired = each.expires_s is not None and each.expires_s <= now_s
        rows.append((
            each.id, each.name, each.user, each.team, each.role, ago(now_s - each.created_s),
            "never" if each.expires_s is None else when(each.expires_s),
            DASH if each.last_used_s is None else ago(now_s - each.last_used_s),
            "revoked" if each.revoked else "expired" if expired else "valid",
        ))  # fmt: skip
    return formatting.table(rows)


def event_line(event: RunEvent) -> str:
    """One event. What a run's driver reports is worded as `convoy run` words it."""
    return f"{when(event.time_s)}  {event.source:<5}  {event.kind:<22}  {printable(_event_text(event))}".rstrip()


def _event_text(event: RunEvent) -> str:
    if event.source == "queue":
        return event.message
    fields = finite(event.data)
    line = {"kind": event.kind, "time_s": event.time_s, **(fields if isinstance(fields, dict) else {})}
    decoded = decode_event(line)
    text = describe(decoded.body, ShownRun()) if decoded is not None else None
    return text or ("" if event.message == event.kind else event.message)


def _amounts(amounts: Mapping[str, float]) -> str:
    shown = {name: amount for name, amount in amounts.items() if name in ("CPU", "GPU", "memory") and amount}
    return ", ".join(amount_text(name, amount) for name, amount in sorted(shown.items())) or DASH

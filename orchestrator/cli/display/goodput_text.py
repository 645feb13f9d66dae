"""The ledger of a run as text: what `convoy goodput` prints."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.cli.display import formatting
from orchestrator.goodput.ledger_result import IncidentTime, LedgerResult, NodeTime
from orchestrator.goodput.time_class import RECOVERY_CLASSES, STEP_CLASSES, TimeClass
from orchestrator.json_values import JsonObject

SHOWN_INCIDENTS = 20
BAR = 24
LEAST_USD = 0.0001
"""Amounts below are not shown in figures."""
NODE_ID = 8
"""Characters of a node's id that tell nodes of one address apart."""


@dataclass(frozen=True)
class RunLedger:
    """The ledger of one run."""

    run_id: str
    status: str
    active: bool
    ledger: LedgerResult

    def to_json(self, now_s: float) -> JsonObject:
        """For `--json`."""
        age_s = max(0.0, now_s - self.ledger.time_s) if self.active else None
        return {"run": self.run_id, "state": self.status, "age_s": age_s, **self.ledger.to_json()}


def goodput_text(run: RunLedger, by: str, now_s: float) -> str:
    """Head, and a table: `by` class, cause, node or incident."""
    tables = {"class": _by_class, "cause": _by_cause, "node": _by_node, "incident": _by_incident}
    rows = tables[by](run.ledger)
    body = formatting.table(rows) if len(rows) > 1 else "no incidents" if by == "incident" else "nothing was lost"
    lines = [*_head(run, now_s), "", body]
    if by == "class" and run.ledger.by_incident:
        newest, older = run.ledger.by_incident[-SHOWN_INCIDENTS:], len(run.ledger.by_incident) - SHOWN_INCIDENTS
        lines += ["", formatting.table(_incident_rows(newest, run.ledger.cost is not None))]
        lines += [f"... and {older} older ones (show them with --by incident)"] if older > 0 else []
    return "\n".join(lines)


def summary_table(runs: Sequence[RunLedger]) -> str:
    """A line for each of several runs."""
    rows: list[tuple[str, ...]] = [
        ("RUN", "STATE", "WORKERS", "RESERVED", "GOODPUT", "ETTR", "INCIDENTS", "GPU-HOURS", "SPENT", "LOST")
    ]
    for run in runs:
        ledger = run.ledger
        lost = sum(ledger.cost.lost_usd.values()) if ledger.cost is not None else None
        rows.append(
            (
                run.run_id,
                run.status,
                str(ledger.workers),
                formatting.duration(ledger.reserved_s),
                f"{ledger.goodput:.1%}",
                f"{ledger.ettr:.1%}",
                str(len(ledger.by_incident)),
                f"{ledger.gpu_hours:,.1f}",
                usd(ledger.cost.spent_usd if ledger.cost is not None else None),
                usd(lost),
            )
        )
    return formatting.table(rows)


def usd(amount: float | None) -> str:
    """`$1,234`, `$12.34`, `$0.0012`, `<$0.0001`."""
    if amount is None:
        return formatting.DASH
    if 0 < amount < LEAST_USD:
        return f"<${LEAST_USD}"
    if amount >= 1000:
        return f"${amount:,.0f}"
    return f"${amount:.2f}" if amount >= 0.1 or amount == 0 else f"${amount:.4f}"


def _head(run: RunLedger, now_s: float) -> list[str]:
    ledger = run.ledger
    age = f", {formatting.ago(now_s - ledger.time_s)}" if run.active else ""
    reserved = f"{formatting.duration(ledger.reserved_s)} of worker time in {formatting.duration(ledger.elapsed_s)}"
    lines = [
        f"{run.run_id}  {run.status}{age}",
        f"  goodput     {ledger.goodput:.1%}  {formatting.bar(ledger.goodput, BAR)}  of reserved worker time in steps"
        " that count",
        f"  ETTR        {ledger.ettr:.1%}  {formatting.bar(ledger.ettr, BAR)}  of wall time in steps that count",
        f"  reserved    {reserved}" + (f", {ledger.workers} workers now" if ledger.workers else ""),
    ]
    if ledger.gpu_hours:
        lines.append(f"  GPU-hours   {ledger.gpu_hours:,.2f}")
    if ledger.cost is not None:
        lost = sum(ledger.cost.lost_usd.values())
        per_million = ledger.cost.usd_per_million_tokens
        each = f", {usd(per_million)} per million tokens" if per_million is not None else ""
        lines.append(f"  cost        {usd(ledger.cost.spent_usd)} spent{each}, {usd(lost)} of it not productive")
    return lines


def _by_class(ledger: LedgerResult) -> list[tuple[str, ...]]:
    head = ("CLASS", "", "WORKER TIME", "SHARE", *_cost_head(ledger))
    whole, rows = ledger.reserved_s or 1.0, []
    for time_class in sorted(ledger.seconds, key=lambda each: -ledger.seconds[each]):
        seconds = ledger.seconds[time_class]
        share = seconds / whole
        spent = (usd(ledger.cost.spent_usd * share),) if ledger.cost is not None else ()
        counts = " +" if time_class in STEP_CLASSES else ""
        name = f"{time_class.value.replace('_', ' ')}{counts}"
        rows.append((name, formatting.bar(share, BAR), formatting.duration(seconds), f"{share:.1%}", *spent))
    return [head, *rows, ("+ counts for goodput", "", "", "", *("" for _ in _cost_head(ledger)))] if rows else [head]


def _by_cause(ledger: LedgerResult) -> list[tuple[str, ...]]:
    head = ("CAUSE", "", "LOST TIME", "SHARE", "INCIDENTS", *_cost_head(ledger))
    whole, rows = ledger.reserved_s or 1.0, []
    incidents = Counter(each.reason.value for each in ledger.by_incident)
    for cause in sorted(ledger.lost_s, key=lambda each: -ledger.lost_s[each]):
        seconds, count = ledger.lost_s[cause], incidents.get(cause.value, 0)
        spent = (usd(ledger.cost.lost_usd.get(cause)),) if ledger.cost is not None else ()
        share = seconds / whole
        name = cause.value.replace("_", " ")
        cells = (formatting.duration(seconds), f"{share:.1%}", str(count) if count else formatting.DASH)
        rows.append((name, formatting.bar(share, BAR), *cells, *spent))
    return [head, *rows]


def _by_node(ledger: LedgerResult) -> list[tuple[str, ...]]:
    head = (
        "NODE", "", "WORKERS", "RESERVED", "GOODPUT", "RECOVERY", "WAITING", "DATA WAIT", "STRAGGLING", "CAUSED LOSS",
        *_cost_head(ledger),
    )  # fmt: skip
    shared = Counter(node.node for node in ledger.by_node)
    rows = []
    for node in ledger.by_node:
        reserved_s = sum(node.seconds.values())
        good = sum(node.seconds.get(each, 0.0) for each in STEP_CLASSES) / reserved_s if reserved_s else 0.0
        recovery_s = sum(node.seconds.get(each, 0.0) for each in (*RECOVERY_CLASSES, TimeClass.RECOMPUTED))
        times = (TimeClass.WAITING, TimeClass.DATA_WAIT, TimeClass.STRAGGLING)
        cells = [recovery_s, *(node.seconds.get(each, 0.0) for each in times), node.caused_s]
        rows.append(
            (
                node.node or "(unknown)",
                node.node_id[-NODE_ID:] if shared[node.node] > 1 else "",
                str(node.workers),
                formatting.duration(reserved_s),
                f"{good:.1%}",
                *(formatting.duration(cell) if cell else formatting.DASH for cell in cells),
                *((usd(_spent(ledger, node)),) if ledger.cost is not None else ()),
            )
        )
    return [head, *rows]


def _spent(ledger: LedgerResult, node: NodeTime) -> float | None:
    if ledger.cost is None or not ledger.reserved_s:
        return None
    return ledger.cost.spent_usd * sum(node.seconds.values()) / ledger.reserved_s


def _by_incident(ledger: LedgerResult) -> list[tuple[str, ...]]:
    return _incident_rows(ledger.by_incident, ledger.cost is not None)


def _incident_rows(incidents: Sequence[IncidentTime], priced: bool) -> list[tuple[str, ...]]:
    head = ("INCIDENT", "CAUSE", "RANK", "NODE", "LOST TIME", "RECOVERY", "RECOMPUTED", "WAITING", "STEPS")
    rows: list[tuple[str, ...]] = [(*head, *(("COST",) if priced else ()))]
    for each in incidents:
        recovery_s = sum(each.seconds.get(name, 0.0) for name in RECOVERY_CLASSES)
        recomputed_s = each.seconds.get(TimeClass.RECOMPUTED, 0.0)
        times = (each.lost_s, recovery_s, recomputed_s, each.seconds.get(TimeClass.WAITING, 0.0))
        rows.append(
            (
                formatting.DASH if each.incident is None else f"{each.incident:03d}",
                each.reason.value.replace("_", " "),
                formatting.DASH if each.rank is None else str(each.rank),
                each.node or formatting.DASH,
                *(formatting.duration(seconds) if seconds else formatting.DASH for seconds in times),
                str(each.steps_recomputed),
                *((usd(each.lost_usd),) if priced else ()),
            )
        )
    return rows


def _cost_head(ledger: LedgerResult) -> tuple[str, ...]:
    return ("COST",) if ledger.cost is not None else ()

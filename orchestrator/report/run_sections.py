"""Sections of a report about the run as a whole: its head, bottlenecks, where time went, what happened. Pure."""

from collections.abc import Sequence

from orchestrator.goodput.ledger_result import Cost
from orchestrator.goodput.time_class import TimeClass
from orchestrator.report.bar_figures import timeline, waterfall
from orchestrator.report.html_text import Html, element, joined
from orchestrator.report.training_sections import nothing, section
from orchestrator.run_facts.quantity_text import change, clock, count, duration, loss, size, when
from orchestrator.run_facts.run_model import RunFacts
from orchestrator.run_facts.why.bottleneck import Bottleneck
from orchestrator.run_facts.why.diagnosis import Diagnosis

SHOWN_RECOVERIES = 100
SHOWN_CHECKPOINTS = 20
SHORT_CELL = 24
"""Characters of a cell that is not broken."""
TIME_STYLES = {
    TimeClass.PRODUCTIVE: "productive", TimeClass.IDLE_TAIL: "other", TimeClass.STARTUP: "start",
    TimeClass.EVALUATION: "work", TimeClass.EXPORT: "work", TimeClass.CHECKPOINT_STALL: "work",
    TimeClass.SNAPSHOT_STALL: "work", TimeClass.COMMUNICATION_WAIT: "work",
}  # fmt: skip
"""Style of a class of time; all others are lost time."""
SHOWN_CAUSES = 5
"""Of lost money, the largest."""


def head(run: RunFacts, now_s: float) -> Html:
    """Name, state and the figures that matter."""
    record = run.record
    badge = element("span", {"class": f"badge {record.status}"}, record.status)
    created = f"{when(record.created_s)}, {clock(max(0.0, run.end_s - record.created_s))} from start to end"
    lines = [element("p", {"class": "eyebrow"}, "Convoy run report"), element("h1", None, record.name, badge),
             element("p", {"class": "sub"}, element("code", None, record.id), " ", created)]  # fmt: skip
    if record.reason:
        lines.append(element("p", {"class": "reason"}, record.reason))
    tiles = element("dl", {"class": "tiles"}, *(_tile(*each) for each in _tiles(run)))
    return element("header", None, *lines, tiles)


def _tile(name: str, value: str, detail: str) -> Html:
    return element("div", None, element("dt", None, name), element("dd", None, value),
                   element("dd", {"class": "detail"}, detail))  # fmt: skip


def _tiles(run: RunFacts) -> list[tuple[str, str, str]]:
    record, training, ledger = run.record, run.training, run.ledger
    total = record.total_steps
    tiles = [("Steps", f"{record.step:,}", f"of {total:,}" if total else "")]
    if training is not None:
        first, last = training.first_loss, training.last_loss
        tiles.append(("Training loss", loss(last), f"from {loss(first)} ({change(first, last)})"))
    losses = run.events.validation.means
    if losses:
        tiles.append(("Validation loss", loss(losses[-1]), f"from {loss(losses[0])} ({change(losses[0], losses[-1])})"))
    if training is not None:
        mfu = f", MFU {training.mfu:.1%}" if training.mfu is not None else ""
        tiles.append(
            ("Tokens per second", count(training.tokens_per_s), f"{duration(training.step_time_s)} a step{mfu}")
        )
        tiles.append(("Tokens", count(training.tokens), f"{training.epoch or 0:.2f} epochs"))
        where = "on GPUs" if training.on_gpus else "on CPUs"
        tiles.append(("Workers", str(training.world_size), f"{where}, {_parameters(run)}"))
    if ledger is not None:
        cost = "" if ledger.cost is None else f", ${ledger.cost.spent_usd:,.2f}"
        tiles.append(("Goodput", f"{ledger.goodput:.0%}", f"of {duration(ledger.elapsed_s)}{cost}"))
    recoveries = run.events.totals
    tiles.append(("Recoveries", str(recoveries.recoveries), _recovery_cost(run) if recoveries.recoveries else "none"))
    return tiles


def _parameters(run: RunFacts) -> str:
    plan = run.events.plan
    return f"{count(plan.parameters)} parameters" if plan is not None else ""


def _recovery_cost(run: RunFacts) -> str:
    totals = run.events.totals
    repeated = totals.steps_recomputed
    return f"{duration(totals.recovery_s)}, {repeated} step{'' if repeated == 1 else 's'} repeated"


def bottlenecks(diagnosis: Diagnosis) -> Html:
    """What bounds the speed."""
    parts = [_card(number, each) for number, each in enumerate(diagnosis.found, 1)]
    if not parts:
        parts = [element("p", {"class": "fine"}, f"{diagnosis.summary[:1].upper()}{diagnosis.summary[1:]}.")]
    if diagnosis.not_judged:
        items = element("ul", None, *(element("li", None, reason) for reason in diagnosis.not_judged))
        parts.append(element("details", None, element("summary", None, "What could not be judged"), items))
    return section("why", "What bounds the speed", *parts)


def _card(number: int, found: Bottleneck) -> Html:
    bar = element("div", {"class": "meter", "aria-hidden": "true"},
                  element("i", {"style": f"width:{min(1.0, found.share):.1%}"}))  # fmt: skip
    title = f"{found.headline[:1].upper()}{found.headline[1:]}"
    return element(
        "article", {"class": "finding"},
        element("h3", None, element("b", None, str(number)), title, element("span", None, found.figure)),
        bar,
        element("ul", {"class": "evidence"}, *(element("li", None, item) for item in found.evidence)),
        element("ul", {"class": "advice"}, *(element("li", None, _with_code(item)) for item in found.advice)),
    )  # fmt: skip


def _with_code(text: str) -> Html:
    """Text whose parts between backquotes are code."""
    pieces = text.split("`")
    return joined(element("code", None, piece) if index % 2 else piece for index, piece in enumerate(pieces))


def time_spent(run: RunFacts) -> Html:
    """Where the time went."""
    ledger = run.ledger
    if ledger is None or not ledger.reserved_s:
        return section("time", "Where the time went", nothing("The run has no ledger."))
    worker_time = f"{duration(ledger.reserved_s)} of worker time"
    lead = f"{ledger.goodput:.0%} of {worker_time} was spent on training steps that count (goodput)."
    lead += f" Effective training time ratio: {ledger.ettr:.0%}."
    parts = [element("p", {"class": "lead"}, lead), waterfall(ledger, TIME_STYLES)]
    if ledger.cost is not None:
        parts.insert(1, element("p", {"class": "lead"}, _cost(ledger.cost)))
    return section("time", "Where the time went", *parts)


def _cost(cost: Cost) -> str:
    text = f"It cost ${cost.spent_usd:,.2f}"
    if cost.usd_per_million_tokens is not None:
        text += f", ${cost.usd_per_million_tokens:,.2f} per million tokens"
    lost = sorted(((usd, cause) for cause, usd in cost.lost_usd.items() if usd >= 0.01), reverse=True)[:SHOWN_CAUSES]
    if lost:
        text += "; lost: " + ", ".join(f"${usd:,.2f} to {cause.value.replace('_', ' ')}" for usd, cause in lost)
    return text + "."


def history(run: RunFacts) -> Html:
    """Generations, recoveries and checkpoints over time."""
    figure = timeline(run)
    parts = [figure or nothing("The run has no events."), _generation_table(run), _recovery_table(run)]
    parts.append(_checkpoint_table(run))
    return section("history", "What happened", *parts)


def _table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: frozenset[int]) -> Html:
    head_row = element("tr", None, *(_column_head(name, index in numbers) for index, name in enumerate(heads)))
    body = [element("tr", None, *(_cell(cell, index in numbers) for index, cell in enumerate(row))) for row in rows]
    table = element("table", {"class": "plain"}, element("caption", None, caption), element("thead", None, head_row),
                    element("tbody", None, *body))  # fmt: skip
    return element("div", {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": caption}, table)


def _cell(text: str, number: bool) -> Html:
    """Short texts stay on one line."""
    style = "number" if number else "short" if len(text) <= SHORT_CELL else ""
    return element("td", {"class": style} if style else None, text)


def _column_head(name: str, number: bool) -> Html:
    return element("th", {"scope": "col", **({"class": "number"} if number else {})}, name)


def _generation_table(run: RunFacts) -> Html:
    found = list(run.events.periods.generations)[-SHOWN_RECOVERIES:]
    if not found:
        return Html("")
    rows = [
        (str(each.number), str(each.world_size), f"{each.micro_batch} x {each.accumulation}", when(each.started_s),
         duration((run.end_s if each.ended_s is None else each.ended_s) - each.started_s), each.ending or "active")
        for each in found
    ]  # fmt: skip
    heads = ("generation", "workers", "micro batch x accumulation", "formed", "lasted", "ended")
    return _table("Generations of workers", heads, rows, frozenset({0, 1, 4}))


def _recovery_table(run: RunFacts) -> Html:
    found = list(run.events.periods.recoveries)[-SHOWN_RECOVERIES:]
    if not found:
        return Html("")
    rows = [
        (str(each.incident), when(each.detected_s), "all ranks" if each.rolled_back else f"rank {each.rank}",
         each.cause.split("\n")[0][:200], f"{each.step:,}", f"{each.from_step:,} ({each.source})",
         "not over" if each.seconds is None else duration(each.seconds), str(each.steps_recomputed))
        for each in found
    ]  # fmt: skip
    heads = ("incident", "detected", "who", "cause", "after step", "continued from", "took", "steps repeated")
    return _table("Recoveries", heads, rows, frozenset({0, 4, 6, 7}))


def _checkpoint_table(run: RunFacts) -> Html:
    saved = list(zip(run.events.checkpoints, run.kept, strict=True))
    if not saved:
        return Html("")
    states = {True: "kept", False: "removed", None: "in the bucket"}
    rows = [
        (f"{each.step:,}", size(each.bytes), duration(each.seconds),
         "-" if each.write_seconds is None else duration(each.write_seconds), states[kept])
        for each, kept in saved[-SHOWN_CHECKPOINTS:]
    ]  # fmt: skip
    older = run.events.totals.checkpoints - len(rows)
    caption = (
        "Checkpoints" if older <= 0 else f"Checkpoints (the newest {len(rows)} of {run.events.totals.checkpoints})"
    )
    heads = ("step", "size", "training paused", "written in the background", "now")
    return _table(caption, heads, rows, frozenset({0, 1, 2, 3}))

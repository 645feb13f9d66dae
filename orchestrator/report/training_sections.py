"""Sections of a report about the training itself: learning, speed, memory. Pure."""

from collections.abc import Sequence
from math import log

from orchestrator.report.bar_figures import rank_bars
from orchestrator.report.html_text import Html, element
from orchestrator.report.line_chart import ChartLine, LineChart, line_chart, series
from orchestrator.run_facts.curve import Curve
from orchestrator.run_facts.quantity_text import count, duration, loss, size
from orchestrator.run_facts.run_model import RunFacts
from orchestrator.run_facts.step_point import PHASES

MOST_MARKS = 60
PHASE_COLOURS = {"data_wait": 5, "forward": 1, "backward": 4, "optimizer": 3, "checkpoint": 6, "snapshot": 2}


def section(name: str, title: str, *children: str) -> Html:
    """A section of the page, with its anchor."""
    return element("section", {"id": name, "aria-labelledby": f"{name}-title"},
                   element("h2", {"id": f"{name}-title"}, title), *children)  # fmt: skip


def nothing(why: str) -> Html:
    """In place of a figure that cannot be made."""
    return element("p", {"class": "empty"}, why)


def learning(run: RunFacts) -> Html:
    """Training and validation loss, learning rate, gradient norm."""
    curves, validation = run.steps.series.curves, run.events.validation
    if not len(curves["loss"]) and not len(validation):
        return section("learning", "Learning", nothing("No step was finished."))
    lines = [series("training loss", curves["loss"], 1, band=True)]
    if len(validation):
        lines.append(series("validation loss", validation, 2, dotted=True))
    main = LineChart("Loss", tuple(lines), loss, marks=_marks(run), note=_loss_note(run), tall=True)
    rate = LineChart("Learning rate", (series("learning rate", curves["lr"], 3),), _small, from_zero=True)
    norm = LineChart("Gradient norm", (series("gradient norm", curves["grad_norm"], 4, band=True),), _plain,
                     from_zero=True, note="before clipping")  # fmt: skip
    pair = element("div", {"class": "pair"}, line_chart(rate), line_chart(norm))
    return section("learning", "Learning", line_chart(main), pair)


def speed(run: RunFacts) -> Html:
    """Throughput, phases of a step, and how far the ranks are apart."""
    curves, totals = run.steps.series.curves, run.steps.series.totals
    if not totals.steps:
        return section("speed", "Speed", nothing("No step was finished."))
    pace = LineChart(
        "Throughput", (series("tokens per second", curves["tokens_per_s"], 1, band=True),),
        lambda value: f"{count(value)} tokens/s", tick=count, from_zero=True, marks=_marks(run),
    )  # fmt: skip
    shown = [phase for phase in PHASES if totals.phase_s(phase) > 0]
    areas = tuple(_phase_series(phase, curves[f"{phase}_s"]) for phase in shown)
    phases = LineChart("Phases of a step", areas, _seconds, from_zero=True, stacked=True,
                       note="seconds, mean over the ranks")  # fmt: skip
    parts = [line_chart(pace), element("div", {"class": "pair"}, line_chart(phases), _phase_table(run, shown))]
    if run.steps.series.last is not None and run.steps.series.last.world_size > 1:
        parts.append(line_chart(_spread_chart(run)))
    return section("speed", "Speed", *parts)


def memory(run: RunFacts) -> Html:
    """Peak memory over the steps, and of each rank."""
    curves, last = run.steps.series.curves, run.steps.series.last
    if last is None or not last.memory_max_bytes:
        return section("memory", "Memory", nothing("Memory was not recorded."))
    where = "on the GPUs" if last.on_gpus else "resident on the hosts"
    lines = [series("the worker with the most", curves["memory_max_bytes"], 3)]
    if last.world_size > 1:
        lines.append(series("median worker", curves["memory_median_bytes"], 1))
    chart = LineChart(
        f"Peak memory {where}", tuple(lines), size, tick=size, unit=_binary_unit(last.memory_max_bytes), from_zero=True
    )
    peaks = [rank.memory.peak_allocated_bytes if last.on_gpus else rank.memory.peak_rss_bytes for rank in run.ranks]
    bars = rank_bars([float(peak or 0) for peak in peaks], size, "Peak of each rank, when all were last recorded")
    if not bars:
        return section("memory", "Memory", line_chart(chart))
    return section("memory", "Memory", element("div", {"class": "pair"}, line_chart(chart), bars))


def _phase_series(phase: str, curve: Curve) -> ChartLine:
    return series(phase.replace("_", " "), curve, PHASE_COLOURS[phase])


def _phase_table(run: RunFacts, shown: Sequence[str]) -> Html:
    totals = run.steps.series.totals
    rows = [(phase.replace("_", " "), totals.phase_s(phase)) for phase in shown]
    rest_s = totals.step_time_s - sum(seconds for _, seconds in rows)
    if rest_s > 0:
        rows.append(("between phases", rest_s))
    if totals.collective_s > 0:
        rows.append(("in collectives (part of the above)", totals.of_all_steps(totals.collective_s)))
    cells = [
        element(
            "tr", None,
            element("th", {"scope": "row"}, name),
            element("td", {"class": "number"}, _seconds(seconds / totals.steps)),
            element("td", {"class": "number"}, f"{seconds / max(1e-9, totals.step_time_s):.1%}"),
        )
        for name, seconds in rows
    ]  # fmt: skip
    number = {"scope": "col", "class": "number"}
    head = element("tr", None, element("th", {"scope": "col"}, "phase"), element("th", number, "per step"),
                   element("th", number, "share"))  # fmt: skip
    caption = element("caption", None, f"Mean over {totals.steps:,} steps of {duration(_mean_step_s(run))}")
    return element("table", {"class": "plain"}, caption, element("thead", None, head), element("tbody", None, *cells))


def _mean_step_s(run: RunFacts) -> float:
    totals = run.steps.series.totals
    return totals.step_time_s / max(1, totals.steps)


def _spread_chart(run: RunFacts) -> LineChart:
    curves = run.steps.series.curves
    lines = (series("slowest rank", curves["own_max_s"], 2), series("median rank", curves["own_median_s"], 1))
    return LineChart("Own time of the ranks", lines, _seconds, from_zero=True,
                     note="seconds of a step without waits for other ranks")  # fmt: skip


def _marks(run: RunFacts) -> tuple[tuple[int, str], ...]:
    found = [
        (each.step, "rolled back" if each.rolled_back else f"worker {each.rank} lost")
        for each in run.events.periods.recoveries
    ]
    return tuple(found[-MOST_MARKS:])


def _loss_note(run: RunFacts) -> str:
    points = run.steps.series.curves["loss"]
    steps = run.steps.series.totals.steps
    note = "nats per token"
    if len(points) < steps:
        note += f"; each point is the mean of up to {-(-steps // max(1, len(points)))} steps, the area their range"
    return note + ("; vertical lines: recoveries" if run.events.periods.recoveries else "")


def _binary_unit(most_bytes: float) -> float:
    """MiB, GiB, ...: ticks are round in it."""
    return 1024.0 ** int(log(max(most_bytes, 1.0), 1024))


def _small(value: float) -> str:
    return f"{value:.3g}" if value >= 0.001 else f"{value:.2e}" if value else "0"


def _plain(value: float) -> str:
    return f"{value:.3f}"


def _seconds(value: float) -> str:
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1000:.0f} ms" if value >= 0.01 or not value else f"{value * 1000:.1f} ms"

"""Figures made of bars: where the time went, memory of the ranks, what the run went through over time. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.goodput.ledger_result import LedgerResult
from orchestrator.goodput.time_class import TimeClass
from orchestrator.report.html_text import Html, element
from orchestrator.run_facts.quantity_text import clock, duration, when
from orchestrator.run_facts.run_model import RunFacts
from orchestrator.run_facts.run_periods import GangPeriod, StatePeriod

MOST_BARS = 64
LEAST_SHARE = 0.001
"""Classes of time below this share are added up."""
MOST_SEGMENTS = 300
"""Periods of one kind in the timeline, the newest."""
_NARROW = 0.045
"""Share of the width below which a segment has no room for its text."""


@dataclass(frozen=True)
class _LaneSegment:
    started_s: float
    ended_s: float
    kind: str
    """Style of the segment."""
    label: str
    title: str


def waterfall(ledger: LedgerResult, styles: Mapping[TimeClass, str]) -> Html:
    """Where the time of the workers went: each class begins where the one before it ends. `styles`: of classes that are
    not lost time."""
    rows, offset, rest = [], 0.0, 0.0
    for time_class, seconds in sorted(ledger.seconds.items(), key=lambda each: -each[1]):
        share = seconds / ledger.reserved_s
        if share < LEAST_SHARE:
            rest += seconds
            continue
        name = time_class.value.replace("_", " ")
        rows.append(_waterfall_row(name, seconds, share, offset, styles.get(time_class, "lost")))
        offset += share
    if rest / ledger.reserved_s >= LEAST_SHARE / 10:
        rows.append(_waterfall_row("all others", rest, rest / ledger.reserved_s, offset, "other"))
    number = {"scope": "col", "class": "number"}
    head = element("tr", None, element("td"), element("th", number, "time"), element("th", number, "share"),
                   element("td"))  # fmt: skip
    return element("table", {"class": "waterfall"}, element("thead", None, head), element("tbody", None, *rows))


def _waterfall_row(name: str, seconds: float, share: float, offset: float, kind: str) -> Html:
    style = f"margin-left:{min(offset, 0.999):.2%};width:{max(share, 0.001):.2%}"
    return element(
        "tr", None,
        element("th", {"scope": "row"}, name),
        element("td", {"class": "number"}, duration(seconds)),
        element("td", {"class": "number"}, f"{share:.1%}"),
        element("td", {"class": "bars"}, element("i", {"class": f"bar {kind}", "style": style})),
    )  # fmt: skip


def rank_bars(values: Sequence[float], write: Callable[[float], str], what: str) -> Html:
    """A bar for each rank; of many ranks the highest ones."""
    highest = max(values, default=0.0)
    if highest <= 0:
        return Html("")
    order = sorted(range(len(values)), key=lambda rank: -values[rank])[:MOST_BARS]
    rows = [
        element(
            "tr", None,
            element("th", {"scope": "row"}, f"rank {rank}"),
            element("td", {"class": "number"}, write(values[rank])),
            element("td", {"class": "bars"},
                    element("i", {"class": "bar c3", "style": f"width:{values[rank] / highest:.2%}"})),
        )
        for rank in sorted(order)
    ]  # fmt: skip
    more = len(values) - len(order)
    note = element("p", {"class": "note"}, f"and {more} ranks with less") if more else Html("")
    caption = element("caption", None, what)
    return element("div", {"class": "ranks"}, element("table", {"class": "waterfall"}, caption, *rows), note)


def timeline(run: RunFacts) -> Html:
    """States and generations over wall-clock time, with recoveries."""
    periods, end_s = run.events.periods, run.end_s
    first_s = periods.first_s
    if first_s is None or end_s <= first_s:
        return Html("")
    states = [_state_segment(each, end_s) for each in periods.states if each.ended_s != each.started_s]
    gangs = [_gang_segment(each, end_s) for each in periods.generations]
    marks = [(each.time_s, each.kind, each.text) for each in periods.marks]
    span_s = end_s - first_s

    def place(time_s: float) -> float:
        return min(1.0, max(0.0, (time_s - first_s) / span_s))

    ticks = [element("span", {"style": f"left:{index / 4:.2%}"}, clock(span_s * index / 4)) for index in range(5)]
    return element(
        "div", {"class": "timeline"},
        _lane("state", states[-MOST_SEGMENTS:], place),
        _lane("workers", gangs[-MOST_SEGMENTS:], place),
        _mark_lane([mark for mark in marks if mark[1] != "checkpoint.saved"][-MOST_SEGMENTS:], "events", place),
        _mark_lane([mark for mark in marks if mark[1] == "checkpoint.saved"][-MOST_SEGMENTS:], "checkpoints", place),
        element("div", {"class": "lane ticks", "aria-hidden": "true"}, element("b"), element("div", None, *ticks)),
    )  # fmt: skip


def _state_segment(period: StatePeriod, end_s: float) -> _LaneSegment:
    ended_s = end_s if period.ended_s is None else period.ended_s
    state = period.state.value
    return _LaneSegment(period.started_s, ended_s, state, state, f"{state} from {when(period.started_s)}")


def _gang_segment(gang: GangPeriod, end_s: float) -> _LaneSegment:
    ended_s = end_s if gang.ended_s is None else gang.ended_s
    title = f"generation {gang.number}: {gang.world_size} workers from {when(gang.started_s)}"
    ending = f", {gang.ending}" if gang.ending else ""
    return _LaneSegment(gang.started_s, ended_s, "gang", str(gang.world_size), title + ending)


def _lane(name: str, segments: Sequence[_LaneSegment], place: Callable[[float], float]) -> Html:
    shown = []
    for each in segments:
        left, right = place(each.started_s), place(each.ended_s)
        style = f"left:{left:.3%};width:{max(right - left, 0.001):.3%}"
        label = each.label if right - left >= _NARROW else ""
        shown.append(element("i", {"class": f"segment {each.kind}", "style": style, "title": each.title}, label))
    return element("div", {"class": "lane"}, element("b", None, name), element("div", None, *shown))


def _mark_lane(marks: Sequence[tuple[float, str, str]], name: str, place: Callable[[float], float]) -> Html:
    if not marks:
        return Html("")
    kinds = {"recovery.started": "bad", "recovery.finished": "good", "worker.hung": "bad", "gang.resized": "changed"}
    shown = [
        element("i", {"class": f"pin {kinds.get(kind, 'saved')}", "style": f"left:{place(time_s):.3%}",
                      "title": f"{when(time_s)}: {what}"})
        for time_s, kind, what in marks
    ]  # fmt: skip
    return element("div", {"class": "lane pins"}, element("b", None, name), element("div", None, *shown))

"""Reading what a run recorded: its steps and events, as values."""

import contextlib
import heapq
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from orchestrator.domain.events import Event
from orchestrator.domain.events.event_codec import decode_event
from orchestrator.domain.ranks.rank_report import RankReport
from orchestrator.domain.ranks.rank_summary import ranks_from_columns
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.goodput.ledger_recorder import Fact
from orchestrator.json_values import JsonObject, JsonShapeError
from orchestrator.metrics.jsonl import last_object, objects_after, read_jsonl


def read_steps(path: Path) -> Iterator[StepReport]:
    """Every step report of a `steps.jsonl`, in the order written; after a resume a step may come twice, and the later
    record supersedes. Lines that are cut short or from an incompatible version are skipped. In a line of version 2 the
    ranks are summarised: see `read_last_ranks`."""
    yield from _steps_of(read_jsonl(path))


def read_last_ranks(layout: RunLayout) -> tuple[RankReport, ...]:
    """The reports of every rank that were recorded last; empty if there are none."""
    last = last_object(layout.ranks)
    with contextlib.suppress(JsonShapeError):
        return ranks_from_columns(last) if last is not None else ()
    return ()


def current_steps(path: Path) -> list[StepReport]:
    """The steps that count, sorted by step: later records of a step supersede earlier ones, and a resume from an
    earlier step supersedes everything from there on."""
    kept: list[StepReport] = []
    for report in read_steps(path):
        while kept and kept[-1].step >= report.step:
            kept.pop()
        kept.append(report)
    return kept


def read_events(path: Path) -> Iterator[Event]:
    """Every event of an `events.jsonl`. What this version cannot read is an `UnknownEvent`; lines that are no events
    are left out."""
    yield from _events_of(read_jsonl(path))


def facts_after(layout: RunLayout, time_s: float | None) -> Iterator[Fact]:
    """The events and step reports that were recorded after a time in Unix seconds, or all of them, by time."""
    if time_s is None:
        lines, steps = read_jsonl(layout.events), read_jsonl(layout.steps)
    else:
        lines, steps = iter(objects_after(layout.events, time_s)), iter(objects_after(layout.steps, time_s))
    yield from heapq.merge(_in_order(_events_of(lines)), _in_order(_steps_of(steps)), key=lambda fact: fact.time_s)


def _events_of(lines: Iterator[JsonObject]) -> Iterator[Event]:
    return (event for event in map(decode_event, lines) if event is not None)


def _steps_of(lines: Iterator[JsonObject]) -> Iterator[StepReport]:
    for line in lines:
        with contextlib.suppress(JsonShapeError):
            yield StepReport.from_json(line)


def _in_order(facts: Iterator[Fact]) -> Iterator[Fact]:
    """With times that do not go back: a file is in the order of arrival, whatever clocks of other hosts say."""
    latest_s = 0.0
    for fact in facts:
        latest_s = max(latest_s, fact.time_s)
        yield fact if fact.time_s == latest_s else replace(fact, time_s=latest_s)

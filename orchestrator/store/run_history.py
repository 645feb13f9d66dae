"""Reading what a run recorded: its steps and events, as values."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from orchestrator.domain.events import Event
from orchestrator.domain.events.event_codec import decode_event
from orchestrator.domain.ranks.rank_report import RankReport
from orchestrator.domain.ranks.rank_summary import ranks_from_columns
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.json_values import JsonShapeError
from orchestrator.metrics.jsonl import last_object, read_jsonl


def read_steps(path: Path) -> Iterator[StepReport]:
    """Every step report of a `steps.jsonl`, in the order written; after a resume a step may come twice, and the later
    record supersedes. Lines that are cut short or from an incompatible version are skipped. In a line of version 2 the
    ranks are summarised: see `read_last_ranks`."""
    for value in read_jsonl(path):
        with contextlib.suppress(JsonShapeError):
            yield StepReport.from_json(value)


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
    for value in read_jsonl(path):
        event = decode_event(value)
        if event is not None:
            yield event

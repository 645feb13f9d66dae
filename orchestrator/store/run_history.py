"""Reading what a run recorded: its steps and events, as values."""

from collections.abc import Iterator
from pathlib import Path

from orchestrator.domain.events import Event
from orchestrator.domain.events.event_codec import decode_event
from orchestrator.domain.step_report import StepReport
from orchestrator.metrics.jsonl import read_jsonl


def read_steps(path: Path) -> Iterator[StepReport]:
    """Every step report of a `steps.jsonl`, in the order written; after a resume a step may come twice, and the later
    record supersedes. Lines that are cut short or from an incompatible version are skipped."""
    for value in read_jsonl(path):
        try:
            yield StepReport.from_json(value)
        except (KeyError, TypeError):
            continue


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

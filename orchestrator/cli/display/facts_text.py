"""The text of `convoy show`, made from the read model of a run."""

import math
from collections.abc import Sequence
from typing import TypeVar

from orchestrator.cli.display import formatting
from orchestrator.cli.display.end_summary import command
from orchestrator.domain.events import RunState
from orchestrator.run_facts.lenient_json import whole_or_none
from orchestrator.run_facts.run_model import RunFacts
from orchestrator.run_facts.time_use import TimeUse

_T = TypeVar("_T")


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
    total = formatting.duration(use.total_s) + (" of worker time" if use.of_workers else "")
    lines = ["", f"Where {total} went (goodput {use.goodput:.0%}):"]
    for category, seconds in use.seconds.items():
        share = use.share(category)
        if share >= 0.005:
            name = category.replace("_", " ")
            lines.append(f"  {name:<17} {formatting.duration(seconds):>8}  {share:>4.0%}  {formatting.bar(share, 30)}")
    return lines


def _newest(items: Sequence[_T]) -> list[_T]:
    """The last three."""
    return list(items)[-3:]


def _or_nan(loss: float | None) -> float:
    """A loss that is recorded as null is not a number."""
    return math.nan if loss is None else loss

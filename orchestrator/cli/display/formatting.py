"""Figures of a run as text for the terminal. What a report also prints is in `run_facts.quantity_text`."""

from collections.abc import Sequence

from orchestrator.domain.events import AcceptedChange, RecoveryFinished
from orchestrator.run_facts.quantity_text import DASH as DASH
from orchestrator.run_facts.quantity_text import ago as ago
from orchestrator.run_facts.quantity_text import bar as bar
from orchestrator.run_facts.quantity_text import change as change
from orchestrator.run_facts.quantity_text import clock as clock
from orchestrator.run_facts.quantity_text import count as count
from orchestrator.run_facts.quantity_text import duration as duration
from orchestrator.run_facts.quantity_text import loss as loss
from orchestrator.run_facts.quantity_text import printable as printable
from orchestrator.run_facts.quantity_text import size as size
from orchestrator.run_facts.quantity_text import sparkline as sparkline
from orchestrator.run_facts.quantity_text import when as when


def recoveries(finished: Sequence[RecoveryFinished]) -> str:
    """`2 times, 13.4 s and 7 steps recomputed in all`."""
    seconds = sum(each.seconds for each in finished)
    steps = sum(each.steps_recomputed for each in finished)
    times = "once" if len(finished) == 1 else f"{len(finished)} times"
    return f"{times}, {duration(seconds)} and {steps} step{'s' if steps != 1 else ''} recomputed in all"


def changes(found: Sequence[AcceptedChange], limit: int = 5) -> list[str]:
    """`data: 2 files were added to texts/*.txt: a.txt, b.txt`, a line for each."""
    lines = [printable(f"{each.part}: {each.what}") for each in found[:limit]]
    return lines + ([f"and {len(found) - limit} more"] if len(found) > limit else [])


def table(rows: list[tuple[str, ...]]) -> str:
    """Columns as wide as their content: the first two aligned left, the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )

"""The text of `convoy why`."""

import textwrap

from orchestrator.cli.display import formatting
from orchestrator.run_facts.run_model import RunFacts
from orchestrator.run_facts.why.diagnosis import Diagnosis

WIDTH = 100
"""Of a line, in characters."""


def text(run: RunFacts, diagnosis: Diagnosis) -> str:
    """What was found, the largest share first."""
    record, steps = run.record, diagnosis.steps
    head = f"{record.id}  {record.status}, {steps:,} steps in {formatting.duration(diagnosis.wall_s)} of wall clock"
    lines = [head, ""]
    if not diagnosis.found:
        lines.append(f"  {diagnosis.summary}")
    for number, each in enumerate(diagnosis.found, 1):
        lines.append(f"{number}. {each.headline}: {each.figure}")
        for item in each.evidence:
            lines += _wrapped(formatting.printable(item), "     ", "     ")
        for item in each.advice:
            lines += _wrapped(formatting.printable(item), "   > ", "     ")
        lines.append("")
    if diagnosis.not_judged:
        lines += ["", "Not judged:", *(f"  {reason}" for reason in diagnosis.not_judged)]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip()


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), WIDTH, initial_indent=first, subsequent_indent=rest,
                         break_long_words=False, break_on_hyphens=False)  # fmt: skip

"""The tables of states in `docs/architecture.md`, of a run and of a run in the queue: `python -m
orchestrator.run.state_reference` writes them."""

import sys
from pathlib import Path

from orchestrator.domain.queue.queue_states import queue_transitions_markdown
from orchestrator.domain.run_states import transitions_markdown

TABLES = (("states", transitions_markdown), ("queue states", queue_transitions_markdown))
"""Name of the marks around each, and what makes it."""


def with_table(document: str) -> str:
    """The document with the present tables between their marks. Raises ValueError if it lacks marks."""
    for name, table in TABLES:
        begin, end = f"<!-- {name} begin -->\n", f"<!-- {name} end -->\n"
        head, _ = document.split(begin)
        _, tail = document.split(end)
        document = f"{head}{begin}\n{table()}\n{end}{tail}"
    return document


def main() -> None:
    """Write the tables into this checkout's document."""
    path = Path(__file__).parents[2] / "docs" / "architecture.md"
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
    print("wrote the states in docs/architecture.md", file=sys.stderr)


if __name__ == "__main__":
    main()

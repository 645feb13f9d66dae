"""The table of a run's states in `docs/architecture.md`: `python -m orchestrator.run.state_reference` writes it."""

import sys
from pathlib import Path

from orchestrator.domain.run_states import transitions_markdown

BEGIN, END = "<!-- states begin -->\n", "<!-- states end -->\n"


def with_table(document: str) -> str:
    """The document with the present table between its marks. Raises ValueError if it has no marks."""
    head, _ = document.split(BEGIN)
    _, tail = document.split(END)
    return f"{head}{BEGIN}\n{transitions_markdown()}\n{END}{tail}"


def main() -> None:
    """Write the table into this checkout's document."""
    path = Path(__file__).parents[2] / "docs" / "architecture.md"
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
    print("wrote the states in docs/architecture.md", file=sys.stderr)


if __name__ == "__main__":
    main()

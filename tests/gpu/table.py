"""Results of the checks, and the table that is made of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One measured value. `met`: None if there is no bar."""

    what: str
    value: str
    bar: str = ""
    met: bool | None = None


@dataclass
class Result:
    """Of one check."""

    check: str
    rows: list[Row] = field(default_factory=list)
    skipped: str | None = None
    """Why it could not run."""
    failed: str | None = None
    """What went wrong; the rows up to then count."""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.failed is None and all(row.met is not False for row in self.rows)

    def add(self, what: str, value: str, bar: str = "", met: bool | None = None) -> None:
        self.rows.append(Row(what, value, bar, met))

    def require(self, what: str, held: bool, value: str = "yes") -> None:
        """A statement that must hold."""
        self.rows.append(Row(what, value if held else "NO", "yes", held))


def as_markdown(facts: Sequence[tuple[str, str]], results: Sequence[Result]) -> str:
    """Facts of the machine, and all rows, as two tables."""
    lines = ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in facts), ""]
    lines += ["| check | what | measured | bar | |", "| --- | --- | --- | --- | --- |"]
    for result in results:
        name = f"{result.check} ({result.seconds:.0f} s)"
        for row in result.rows:
            lines.append(f"| {name} | {row.what} | {row.value} | {row.bar} | {_verdict(row.met)} |")
        if result.skipped is not None:
            lines.append(f"| {name} | not run: {result.skipped} | | | |")
        if result.failed is not None:
            first = result.failed.strip().splitlines()[-1].replace("|", "/")[:200]
            lines.append(f"| {name} | failed: {first} | | | not met |")
    return "\n".join(lines) + "\n"


def _verdict(met: bool | None) -> str:
    return "" if met is None else "met" if met else "not met"


def as_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Plain values, for a file."""
    return [
        {
            "check": result.check, "seconds": result.seconds, "skipped": result.skipped, "failed": result.failed,
            "rows": [vars(row) for row in result.rows],
        }
        for result in results
    ]  # fmt: skip

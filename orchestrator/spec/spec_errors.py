"""What is wrong with a job file, and where."""

from dataclasses import dataclass

from orchestrator.base_error import ConvoyError

Path = tuple[str | int, ...]
"""Where a value is in a job: keys and list indexes, e.g. `("data", "sources", 0, "weight")`."""


@dataclass(frozen=True, order=True)
class Place:
    """A position in a text the user wrote. `file` is the job file, or the whole option for `--set`."""

    file: str
    line: int = 1
    """From 1."""
    column: int = 1
    """From 1, in characters."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


def printable(text: str) -> str:
    """`text` on one line, without characters that would move a terminal's cursor or change its colours."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@dataclass(frozen=True)
class Problem:
    """One mistake: where, what is wrong and what was expected, and what to do about it."""

    place: Place
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        text = printable(f"{self.place}: {self.message}")
        return f"{text}\n  hint: {printable(self.hint)}" if self.hint else text

    def to_json(self) -> dict[str, str | int | None]:
        """A JSON object, for programs."""
        return {
            "file": self.place.file,
            "line": self.place.line,
            "column": self.place.column,
            "message": self.message,
            "hint": self.hint,
        }


class SpecError(ConvoyError):
    """The job cannot be read or does not hold together. `problems` has every mistake, in reading order."""

    exit_code = 2

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


def dotted(path: Path) -> str:
    """`("data", "sources", 0, "weight")` as a person writes it: `data.sources[0].weight`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text

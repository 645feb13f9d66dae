"""A small terminal: turns the bytes a program wrote into rows of styled text.

It understands what `rich` and plain programs write: text, CR, LF, backspace, cursor up and down, erase line, colours.
Other control sequences are skipped. All characters are one column wide.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby

SEQUENCE = re.compile(r"\x1b(?:\[([0-9;?]*)([@-~])|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_=>78])")
UNFINISHED = re.compile(r"\x1b(?:\[[0-9;?]*|\][^\x07\x1b]*)?$")
PALETTE = (
    "#484f58", "#ff7b72", "#3fb950", "#d29922", "#58a6ff", "#bc8cff", "#39c5cf", "#b1bac4",
    "#6e7681", "#ffa198", "#56d364", "#e3b341", "#79c0ff", "#d2a8ff", "#56d4dd", "#ffffff",
)  # fmt: skip
"""The 16 ANSI colours, as GitHub's dark theme has them."""


@dataclass(frozen=True)
class Style:
    """How characters look. `colour` is `#rrggbb`, or None for the default."""

    colour: str | None = None
    bold: bool = False
    dim: bool = False


@dataclass(frozen=True)
class Run:
    """Adjacent characters of one style, from a column on."""

    column: int
    text: str
    style: Style


Row = tuple[Run, ...]
Cell = tuple[str, Style]
BLANK: Cell = (" ", Style())


class Screen:
    """What a terminal of `columns` x `rows` shows. Mutable: `feed` changes it."""

    def __init__(self, columns: int, rows: int) -> None:
        self._columns, self._rows = columns, rows
        self._cells = [[BLANK] * columns for _ in range(rows)]
        self._row = self._column = 0
        self._style = Style()
        self._rest = ""

    def feed(self, text: str) -> None:
        """Take what a program wrote; a sequence may be cut between two calls."""
        text, position = self._rest + text, 0
        unfinished = UNFINISHED.search(text)
        self._rest = text[unfinished.start() :] if unfinished else ""
        text = text[: unfinished.start()] if unfinished else text
        for match in SEQUENCE.finditer(text):
            self._write(text[position : match.start()])
            if match[2]:
                self._control(match[2], match[1])
            position = match.end()
        self._write(text[position:])

    def rows(self) -> tuple[Row, ...]:
        """Its rows, without blanks at their ends."""
        return tuple(tuple(_runs(cells)) for cells in self._cells)

    def _write(self, text: str) -> None:
        for character in text:
            if character == "\n":
                self._line_feed()
            elif character == "\r":
                self._column = 0
            elif character == "\b":
                self._column = max(0, self._column - 1)
            elif character >= " ":
                if self._column == self._columns:
                    self._column = 0
                    self._line_feed()
                self._cells[self._row][self._column] = (character, self._style)
                self._column += 1

    def _line_feed(self) -> None:
        if self._row < self._rows - 1:
            self._row += 1
            return
        del self._cells[0]
        self._cells.append([BLANK] * self._columns)

    def _control(self, final: str, parameters: str) -> None:
        numbers = [int(number or 0) for number in parameters.lstrip("?").split(";")]
        count = max(1, numbers[0])
        if final == "A":
            self._row = max(0, self._row - count)
        elif final == "B":
            self._row = min(self._rows - 1, self._row + count)
        elif final == "C":
            self._column = min(self._columns - 1, self._column + count)
        elif final == "D":
            self._column = max(0, self._column - count)
        elif final == "K":
            first, last = {0: (self._column, self._columns), 1: (0, self._column + 1)}.get(
                numbers[0], (0, self._columns)
            )
            self._cells[self._row][first:last] = [BLANK] * (min(last, self._columns) - first)
        elif final == "m":
            self._style = styled(self._style, numbers)


def styled(style: Style, numbers: list[int]) -> Style:
    """`style` after the parameters of an SGR sequence; backgrounds and unknown ones change nothing."""
    rest = iter(numbers)
    for number in rest:
        if number == 0:
            style = Style()
        elif number == 1:
            style = replace(style, bold=True)
        elif number == 2:
            style = replace(style, dim=True)
        elif number == 22:
            style = replace(style, bold=False, dim=False)
        elif 30 <= number <= 37 or 90 <= number <= 97:
            style = replace(style, colour=PALETTE[number - 30 if number < 90 else number - 82])
        elif number == 39:
            style = replace(style, colour=None)
        elif number in (38, 48):
            colour = _extended(rest)
            style = replace(style, colour=colour) if number == 38 else style
    return style


def _extended(rest: Iterator[int]) -> str | None:
    """The colour after a 38 or 48: `5;n` of the 256, or `2;r;g;b`."""
    kind = next(rest, 0)
    if kind == 2:
        red, green, blue = (next(rest, 0) for _ in range(3))
        return f"#{red:02x}{green:02x}{blue:02x}"
    number = next(rest, 0)
    if number < 16:
        return PALETTE[number]
    if number >= 232:
        return f"#{8 + 10 * (number - 232):02x}" + f"{8 + 10 * (number - 232):02x}" * 2
    levels = (0, 95, 135, 175, 215, 255)
    number -= 16
    return f"#{levels[number // 36]:02x}{levels[number // 6 % 6]:02x}{levels[number % 6]:02x}"


def _runs(cells: list[Cell]) -> Iterator[Run]:
    """Runs of one style; blanks between two runs belong to neither."""
    column = 0
    for style, group in groupby(cells, key=lambda cell: cell[1]):
        text = "".join(character for character, _ in group)
        stripped = text.strip(" ")
        if stripped:
            yield Run(column + len(text) - len(text.lstrip(" ")), stripped, style)
        column += len(text)

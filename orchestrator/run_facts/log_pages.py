"""The output of a run's workers page by page. A cursor says where the next page begins, also after a log was rotated.

`logs/rank-N.log` is renamed to `rank-N.log.1` when it is large, and a new one begins. A cursor therefore has the inode
of the file beside the position.
"""

import base64
import binascii
import json
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from orchestrator.domain.errors import UsageError
from orchestrator.domain.run_layout import RunLayout
from orchestrator.json_values import JsonValue

PAGE_BYTES = 256 << 10
"""Output in one page, at most so much and one line."""
LONGEST_LINE_CHARACTERS = 16 << 10
"""A longer line is shown as several."""
MOST_LOGGED_RANKS = 64
"""Workers whose output is read together; of larger runs a rank has to be chosen."""
TAIL_WINDOW_BYTES = 1 << 20
"""The last lines of a log are looked for within so much of its end."""
_NAME = re.compile(r"rank-(\d+)\.log")
_LONGEST_CURSOR = 8192
_MOST_CURSOR_BYTES = 64 << 10

Position = tuple[int, int]
"""Inode of a file, and bytes of it that were read."""


@dataclass(frozen=True)
class LogPiece:
    """Lines of output, and where the next ones begin."""

    lines: tuple[tuple[int, str], ...]
    """Rank and text."""
    cursor: str
    complete: bool
    """There was no more."""


def ranks_with_logs(layout: RunLayout) -> list[int]:
    """Ranks that have written something."""
    try:
        names = [entry.name for entry in layout.logs.iterdir()]
    except OSError:
        return []
    return sorted(int(match.group(1)) for name in names if (match := _NAME.fullmatch(name)))


def read_logs(layout: RunLayout, rank: int | None, cursor: str | None, tail: int | None, over: bool) -> LogPiece:
    """The next lines after `cursor`, or from the beginning, or the last `tail` of each worker.

    `over`: nothing more will be written, so a line without its end is one too. Raises UsageError.
    """
    ranks = ranks_with_logs(layout) if rank is None else [rank]
    if len(ranks) > MOST_LOGGED_RANKS:
        raise UsageError(
            f"the run has the output of {len(ranks)} workers, at most {MOST_LOGGED_RANKS} can be read together",
            "choose one: --rank N",
        )
    positions = decode_cursor(cursor) if cursor else {}
    lines: list[tuple[int, str]] = []
    complete, left_bytes = True, PAGE_BYTES
    for each in ranks:
        path = layout.log(each)
        start = positions.get(each)
        if start is None and tail is not None:
            start = _tail_start(path, tail)
        position, found, more = _read(path, start, max(4096, left_bytes // max(1, len(ranks))), over)
        if position is not None:
            positions[each] = position
        lines += [(each, text) for text in found]
        complete = complete and not more
    return LogPiece(tuple(lines), encode_cursor(positions), complete)


def encode_cursor(positions: dict[int, Position]) -> str:
    """Positions by rank as one word."""
    value = json.dumps({str(rank): list(position) for rank, position in sorted(positions.items())})
    return base64.urlsafe_b64encode(zlib.compress(value.encode(), 9)).decode().rstrip("=")


def decode_cursor(cursor: str) -> dict[int, Position]:
    """The reverse. Raises UsageError if it is no cursor."""
    try:
        if len(cursor) > _LONGEST_CURSOR:
            raise ValueError
        packed = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        unpacker = zlib.decompressobj()
        value: JsonValue = json.loads(unpacker.decompress(packed, _MOST_CURSOR_BYTES))
        if not isinstance(value, dict):
            raise ValueError
        return {int(rank): _position(pair) for rank, pair in value.items()}
    except (ValueError, zlib.error, binascii.Error, RecursionError):
        raise UsageError("this is no cursor of a log", "give the `cursor` of an earlier answer, or none") from None


def _position(pair: JsonValue) -> Position:
    if not isinstance(pair, list) or len(pair) != 2:
        raise ValueError
    inode, offset = pair
    if not isinstance(inode, int) or not isinstance(offset, int) or not 0 <= offset < 1 << 60 or inode < 0:
        raise ValueError
    return inode, offset


def _read(path: Path, start: Position | None, most_bytes: int, over: bool) -> tuple[Position | None, list[str], bool]:
    """(where it ended, lines, whether there is more) of one log."""
    files = [each for each in (path.with_name(path.name + ".1"), path) if each.exists()]
    inodes = [each.stat().st_ino for each in files]
    if not files:
        return start, [], False
    index = inodes.index(start[0]) if start is not None and start[0] in inodes else 0
    if start is not None and start[0] not in inodes:
        index = len(files) - 1  # the file was rotated away twice: what is left begins with the present one
    offset = start[1] if start is not None and inodes[index] == start[0] else 0
    rotated = index < len(files) - 1
    try:
        with files[index].open("rb") as file:
            inode, size = os.fstat(file.fileno()).st_ino, os.fstat(file.fileno()).st_size
            offset = min(offset, size)
            file.seek(offset)
            data = file.read(most_bytes)
    except OSError:
        return start, [], False
    at_end = offset + len(data) >= size
    ends = data.rfind(b"\n") + 1
    if not (ends or (at_end and not (over or rotated))) or (at_end and (over or rotated)):
        ends = len(data)  # a line longer than a page, or the last one
    lines = _split(data[:ends])
    if at_end and rotated and ends == len(data):
        following = files[index + 1].stat().st_ino
        return (following, 0), lines, True
    return (inode, offset + ends), lines, not at_end


def _split(data: bytes) -> list[str]:
    if not data:
        return []
    lines = []
    for line in data.removesuffix(b"\n").split(b"\n"):
        text = line.decode("utf-8", errors="replace")
        starts = range(0, max(1, len(text)), LONGEST_LINE_CHARACTERS)
        lines += [text[start : start + LONGEST_LINE_CHARACTERS] for start in starts]
    return lines


def _tail_start(path: Path, tail: int) -> Position | None:
    """Where the last `tail` lines of the present file begin."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            begin = max(0, size - TAIL_WINDOW_BYTES)
            file.seek(begin)
            data = file.read(TAIL_WINDOW_BYTES)
            place = len(data.removesuffix(b"\n"))
            for _ in range(tail):
                place = data.rfind(b"\n", 0, place)
                if place < 0:
                    break
            return os.fstat(file.fileno()).st_ino, begin + (place + 1 if tail else len(data))
    except OSError:
        return None

"""Reading and following `logs/rank-N.log`."""

import os
import re
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from orchestrator.domain.run_layout import RunLayout
from orchestrator.store.run_store import read_record

POLL_S = 0.3
_NAME = re.compile(r"rank-(\d+)\.log")


def log_ranks(layout: RunLayout) -> list[int]:
    """Ranks that have a log."""
    try:
        names = [entry.name for entry in layout.logs.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(match.group(1)) for name in names if (match := _NAME.fullmatch(name)))


def print_logs(layout: RunLayout, rank: int | None, tail: int | None, echo: Callable[[str], None]) -> None:
    """Every rank's log, or one's, in constant memory if `tail` is not given."""
    ranks = log_ranks(layout) if rank is None else [rank]
    for each in ranks:
        path = layout.log(each)
        if tail is not None:
            for line in _last_lines(path, tail):
                echo(_prefix(each, rank) + line)
            continue
        for source in _sources(path):
            with source.open(encoding="utf-8", errors="replace") as file:
                for line in file:
                    echo(_prefix(each, rank) + line.rstrip("\n"))


def _sources(path: Path) -> list[Path]:
    """The log and, before it, what was rotated away."""
    return [each for each in (path.with_name(path.name + ".1"), path) if each.exists()]


def _last_lines(path: Path, count: int) -> list[str]:
    lines: deque[str] = deque(maxlen=count)
    for source in _sources(path):
        with source.open(encoding="utf-8", errors="replace") as file:
            lines.extend(line.rstrip("\n") for line in file)
    return list(lines)


class _Follower:
    """One log, read as it grows. The file is kept open, so that its end is not missed when it is rotated away."""

    def __init__(self, path: Path, at_end: bool) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._rest = b""
        if at_end and path.exists():
            self._file = path.open("rb")
            self._file.seek(0, os.SEEK_END)

    def new_lines(self) -> list[str]:
        """The lines that were finished since the last call."""
        data = self._file.read() if self._file is not None else b""
        if self._rotated():
            if self._file is not None:
                data += self._file.read()
                self._file.close()
            try:
                self._file = self._path.open("rb")
            except FileNotFoundError:
                self._file = None
            else:
                data += self._file.read()
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode("utf-8", errors="replace") for line in lines]

    def _rotated(self) -> bool:
        """Another file has the name now."""
        try:
            return self._file is None or self._path.stat().st_ino != os.fstat(self._file.fileno()).st_ino
        except FileNotFoundError:
            return False

    def rest(self) -> list[str]:
        """What was written without a newline, when no more will come."""
        rest, self._rest = self._rest, b""
        return [rest.decode("utf-8", errors="replace")] if rest else []


def follow_logs(
    layout: RunLayout,
    rank: int | None,
    tail: int | None,
    echo: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Print what there is, then what comes, until the run has ended and everything was printed."""
    followers: dict[int, _Follower] = {}
    for each in log_ranks(layout) if rank is None else [rank]:
        path = layout.log(each)
        if tail is not None and path.exists():
            followers[each] = _Follower(path, at_end=True)
            for line in _last_lines(path, tail):
                echo(_prefix(each, rank) + line)
    while True:
        record = read_record(layout)
        ended = record is None or not record.active
        for each in log_ranks(layout) if rank is None else [rank]:
            follower = followers.setdefault(each, _Follower(layout.log(each), at_end=False))
            for line in follower.new_lines() + (follower.rest() if ended else []):
                echo(_prefix(each, rank) + line)
        if ended:
            return
        sleep(POLL_S)


def _prefix(rank: int, only: int | None) -> str:
    return f"[{rank}] " if only is None else ""

"""Reading and following `logs/rank-N.log`."""

import os
import re
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from orchestrator.domain.layout import RunLayout
from orchestrator.store.runs import read_record

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
    """Every rank's log, or one's, in constant memory where `tail` is not given."""
    ranks = log_ranks(layout) if rank is None else [rank]
    for each in ranks:
        prefix = f"[{each}] " if rank is None else ""
        path = layout.log(each)
        sources = [old for old in (path.with_name(path.name + ".1"),) if old.exists()] + [path]
        if tail is not None:
            lines: deque[str] = deque(maxlen=tail)
            for source in sources:
                lines.extend(_lines(source))
            for line in lines:
                echo(prefix + line)
            continue
        for source in sources:
            with source.open(encoding="utf-8", errors="replace") as file:
                for line in file:
                    echo(prefix + line.rstrip("\n"))


def _lines(path: Path) -> list[str]:
    with path.open(encoding="utf-8", errors="replace") as file:
        return [line.rstrip("\n") for line in file]


class _Follower:
    """Where one log has been read to. Whole lines only; a rotated file is read from its beginning."""

    def __init__(self, path: Path, offset: int) -> None:
        self._path = path
        self._offset = offset
        self._inode = path.stat().st_ino if path.exists() else None
        self._rest = b""

    def new_lines(self) -> list[str]:
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if self._inode is not None and status.st_ino != self._inode:
                    self._offset, self._rest = 0, b""
                self._inode = status.st_ino
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode("utf-8", errors="replace") for line in lines]

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
            size = path.stat().st_size
            print_logs(layout, each, tail, lambda line, each=each: echo(_prefix(each, rank) + line))  # type: ignore[misc]
            followers[each] = _Follower(path, size)
    while True:
        record = read_record(layout)
        ended = record is None or not record.active
        for each in log_ranks(layout) if rank is None else [rank]:
            follower = followers.setdefault(each, _Follower(layout.log(each), 0))
            for line in follower.new_lines() + (follower.rest() if ended else []):
                echo(_prefix(each, rank) + line)
        if ended:
            return
        sleep(POLL_S)


def _prefix(rank: int, only: int | None) -> str:
    return f"[{rank}] " if only is None else ""

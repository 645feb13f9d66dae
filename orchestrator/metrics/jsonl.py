"""JSON Lines on disk: appending that survives a kill, reading that survives a half-written line.

A writer that is killed leaves at most one line without its newline. The next writer closes that line off, so that
only it is lost; readers skip lines that are not JSON objects.

Each line carries the token of its driver's lease. A driver that has lost its run may still write some lines: readers
drop a line with a lower token than one before it, so that the file has one history.
"""

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from orchestrator.domain.lease import LEASE, LeaseOrder, token_in
from orchestrator.json_values import JsonFields, JsonObject, JsonShapeError, JsonValue, parse_object

TAIL_BYTES = 64 * 1024
LATE_BYTES = 4 * 1024 * 1024
"""More than a driver that has lost its run writes before it ends."""


class JsonlWriter:
    """Append JSON objects to one file, one a line, flushed to the operating system line by line.

    The file is opened at the first line: a run that never trains has no empty `steps.jsonl`.
    """

    def __init__(self, path: Path, lease: int = 0) -> None:
        """`lease`: the token in each line; 0: none."""
        self.path, self._lease = path, lease
        self._file: BinaryIO | None = None

    def append(self, value: JsonFields) -> None:
        """Write one line. Raises OSError (disk full, no permission) and ValueError where `value` is not JSON.

        NaN and infinity become null: JSON has neither, and a diverged loss must not make the file unreadable.
        """
        if self._lease:
            value = {**value, LEASE: self._lease}
        text = json.dumps(finite(value), allow_nan=False, separators=(",", ":"), ensure_ascii=False)
        if self._file is None:
            self._file = _open_for_append(self.path)
        self._file.write(text.encode("utf-8", errors="replace") + b"\n")
        # One line, one system call. What a full disk refuses stays buffered and goes first next time.
        self._file.flush()

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _open_for_append(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    if file.tell() > 0:
        with path.open("rb") as reader:
            reader.seek(-1, os.SEEK_END)
            if reader.read(1) != b"\n":
                file.write(b"\n")
    return file


def finite(value: object) -> JsonValue:
    """`value` with every float that JSON cannot hold replaced by None, in lists and objects too. Raises TypeError if it
    is no JSON value."""
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"{type(value).__name__} is no JSON value")


def parse_line(line: bytes) -> JsonObject | None:
    """The object on one line; None if it is blank, cut short or something else."""
    try:
        return parse_object(line)
    except JsonShapeError:
        return None


def read_jsonl(path: Path) -> Iterator[JsonObject]:
    """Every whole object of the file that counts, in order, in constant memory, without its token. Nothing if there is
    no file."""
    try:
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return
    with file:
        yield from _counting(file, LeaseOrder())


def _counting(lines: Iterable[bytes], order: LeaseOrder) -> Iterator[JsonObject]:
    """The objects on the lines that count, without their tokens."""
    for line in lines:
        value = parse_line(line)
        if value is not None and order.counts(token_in(value)):
            value.pop(LEASE, None)
            yield value


def last_object(path: Path, lease: int = 0) -> JsonObject | None:
    """The last whole object that counts, reading from the end: cheap however long the file is.

    `lease`: the token of the run's present driver. Lines at the end that an earlier one wrote too late are recognised
    by a line with this token before them, which is looked for within `LATE_BYTES`.
    """
    try:
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return None
    with file:
        size = file.seek(0, os.SEEK_END)
        window = TAIL_BYTES
        while True:
            start = max(0, size - window)
            file.seek(start)
            lines = file.read(size - start).split(b"\n")
            # The first piece is a line's end unless the window reaches the file's start.
            order = LeaseOrder()
            found = deque(_counting(lines if start == 0 else lines[1:], order), maxlen=1)
            if (found and (order.highest >= lease or window >= LATE_BYTES)) or start == 0:
                return found[0] if found else None
            window *= 4


def objects_after(path: Path, time_s: float) -> list[JsonObject]:
    """The whole objects at the end of the file that count and whose `time_s` is later, in order. Read from the end:
    cheap however long the file is. Nothing if there is no file."""
    try:
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return []
    with file:
        size = file.seek(0, os.SEEK_END)
        window = TAIL_BYTES
        while True:
            start = max(0, size - window)
            file.seek(start)
            lines = file.read(size - start).split(b"\n")
            found = list(_counting(lines if start == 0 else lines[1:], LeaseOrder()))
            later = [value for value in found if _later(value, time_s)]
            if start == 0 or (found and not _later(found[0], time_s)):
                return later
            window *= 4


def _later(value: JsonFields, time_s: float) -> bool:
    at_s = value.get("time_s")
    return isinstance(at_s, int | float) and at_s > time_s

"""Reading a growing JSON Lines file piece by piece: each call reads what was appended since the last one."""

import os
from collections.abc import Iterator
from pathlib import Path

from orchestrator.domain.lease import LEASE, LeaseOrder, token_in
from orchestrator.json_values import JsonObject
from orchestrator.metrics.jsonl import parse_line

LONGEST_LINE_BYTES = 64 << 20
"""A longer line is damage, and is skipped."""


class JsonlTail:
    """A position in a file. A line that is not complete yet is read by a later call; lines that do not count (see
    `metrics.jsonl`) are left out. If the file was replaced by a shorter one, reading starts again from its beginning.
    """

    def __init__(self, path: Path, most_bytes: int | None = None) -> None:
        """`most_bytes`: begin so far from the file's end, at a line's beginning; None: read all of it."""
        self._path, self._most_bytes = path, most_bytes
        self._order = LeaseOrder()
        self._offset_bytes: int | None = None
        self.skipped_bytes = 0
        """Before the point where reading began."""

    def read(self) -> Iterator[JsonObject]:
        """The whole objects that have been appended since the last call. Nothing if there is no file."""
        try:
            file = self._path.open("rb")
        except OSError:
            return
        with file:
            size_bytes = os.fstat(file.fileno()).st_size
            if self._offset_bytes is None or size_bytes < self._offset_bytes:
                self._offset_bytes, self._order = self._begin_bytes(size_bytes), LeaseOrder()
                file.seek(self._offset_bytes)
                if self._offset_bytes:
                    self._offset_bytes += len(file.readline(LONGEST_LINE_BYTES))
                self.skipped_bytes = self._offset_bytes
            file.seek(self._offset_bytes)
            while line := file.readline(LONGEST_LINE_BYTES):
                if not line.endswith(b"\n") and len(line) < LONGEST_LINE_BYTES:
                    return  # the writer has not finished it
                self._offset_bytes += len(line)
                value = parse_line(line)
                if value is not None and self._order.counts(token_in(value)):
                    value.pop(LEASE, None)
                    yield value

    def _begin_bytes(self, size_bytes: int) -> int:
        return 0 if self._most_bytes is None else max(0, size_bytes - self._most_bytes)

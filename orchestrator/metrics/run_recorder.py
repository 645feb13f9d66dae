"""What a run leaves on disk: `steps.jsonl`, `ranks.jsonl`, `events.jsonl` and the workers' output. Formats:
`docs/files.md`."""

import sys
from pathlib import Path
from typing import BinaryIO

from orchestrator.domain.events import Event, WorkerLog
from orchestrator.domain.events.event_codec import encode_event
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.metrics.jsonl import JsonlWriter

LOG_LIMIT_BYTES = 64 * 1024 * 1024
"""A rank's log is moved to `rank-N.log.1` at this size: a run keeps at most twice this for each rank."""


class RunRecorder:
    """Observer that writes a run's directory. A disk that fails is reported once on stderr and never stops training.

    Not thread-safe: one thread feeds it, as the driver does.
    """

    def __init__(self, layout: RunLayout, log_limit_bytes: int = LOG_LIMIT_BYTES, lease: int = 0) -> None:
        """`lease`: the token of this driver, in every line. What an earlier driver writes after the first of them does
        not count."""
        self.layout = layout
        self._steps = JsonlWriter(layout.steps, lease)
        self._ranks = JsonlWriter(layout.ranks, lease)
        self._events = JsonlWriter(layout.events, lease)
        self._log_limit_bytes = log_limit_bytes
        self._logs: dict[int, _RotatingLog] = {}
        self._failed = False

    def on_event(self, event: Event) -> None:
        """Append the event; worker output goes to the rank's log instead."""
        try:
            if isinstance(event.body, WorkerLog):
                self._log(event.body.rank, event.body.line)
            elif event.body.ON_DISK:
                self._events.append(encode_event(event))
        except (OSError, ValueError, TypeError) as error:
            self._complain(error)

    def on_step(self, report: StepReport) -> None:
        """Append the step, and the reports of its ranks if it has those of all."""
        try:
            self._steps.append(report.to_json())
            ranks = report.to_ranks_json()
            if ranks is not None:
                self._ranks.append(ranks)
        except (OSError, ValueError, TypeError) as error:
            self._complain(error)

    def close(self) -> None:
        """Close every file. Events may still come: files are opened again."""
        self._steps.close()
        self._ranks.close()
        self._events.close()
        for log in self._logs.values():
            log.close()
        self._logs.clear()

    def _log(self, rank: int, line: str) -> None:
        log = self._logs.get(rank)
        if log is None:
            log = self._logs[rank] = _RotatingLog(self.layout.log(rank), self._log_limit_bytes)
        log.write(line)

    def _complain(self, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            print(f"warning: cannot record to {self.layout.root}: {type(error).__name__}: {error}", file=sys.stderr)


class _RotatingLog:
    """One text file of bounded size, and one predecessor."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._limit_bytes = limit_bytes
        self._file: BinaryIO = path.open("ab")
        self._size_bytes = self._file.tell()

    def write(self, line: str) -> None:
        data = line.rstrip("\n").encode("utf-8", errors="replace") + b"\n"
        if self._size_bytes and self._size_bytes + len(data) > self._limit_bytes:
            self._file.close()
            self._path.replace(self._path.with_name(self._path.name + ".1"))
            self._file = self._path.open("ab")
            self._size_bytes = 0
        self._file.write(data)
        self._file.flush()
        self._size_bytes += len(data)

    def close(self) -> None:
        self._file.close()

"""The directories of runs that have no driver: made whole before one starts, closed when a run ends in the queue."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from orchestrator.atomic_files import read_json, write_json, write_text
from orchestrator.control.queue_store.event_table import ChangeCause
from orchestrator.control.queue_store.queue_store import QueueStore
from orchestrator.control.queue_store.run_rows import RunRow
from orchestrator.control.queue_store.run_table import needs_of, spec_text
from orchestrator.control.ticking.bookings import Booked
from orchestrator.domain.errors import UsageError
from orchestrator.domain.events import RunState
from orchestrator.domain.queue.queue_states import QueueState
from orchestrator.domain.run_layout import RunLayout
from orchestrator.store.run_store import RunStore

JOB_FILES = "job"
"""Folder of a run's directory with the uploaded files; relative paths of the job start there."""


class RunFiles:
    """Used by the ticker."""

    def __init__(self, store: QueueStore, runs: RunStore) -> None:
        self._store, self._runs = store, runs

    def prepare(self, row: RunRow) -> None:
        """Have everything there that a driver needs. After a crash of the machine a directory may lack what the
        database has. Raises UsageError if the export of a run before it is missing, OSError."""
        if row.begun:
            return
        layout = RunLayout(Path(row.directory))
        text, needs = self._store.read(
            lambda connection: (spec_text(connection, row.spec_digest), needs_of(connection, row.seq))
        )
        for need in needs:
            export = RunLayout(Path(need.directory)).export
            if str(export) in text and not export.exists():
                raise UsageError(f"run {need.id} has succeeded, but its export is missing: {export}")
        if read_json(layout.state) is None:
            self._runs.restore_queued(layout, row.name, row.submitted_s)
        if not layout.spec.is_file() or layout.spec.read_text(encoding="utf-8") != text:
            write_text(layout.spec, text)
        if read_json(layout.data) is None:
            write_json(layout.data, {"job_dir": str(layout.root / JOB_FILES)})

    def settled(self, rows: Collection[RunRow]) -> Iterator[Booked]:
        """Changes of final runs that hold nothing any more, once their files say that they have ended."""
        for row in rows:
            if not row.final or row.booked:
                continue
            state = RunState.FAILED if row.state is QueueState.FAILED else RunState.STOPPED
            try:
                self._runs.leave_queue(RunLayout(Path(row.directory)), state, row.reason)
            except OSError:
                continue  # the disk is full: the next tick tries it again
            yield row, replace(row, settled=True), ChangeCause("settled", "it has ended, and nothing of it is left")

"""Submissions: checked, given directories, and queued in one transaction."""

import contextlib
import hashlib
import json
import secrets
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Protocol

from orchestrator.control.planned_runs import (
    PlannedRun,
    check_fits,
    check_needs,
    check_queue,
    limit_of,
    rank_of,
    read_jobs,
    referenced,
    shape_of,
)
from orchestrator.control.ports import ClusterPort
from orchestrator.control.queue_board import QueueBoard
from orchestrator.control.queue_service import Caller
from orchestrator.control.queue_store.event_table import ChangeCause
from orchestrator.control.queue_store.queue_store import QueueStore
from orchestrator.control.queue_store.queue_table import KnownKey, add_key, all_queues, find_key, forget_keys
from orchestrator.control.queue_store.run_rows import RunRow
from orchestrator.control.queue_store.run_table import add_run, add_spec, run_by_id, run_by_name
from orchestrator.control.run_lookup import find_run
from orchestrator.control.server_paths import ServerPaths
from orchestrator.control.ticking.run_files import JOB_FILES
from orchestrator.domain.errors import ConflictError, UsageError
from orchestrator.domain.run_layout import RunLayout
from orchestrator.spec.loading.load import dump_job
from orchestrator.store.run_store import RunStore
from orchestrator.weights.pretrained_location import anchored
from orchestrator.wire.run_messages import Submission

KEYS_KEPT_S = 7 * 86400.0
"""How long a repeated submission is recognised by its key."""


class UploadedFiles(Protocol):
    """Files that clients have uploaded, by their sha256."""

    def place(self, files: Mapping[str, str], directory: Path) -> None:
        """Put files into a directory: sha256 by relative path. Raises NotFoundError if one was not uploaded, UsageError
        if a path leaves the directory."""


class NoUploads:
    """For a server that takes no files."""

    def place(self, files: Mapping[str, str], directory: Path) -> None:
        if files:
            raise UsageError("this server takes no files", hint="name paths that exist on the server")


@dataclass(frozen=True)
class SubmitSettings:
    """What the operator decides."""

    variables: Mapping[str, str] = field(default_factory=dict)
    """What `${NAME}` in a job may name: never the server's own environment."""
    paths: ServerPaths = field(default_factory=ServerPaths)
    files: UploadedFiles = field(default_factory=NoUploads)
    storage: str | None = None
    """`checkpoint.storage` of jobs that have none."""


@dataclass(frozen=True)
class Submitted:
    """What became of a submission."""

    runs: tuple[RunRow, ...]
    needs: tuple[RunRow, ...]
    warnings: tuple[str, ...] = ()
    existing: bool = False


@dataclass(frozen=True)
class _Checked:
    """A submission that can be queued."""

    planned: tuple[PlannedRun, ...]
    needs: tuple[RunRow, ...]
    promised: tuple[Path, ...]
    """Exports that do not exist yet."""
    warnings: tuple[str, ...]


class Submitter:
    """Takes submissions. Thread-safe."""

    def __init__(
        self, store: QueueStore, runs: RunStore, board: QueueBoard, cluster: ClusterPort, settings: SubmitSettings
    ) -> None:
        self._store, self._runs, self._board = store, runs, board
        self._cluster, self._settings = cluster, settings

    def submit(self, submission: Submission, caller: Caller, key: str | None, now_s: float) -> Submitted:
        """Queue a submission durably, or only check it (`dry_run`). Raises what `QueueService.submit` raises."""
        digest = hashlib.sha256(submission.model_dump_json().encode()).hexdigest()
        if key is not None and (known := self._known(caller, key, digest)) is not None:
            return known
        checked = self._check(submission)
        if submission.dry_run:
            with self._scratch() as job_dir:
                self._settings.files.place(submission.files, job_dir)
                self._check_paths(checked, job_dir)
            rows = [self._row(each, caller, checked, None, now_s) for each in checked.planned]
            return Submitted(tuple(rows), checked.needs, checked.warnings)
        layouts: list[RunLayout] = []
        try:
            rows, texts = [], []
            group = _group_id(checked.planned, now_s)
            for planned in checked.planned:
                layout, text = self._directory(submission, planned, checked, now_s)
                layouts.append(layout)
                texts.append(text)
                rows.append(self._row(planned, caller, checked, (layout, group), now_s))
            labels = [planned.label for planned in checked.planned]
            stored = self._store.write(
                lambda connection: _store(connection, rows, texts, labels, checked.needs, (caller.user, key, digest))
            )
        except BaseException:
            for layout in layouts:
                shutil.rmtree(layout.root, ignore_errors=True)
            raise
        if isinstance(stored, KnownKey):  # the same submission was faster
            for layout in layouts:
                shutil.rmtree(layout.root, ignore_errors=True)
            return self._of_key(stored)
        return Submitted(tuple(stored), checked.needs, checked.warnings)

    def _known(self, caller: Caller, key: str, digest: str) -> Submitted | None:
        known = self._store.read(lambda connection: find_key(connection, caller.user, key))
        if known is None:
            return None
        _require_same(known, key, digest)
        return self._of_key(known)

    def _of_key(self, known: KnownKey) -> Submitted:
        rows = self._store.read(lambda connection: [run_by_id(connection, run_id) for run_id in known.runs])
        return Submitted(tuple(row for row in rows if row is not None), (), existing=True)

    def _check(self, submission: Submission) -> _Checked:
        explicit = self._store.read(lambda connection: [find_run(connection, query) for query in submission.after])
        before: dict[str, RunRow] = {}
        for name in referenced(submission):
            named = [row for row in explicit if name in (row.name, row.id)]
            found = named[0] if named else self._store.read(partial(_by_reference, name=name))
            if found is not None:
                before[name] = found
        planned = [self._with_storage(each) for each in read_jobs(submission, self._settings.variables, before)]
        chained = planned[0].spec.schedule.after
        more = self._store.read(lambda connection: [find_run(connection, query) for query in chained])
        needs = {row.seq: row for row in (*explicit, *before.values(), *more)}
        check_needs(tuple(needs.values()))
        queues = self._store.read(all_queues)
        view = self._board.view
        warnings: list[str] = []
        for each in planned:
            check_queue(each, queues)
            warning = check_fits(each, view.nodes if view is not None else None, self._cluster.autoscales)
            warnings += [warning] if warning is not None else []
            if each.spec.cluster.address is not None or each.spec.cluster.nodes is not None:
                warnings.append("`cluster` is not used: the run trains on the server's cluster")
        promised = tuple(RunLayout(Path(row.directory)).export for row in before.values())
        return _Checked(tuple(planned), tuple(needs.values()), promised, tuple(dict.fromkeys(warnings)))

    def _with_storage(self, planned: PlannedRun) -> PlannedRun:
        checkpoint, storage = planned.spec.checkpoint, self._settings.storage
        if storage is None or checkpoint.storage is not None:
            return planned
        spec = planned.spec.model_copy(update={"checkpoint": checkpoint.model_copy(update={"storage": storage})})
        return replace(planned, spec=spec)

    def _check_paths(self, checked: _Checked, job_dir: Path) -> None:
        for planned in checked.planned:
            self._settings.paths.check(planned.spec, job_dir, checked.promised)

    def _directory(
        self, submission: Submission, planned: PlannedRun, checked: _Checked, now_s: float
    ) -> tuple[RunLayout, str]:
        """Make the run's directory; it and the text of its spec. The database has the spec too: a crash of the machine
        may take what is not yet on the disk here."""
        layout = self._runs.reserve(planned.spec.name, now_s)
        try:
            job_dir = layout.root / JOB_FILES
            job_dir.mkdir()
            self._settings.files.place(submission.files, job_dir)
            self._settings.paths.check(planned.spec, job_dir, checked.promised)
            text = dump_job(anchored(planned.spec, job_dir))
            layout.spec.write_text(text, encoding="utf-8")
            layout.data.write_text(json.dumps({"job_dir": str(job_dir)}) + "\n", encoding="utf-8")
            self._runs.restore_queued(layout, planned.spec.name, now_s, durable=False)
        except BaseException:
            shutil.rmtree(layout.root, ignore_errors=True)
            raise
        return layout, text

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A directory for the files of a submission that is only checked."""
        self._runs.home.mkdir(parents=True, exist_ok=True)
        path = self._runs.home / f".check-{secrets.token_hex(6)}"
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def _row(
        self, planned: PlannedRun, caller: Caller, checked: _Checked, made: tuple[RunLayout, str | None] | None,
        now_s: float,
    ) -> RunRow:  # fmt: skip
        spec, ask = planned.spec, planned.ask
        return RunRow(
            seq=0,
            id=made[0].run_id if made is not None else "",
            name=spec.name,
            group_name=made[1] if made is not None else None,
            queue=spec.schedule.queue,
            team=caller.team,
            user=caller.user,
            priority=rank_of(spec),
            spec_digest="",
            directory=str(made[0].root) if made is not None else "",
            bundle=ask.bundle,
            placement=ask.placement,
            shape=shape_of(spec),
            limit_s=limit_of(spec),
            retries=spec.schedule.retries,
            submitted_s=now_s,
            state=check_needs(checked.needs),
            since_s=now_s,
            min_workers=ask.minimum,
            max_workers=ask.maximum,
            total_steps=spec.train.steps,
        )


def _group_id(planned: Sequence[PlannedRun], now_s: float) -> str | None:
    """Of the runs of a matrix; None for a single run."""
    if len(planned) == 1:
        return None
    stamp = datetime.fromtimestamp(now_s).strftime("%Y%m%d-%H%M%S")
    return f"{planned[0].spec.name.removesuffix('-1')}-{stamp}-{secrets.token_hex(2)}"


def _by_reference(connection: sqlite3.Connection, name: str) -> RunRow | None:
    return run_by_name(connection, name) or run_by_id(connection, name)


def _require_same(known: KnownKey, key: str, digest: str) -> None:
    if known.digest != digest:
        raise ConflictError(
            f"the idempotency key {key!r} was used for another submission ({', '.join(known.runs)})",
            hint="use a new key for a new submission",
        )


def _store(
    connection: sqlite3.Connection, rows: Sequence[RunRow], texts: Sequence[str], labels: Sequence[str],
    needs: Sequence[RunRow], keyed: tuple[str, str | None, str],
) -> list[RunRow] | KnownKey:  # fmt: skip
    """Queue runs, all or none; what is known of the key if it was used meanwhile. Raises ConflictError."""
    caller, key, digest = keyed
    if key is not None and (known := find_key(connection, caller, key)) is not None:
        _require_same(known, key, digest)
        return known
    fresh = [found for need in needs if (found := run_by_id(connection, need.id)) is not None]
    state = check_needs(fresh)
    stored = []
    for row, text, label in zip(rows, texts, labels, strict=True):
        whole = replace(row, spec_digest=add_spec(connection, text), state=state)
        cause = ChangeCause(
            "submitted", f"submitted by {row.user}" + (f": {label}" if label else ""), {"user": row.user}
        )
        stored.append(add_run(connection, whole, [need.seq for need in fresh], cause))
    if key is not None:
        ids = tuple(row.id for row in stored)
        forget_keys(connection, rows[0].submitted_s - KEYS_KEPT_S)
        add_key(connection, caller, key, KnownKey(digest, ids), rows[0].submitted_s)
    return stored

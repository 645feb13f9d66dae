"""The runs under `CONVOY_HOME`: creating, finding and describing them. A run is a directory with a `run.json`."""

import difflib
import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from orchestrator.atomic_files import read_json, write_json
from orchestrator.domain.errors import UsageError
from orchestrator.domain.events import RunState
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.run_states import FINAL_STATES
from orchestrator.json_values import JsonObject
from orchestrator.store.driver_process import DriverProcess
from orchestrator.store.recorded_progress import RecordedProgress, read_progress

LOST = "lost"
"""Shown for a run whose state says it is going on while its driver is gone."""

NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class RunRecord:
    """One run as its directory describes it."""

    id: str
    name: str
    state: RunState
    reason: str | None
    created_s: float
    """Unix time."""
    updated_s: float
    """Unix time of the last change of state, or of the last step where that is later."""
    driver: DriverProcess | None
    lost: bool
    """The state is not final, but the driver is gone: it was killed, or its host was."""
    progress: RecordedProgress
    asked_workers: int | None
    """As many as it was asked to have (`convoy scale`); None where nobody asked."""
    layout: RunLayout

    @property
    def directory(self) -> Path:
        return self.layout.root

    @property
    def status(self) -> str:
        """The state as shown to people: a `RunState` value, or `lost`."""
        return LOST if self.lost else self.state.value

    @property
    def active(self) -> bool:
        """Somebody is working on it, as far as this host can tell."""
        return self.state not in FINAL_STATES and not self.lost

    @property
    def step(self) -> int:
        return self.progress.step

    @property
    def total_steps(self) -> int | None:
        return self.progress.total_steps

    @property
    def loss(self) -> float | None:
        return self.progress.loss

    @property
    def validation_loss(self) -> float | None:
        return self.progress.validation_loss

    def to_json(self) -> JsonObject:
        """What `convoy runs --json` prints for this run."""
        return {
            "id": self.id,
            "name": self.name,
            "state": self.status,
            "reason": self.reason,
            "created_s": self.created_s,
            "updated_s": self.updated_s,
            "step": self.step,
            "total_steps": self.total_steps,
            "workers": self.progress.workers,
            "asked_workers": self.asked_workers,
            "loss": self.loss,
            "validation_loss": self.validation_loss,
            "directory": str(self.directory),
        }


@dataclass(frozen=True)
class _Head:
    """What tells one run from another."""

    layout: RunLayout
    name: str
    created_s: float


class RunStore:
    """Every run under one directory. Several processes may use it at once; each run has one writer, its driver."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def create(self, name: str, now_s: float | None = None) -> RunLayout:
        """A fresh directory `name-YYYYmmdd-HHMMSS-xxxx` (local time) with state `preparing`, driven by this process.

        Raises UsageError where `name` is no job name or the directory cannot be made.
        """
        if not NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot name a run", hint="use lower-case letters, digits and dashes")
        now_s = time.time() if now_s is None else now_s
        stamp = datetime.fromtimestamp(now_s).strftime("%Y%m%d-%H%M%S")
        while True:
            layout = RunLayout((self.home / f"{name}-{stamp}-{secrets.token_hex(2)}").absolute())
            try:
                self.home.mkdir(parents=True, exist_ok=True)
                layout.root.mkdir()
            except FileExistsError:
                if not self.home.is_dir():
                    raise UsageError(f"{self.home} is not a directory", hint="set CONVOY_HOME or --home") from None
                continue
            except OSError as error:
                raise UsageError(
                    f"cannot create a run under {self.home}: {error.strerror}", hint="set CONVOY_HOME or --home"
                ) from error
            value = {"id": layout.run_id, "name": name, "created_s": now_s, **_state(RunState.PREPARING, None, now_s)}
            write_json(layout.state, {**value, "driver": DriverProcess.current().to_json()})
            return layout

    def set_state(
        self, layout: RunLayout, state: RunState, reason: str | None = None, now_s: float | None = None
    ) -> None:
        """Record a change of state, atomically. A state that is not final names this process as the run's driver."""
        with _locked(layout.root):
            value = read_json(layout.state) or {"id": layout.run_id, "name": _name_of(layout.run_id)}
            value.update(_state(state, reason, time.time() if now_s is None else now_s))
            value.setdefault("created_s", value["updated_s"])
            if state not in FINAL_STATES:
                value["driver"] = DriverProcess.current().to_json()
            write_json(layout.state, value)

    def claim(self, layout: RunLayout, now_s: float | None = None) -> None:
        """Become the driver of a run that is to be resumed; state `preparing`.

        Raises UsageError where another living process drives it: two would overwrite each other's state.
        """
        with _locked(layout.root):
            value = read_json(layout.state) or {}
            driver = DriverProcess.from_json(value.get("driver"))
            final = _parse_state(value.get("state")) in FINAL_STATES
            if driver is not None and not final and driver != DriverProcess.current() and driver.alive() is not False:
                raise UsageError(
                    f"run {layout.run_id} has an active driver: process {driver.pid} on {driver.host}",
                    hint="stop that driver first (Ctrl-C there), or wait until it ends",
                )
            now_s = time.time() if now_s is None else now_s
            value.update({"id": layout.run_id, **_state(RunState.PREPARING, None, now_s)})
            value.setdefault("name", _name_of(layout.run_id))
            value.setdefault("created_s", now_s)
            write_json(layout.state, {**value, "driver": DriverProcess.current().to_json()})

    def list(self) -> list[RunRecord]:
        """Every run, newest first. Directories that are no runs are passed over."""
        records = [record for layout in self._layouts() if (record := read_record(layout)) is not None]
        return sorted(records, key=lambda record: (record.created_s, record.id), reverse=True)

    def ids(self) -> tuple[str, ...]:
        """Every run id, without reading the runs."""
        return tuple(layout.run_id for layout in self._layouts())

    def read(self, query: str) -> RunRecord:
        """The run that `query` means: an id, its directory, `last`, a job name (its newest run), or a unique prefix
        of an id, tried in that order. Raises UsageError with what comes close."""
        direct = [RunLayout(self.home.absolute() / query)] if query and "/" not in query else []
        if query and ("/" in query or Path(query).is_dir()):
            direct.append(RunLayout(Path(query).absolute()))
        for layout in direct:
            record = read_record(layout) if layout.state.is_file() else None
            if record is not None:
                return record
        heads = self._heads()
        if not heads:
            raise UsageError(
                f"there is no run {query!r}: no runs under {self.home.absolute()}",
                hint="start one with `convoy run JOB.yaml`, or set CONVOY_HOME (or --home) to where runs are kept",
            )
        if query == "last":
            matching = list(heads[:1])
        else:
            named = [head for head in heads if head.name == query]
            matching = named[:1] or [head for head in heads if query and head.layout.run_id.startswith(query)]
        if len(matching) > 1:
            shown = ", ".join(head.layout.run_id for head in matching[:5]) + (", ..." if len(matching) > 5 else "")
            raise UsageError(f"{query!r} is the start of {len(matching)} runs: {shown}", hint="give more of the id")
        record = read_record(matching[0].layout) if matching else None
        if record is None:
            raise UsageError(f"there is no run {query!r} under {self.home.absolute()}", hint=_closest(query, heads))
        return record

    def _heads(self) -> tuple["_Head", ...]:
        """Every run, newest first, without its progress: cheap with thousands of them."""
        heads = []
        for layout in self._layouts():
            value = read_json(layout.state)
            if value is not None and _parse_state(value.get("state")) is not None:
                name = str(value.get("name") or _name_of(layout.run_id))
                heads.append(_Head(layout, name, _number(value.get("created_s"))))
        return tuple(sorted(heads, key=lambda head: (head.created_s, head.layout.run_id), reverse=True))

    def _layouts(self) -> Iterator[RunLayout]:
        try:
            entries = sorted(self.home.absolute().iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return
        except PermissionError as error:
            raise UsageError(f"cannot read {self.home}: {error.strerror}") from error
        for entry in entries:
            layout = RunLayout(entry)
            try:
                if layout.state.is_file():
                    yield layout
            except PermissionError:
                continue


def read_record(layout: RunLayout) -> RunRecord | None:
    """Describe the run in a directory; None where there is none."""
    value = read_json(layout.state)
    state = _parse_state(value.get("state")) if value else None
    if value is None or state is None:
        return None
    driver = DriverProcess.from_json(value.get("driver"))
    lost = state not in FINAL_STATES and (driver is None or driver.alive() is False)
    progress = read_progress(layout)
    updated_s = _number(value.get("updated_s"))
    asked = (read_json(layout.scale_answer) or {}).get("standing")
    return RunRecord(
        id=layout.run_id,
        name=str(value.get("name") or _name_of(layout.run_id)),
        state=state,
        reason=str(value["reason"]) if value.get("reason") else None,
        created_s=_number(value.get("created_s")),
        updated_s=max(updated_s, progress.time_s or 0.0),
        driver=driver,
        lost=lost,
        progress=progress,
        asked_workers=asked if isinstance(asked, int) else None,
        layout=layout,
    )


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the directory's advisory lock: the kernel drops it should this process die."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _state(state: RunState, reason: str | None, now_s: float) -> JsonObject:
    return {"state": state.value, "reason": reason, "updated_s": now_s}


def _parse_state(value: object) -> RunState | None:
    try:
        return RunState(str(value))
    except ValueError:
        return None


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _name_of(run_id: str) -> str:
    return re.sub(r"-\d{8}-\d{6}-[0-9a-f]{4}$", "", run_id)


def _closest(query: str, heads: Sequence[_Head]) -> str:
    # Ids differ from a mistyped job name mostly by their date: compare with names as well.
    candidates = [head.layout.run_id for head in heads] + [head.name for head in heads] + ["last"]
    close = list(dict.fromkeys(difflib.get_close_matches(query, candidates, n=3, cutoff=0.5)))
    return f"did you mean {' or '.join(close)}? `convoy runs` lists them" if close else "`convoy runs` lists them"

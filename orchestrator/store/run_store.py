"""The runs under `CONVOY_HOME`: creating, finding and describing them. A run is a directory with a `run.json`."""

import difflib
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from orchestrator.atomic_files import locked, read_json, write_json
from orchestrator.domain.errors import LeaseLostError, UsageError
from orchestrator.domain.events import RunState
from orchestrator.domain.lease import LEASE, next_token, token_in
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.run_states import FINAL_STATES
from orchestrator.json_values import JsonFields, JsonObject
from orchestrator.store.driver_process import DriverProcess
from orchestrator.store.recorded_progress import RecordedProgress, read_progress

LOST = "lost"
"""Shown for a run whose state says it is going on while its driver is gone."""

SILENT_S = 120.0
"""A driver that this host cannot see, and that has not renewed its lease for this long, is shown as gone."""

QUEUED = "queued"
"""Shown for a run that waits in a server's queue and has had no driver yet; also the key in its `run.json`."""

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
    """The state is not final, but the driver is gone: it was killed, or its host was. Of a driver on another host, or
    before a reboot of this one: it seems to be gone."""
    progress: RecordedProgress
    asked_workers: int | None
    """As many as it was asked to have (`convoy scale`); None where nobody asked."""
    layout: RunLayout
    queued: bool = False
    """A server's queue has it, and it has had no driver yet. Its `state` is `stopped`: it can be resumed."""

    @property
    def directory(self) -> Path:
        return self.layout.root

    @property
    def status(self) -> str:
        """The state as shown to people: a `RunState` value, `lost` or `queued`."""
        return LOST if self.lost else QUEUED if self.queued else self.state.value

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
        self._tokens: dict[str, int] = {}
        """By run id: the token of the lease with which this store writes a run's state."""

    def create(self, name: str, now_s: float | None = None) -> RunLayout:
        """A fresh directory `name-YYYYmmdd-HHMMSS-xxxx` (local time) with state `preparing`, driven by this process.

        Raises UsageError where `name` is no job name or the directory cannot be made.
        """
        now_s = time.time() if now_s is None else now_s
        layout = self._new_directory(name, now_s)
        value = {"id": layout.run_id, "name": name, "created_s": now_s, **_state(RunState.PREPARING, None, now_s)}
        self._tokens[layout.run_id] = token = next_token(())
        write_json(layout.state, {**value, LEASE: token, "driver": DriverProcess.current().to_json()})
        return layout

    def reserve(self, name: str, now_s: float) -> RunLayout:
        """A fresh, empty directory for a run that a server's queue will have: no command shows it before
        `restore_queued`. Raises UsageError as `create` does."""
        return self._new_directory(name, now_s)

    def restore_queued(self, layout: RunLayout, name: str, now_s: float, durable: bool = True) -> None:
        """Write the state of a run that a server's queue has and that has had no driver: `convoy runs` shows it as
        `queued`. Its directory is made if it is missing. `durable`: see `write_bytes`. Raises OSError."""
        layout.root.mkdir(parents=True, exist_ok=True)
        value: JsonObject = {"id": layout.run_id, "name": name, "created_s": now_s, QUEUED: True}
        write_json(layout.state, {**value, **_state(RunState.STOPPED, "waits in the queue", now_s)}, durable)

    def leave_queue(self, layout: RunLayout, state: RunState, reason: str | None) -> bool:
        """Record that a run which has had no driver ended in the queue. False, and nothing is changed, if it has had
        one or has no directory. Raises OSError."""
        if not layout.root.is_dir():
            return False
        with locked(layout.root):
            value = read_json(layout.state)
            if value is None or not value.get(QUEUED):
                return False
            del value[QUEUED]
            write_json(layout.state, {**value, **_state(state, reason, time.time())})
        return True

    def _new_directory(self, name: str, now_s: float) -> RunLayout:
        if not NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot name a run", hint="use lower-case letters, digits and dashes")
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
            return layout

    def claim(self, layout: RunLayout, token: int, now_s: float | None = None) -> None:
        """Become the driver of a run, with the lease of `token`; state `preparing`. From now on this store writes no
        state of the run once somebody has a higher one. Raises LeaseLostError if somebody has already."""
        self._tokens[layout.run_id] = token
        with locked(layout.root):
            value = self._read_own(layout)
            now_s = time.time() if now_s is None else now_s
            value.update({"id": layout.run_id, LEASE: token, **_state(RunState.PREPARING, None, now_s)})
            value.setdefault("name", _name_of(layout.run_id))
            value.setdefault("created_s", now_s)
            value.pop(QUEUED, None)
            write_json(layout.state, {**value, "driver": DriverProcess.current().to_json()})

    def set_state(
        self, layout: RunLayout, state: RunState, reason: str | None = None, now_s: float | None = None
    ) -> None:
        """Record a change of state, atomically. A state that is not final names this process as the run's driver.

        Raises LeaseLostError if this store has claimed the run and another driver has taken it over since.
        """
        with locked(layout.root):
            value = self._read_own(layout) or {"id": layout.run_id, "name": _name_of(layout.run_id)}
            value.update(_state(state, reason, time.time() if now_s is None else now_s))
            value.setdefault("created_s", value["updated_s"])
            if state not in FINAL_STATES:
                value["driver"] = DriverProcess.current().to_json()
            write_json(layout.state, value)

    def _read_own(self, layout: RunLayout) -> JsonObject:
        """`run.json` as it is, to be replaced. Raises LeaseLostError if a later driver has written it."""
        value = read_json(layout.state) or {}
        own = self._tokens.get(layout.run_id)
        if own is not None and token_in(value) > own:
            raise LeaseLostError(
                f"run {layout.run_id} was taken over by another driver (lease {token_in(value)}; this driver had lease "
                f"{own}): this driver has ended and writes nothing more",
                hint="`convoy runs` shows the run",
            )
        return value

    def list(self) -> list[RunRecord]:
        """Every run, newest first. Directories that are no runs are passed over."""
        records = [record for layout in self._layouts() if (record := read_record(layout)) is not None]
        return sorted(records, key=lambda record: (record.created_s, record.id), reverse=True)

    def newest(self, most: int) -> tuple[RunLayout, ...]:
        """The directories of the newest runs, at most so many, without reading the runs: by the date in their ids, or
        where an id has none by when they were made."""
        dated = [(_DATE.search(layout.run_id), layout) for layout in self._layouts()]
        keyed = [((found.group(1) if found else _made(layout)), layout) for found, layout in dated]
        keyed.sort(key=lambda each: (each[0], each[1].run_id), reverse=True)
        return tuple(layout for _, layout in keyed[:most])

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
            if value is not None and parse_state(value.get("state")) is not None:
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


def read_record(layout: RunLayout, known: RecordedProgress | None = None) -> RunRecord | None:
    """Describe the run in a directory; None where there is none. `known`: its progress, if the caller has read it."""
    value = read_json(layout.state)
    state = parse_state(value.get("state")) if value else None
    if value is None or state is None:
        return None
    driver = DriverProcess.from_json(value.get("driver"))
    alive = driver.alive() if driver is not None else False
    lost = state not in FINAL_STATES and (alive is False or (alive is None and is_silent(layout, time.time())))
    progress = known if known is not None else read_progress(layout)
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
        queued=value.get(QUEUED) is True,
    )


def is_silent(layout: RunLayout, now_s: float) -> bool:
    """Whether the run's lease has not been renewed for so long that a person may be told that its driver is gone.
    Nobody takes a run over because of that: it compares clocks of two machines. False for runs of versions without
    leases."""
    try:
        renewed_s = max(path.stat().st_mtime for path in layout.leases.iterdir())
    except (OSError, ValueError):
        return False
    return now_s - renewed_s > SILENT_S


def _state(state: RunState, reason: str | None, now_s: float) -> JsonObject:
    return {"state": state.value, "reason": reason, "updated_s": now_s}


def was_begun(record: JsonFields | None) -> bool:
    """Whether a run with this `run.json` has had a driver: not if it has none, or only that of a server's queue."""
    return record is not None and record.get(QUEUED) is not True


def parse_state(value: object) -> RunState | None:
    """The state in a `run.json`; None if it is none."""
    try:
        return RunState(str(value))
    except ValueError:
        return None


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


_DATE = re.compile(r"-(\d{8}-\d{6})-[0-9a-f]{4}$")


def _made(layout: RunLayout) -> str:
    """When a directory was last changed, as ids say it."""
    try:
        return datetime.fromtimestamp(layout.root.stat().st_mtime).strftime("%Y%m%d-%H%M%S")
    except OSError:
        return ""


def _name_of(run_id: str) -> str:
    return re.sub(r"-\d{8}-\d{6}-[0-9a-f]{4}$", "", run_id)


def _closest(query: str, heads: Sequence[_Head]) -> str:
    # Ids differ from a mistyped job name mostly by their date: compare with names as well.
    candidates = [head.layout.run_id for head in heads] + [head.name for head in heads] + ["last"]
    close = list(dict.fromkeys(difflib.get_close_matches(query, candidates, n=3, cutoff=0.5)))
    return f"did you mean {' or '.join(close)}? `convoy runs` lists them" if close else "`convoy runs` lists them"

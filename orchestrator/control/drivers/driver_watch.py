"""What is known of the driver of one run, read from the run's files. A file is read again only if it has changed."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from orchestrator.atomic_files import read_json
from orchestrator.control.drivers.driver_report import DriverReport
from orchestrator.control.ports import DriverFacts
from orchestrator.domain.events import RunState
from orchestrator.domain.lease import TTL_S, Observed, observe
from orchestrator.domain.queue.grant import GrantAnswer
from orchestrator.domain.run_layout import RunLayout
from orchestrator.json_values import JsonObject
from orchestrator.store.driver_process import DriverProcess
from orchestrator.store.lease.lease_places import LeaseDirectory, LeaseEntry
from orchestrator.store.run_store import parse_state, was_begun

CHECK_S = 5.0
"""From one thorough look at a process to the next: between them, it is only asked whether its pid exists."""
T = TypeVar("T")


class _FileValue(Generic[T]):
    """The value of a file, or what was made of a directory."""

    def __init__(self, path: Path, read: Callable[[], T], missing: T) -> None:
        self._path, self._read, self._missing = str(path), read, missing
        self._stamp: tuple[int, int] | None = None
        self.value = missing

    def look(self) -> T:
        """The present value."""
        try:
            found = os.stat(self._path)  # noqa: PTH116  # thousands of times a second
        except OSError:
            self._stamp, self.value = None, self._missing
            return self.value
        stamp = (found.st_mtime_ns, found.st_ino)
        if stamp != self._stamp:
            self.value, self._stamp = self._read(), stamp  # of before the reading
        return self.value


@dataclass(frozen=True)
class _Record:
    """What `run.json` says."""

    state: RunState | None = None
    reason: str | None = None
    driver: DriverProcess | None = None


def _record_of(value: JsonObject) -> _Record:
    if not was_begun(value):
        return _Record()
    reason = value.get("reason")
    driver = DriverProcess.from_json(value.get("driver"))
    return _Record(parse_state(value.get("state")), str(reason) if reason else None, driver)


@dataclass
class _Process:
    """Whether a process lives."""

    driver: DriverProcess
    alive: bool | None = None
    checked_s: float = field(default=float("-inf"))

    def look(self, now_s: float) -> bool | None:
        if self.alive is False:
            return False  # it does not come back
        if now_s - self.checked_s >= CHECK_S or (self.alive is True and not _pid_exists(self.driver.pid)):
            self.alive, self.checked_s = self.driver.alive(), now_s
        return self.alive


class DriverWatch:
    """For one run, and for one thread."""

    def __init__(self, directory: Path) -> None:
        layout = RunLayout(directory)
        self._leases = LeaseDirectory(directory)
        self._record = _FileValue[_Record](layout.state, lambda: _record_of(read_json(layout.state) or {}), _Record())
        self._launch = _FileValue(layout.driver, lambda: DriverProcess.from_json(read_json(layout.driver)), None)
        self._report = _FileValue(
            layout.driver_report, lambda: DriverReport.from_json(read_json(layout.driver_report)), None
        )
        self._answer = _FileValue(
            layout.grant_answer, lambda: GrantAnswer.from_json(read_json(layout.grant_answer)), None
        )
        self._token = _FileValue(layout.leases, self._leases.highest, 0)
        self._entry: _FileValue[LeaseEntry | None] | None = None
        self._entry_token = 0
        self._seen: Observed | None = None
        self._processes: dict[DriverProcess, _Process] = {}

    def drivers(self) -> tuple[DriverProcess, ...]:
        """The process that was started last, the one that has written the run's record, and the one that has its lease;
        usually they are the same."""
        return self._candidates(self._record.look(), self._lease())

    def _candidates(self, record: "_Record", entry: LeaseEntry | None) -> tuple[DriverProcess, ...]:
        holder = entry.driver if entry is not None and not entry.lease.released else None
        return tuple(dict.fromkeys(each for each in (self._launch.look(), record.driver, holder) if each is not None))

    def launched(self, driver: DriverProcess) -> None:
        """A process has just been started."""
        self._processes[driver] = _Process(driver)

    def look(self, now_s: float) -> DriverFacts:
        """`now_s`: on this process's monotonic clock."""
        record, report, entry = self._record.look(), self._report.look(), self._lease()
        drivers = self._candidates(record, entry)
        alive = self._alive(drivers, now_s)
        # What an earlier driver said of its end is not true of one that was started since and has said nothing.
        own = report is not None and drivers[:1] == (report.driver,)
        ended = own and report is not None and report.exit_code is not None
        answer = self._answer.look() or GrantAnswer(0)
        return DriverFacts(
            alive=alive,
            lease_moved=self._lease_moves(entry, now_s),
            state=record.state,
            reason=(report.error or record.reason) if ended and report is not None else record.reason,
            exit_code=report.exit_code if ended and report is not None else None,
            answered=answer.number,
            holding=answer.places if alive is not False else {},
            step=report.step if report is not None else 0,
            total_steps=report.total_steps if report is not None else None,
            step_time_s=report.step_time_s if report is not None else None,
            loss=report.loss if report is not None else None,
            cluster_address=report.address if own and report is not None else "",
            cluster_lost=ended and report is not None and report.cluster_lost,
        )

    def _alive(self, drivers: tuple[DriverProcess, ...], now_s: float) -> bool | None:
        """True if one of them lives; False if all are certainly gone, or there was none."""
        self._processes = {driver: self._processes.get(driver) or _Process(driver) for driver in drivers}
        found = [process.look(now_s) for process in self._processes.values()]
        if True in found:
            return True
        return None if None in found else False

    def _lease(self) -> LeaseEntry | None:
        """The newest one; None if there is none yet."""
        token = self._token.look()
        if not token:
            return None
        if self._entry is None or token != self._entry_token:
            path = self._leases.path(token)
            self._entry, self._entry_token = _FileValue(path, lambda: self._leases.read(token), None), token
        return self._entry.look()

    def _lease_moves(self, entry: LeaseEntry | None, now_s: float) -> bool:
        """Whether the holder of the lease may still renew it: it has done so within the TTL, and is not known to be
        dead."""
        if entry is None:
            return False
        self._seen = observe(self._seen, entry.lease, now_s)
        holder = self._processes.get(entry.driver) if entry.driver is not None else None
        dead = holder is not None and holder.alive is False
        return not entry.lease.released and not dead and self._seen.still_s < TTL_S


def _pid_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

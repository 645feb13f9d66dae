"""The process that drives one run of a server: `python -m orchestrator.control.drivers.driver_main REQUEST`, with the
fields of `DriverRequest` as JSON. It outlives the server, which finds it again by the run's files.

SIGTERM or SIGINT asks it to save the state and to end; more of them change nothing.
"""

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from orchestrator.atomic_files import read_json, write_json
from orchestrator.base_error import ConvoyError
from orchestrator.clusters.ray.reachability import listens
from orchestrator.control.drivers.cluster_guard import ClusterGuard
from orchestrator.control.drivers.driver_report import DriverReport, ReportWriter
from orchestrator.domain.errors import LeaseLostError
from orchestrator.domain.events import RunState
from orchestrator.domain.run_layout import RunLayout
from orchestrator.json_values import JsonFields, JsonObject, text
from orchestrator.run.driver_lease import LeaseChoice
from orchestrator.run.launcher import TRAIN_ENTRY, RunOutcome, serve_run
from orchestrator.store.driver_process import DriverProcess

BUSY = 75
"""Exit code of a driver that finds its run driven by another process (EX_TEMPFAIL of sysexits.h)."""
STOPPING = (signal.SIGTERM, signal.SIGINT)
WAIT_S = 0.2
"""From one look at the driving thread to the next. Signals are handled at once."""


@dataclass(frozen=True)
class DriverRequest:
    """What a driver is started for."""

    directory: Path
    """Of the run."""
    home: Path
    """`CONVOY_HOME`."""
    address: str
    """Of the Ray cluster."""
    entry: str = TRAIN_ENTRY
    """Entry point of the workers."""

    def to_json(self) -> JsonObject:
        """The fields as JSON values."""
        return {
            "directory": str(self.directory),
            "home": str(self.home),
            "address": self.address,
            "entry": self.entry,
        }

    @classmethod
    def from_json(cls, value: JsonFields) -> "DriverRequest":
        """Raises JsonShapeError."""
        directory, home = Path(text(value, "directory")), Path(text(value, "home"))
        return cls(directory, home, text(value, "address"), text(value, "entry"))


@dataclass
class _Driving:
    """How the driving thread ended."""

    outcome: RunOutcome | None = None
    error: BaseException | None = None
    lost: LeaseLostError | None = None
    """Another driver has taken the run over."""


def drive(request: DriverRequest) -> int:
    """Drive the run to its end; the exit code. To be called in the main thread."""
    stop, driving = threading.Event(), _Driving()

    def asked_to_stop(number: int, frame: FrameType | None) -> None:
        stop.set()

    def lose(error: LeaseLostError) -> None:
        driving.lost = error

    for number in STOPPING:
        signal.signal(number, asked_to_stop)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    layout = RunLayout(request.directory)
    if _another_drives(layout):
        return _busy(layout)
    before = DriverReport.from_json(read_json(layout.driver_report))
    writer = ReportWriter(layout, request.address, before, time.monotonic)

    def run() -> None:
        try:
            choice = LeaseChoice(on_lost=lose)
            driving.outcome = serve_run(
                request.directory, request.home, [writer], stop, request.address, request.entry, choice
            )
        except BaseException as error:  # noqa: BLE001  # reported below
            driving.error = error

    thread = threading.Thread(target=run, name="driver", daemon=True)
    thread.start()
    guard = ClusterGuard(request.address)
    while thread.is_alive() and driving.lost is None:
        thread.join(WAIT_S)
        if guard.gone(time.monotonic()):
            _say(f"the Ray cluster at {request.address} is gone")
            writer.end(1, cluster_lost=True)
            return 1
    if driving.lost is not None:  # its workers have been fenced off; nothing more may be written
        _say(driving.lost.message)
        return _busy(layout)
    return _conclude(driving, request, writer, stop.is_set())


def _conclude(driving: _Driving, request: DriverRequest, writer: ReportWriter, stopped: bool) -> int:
    outcome, layout = driving.outcome, RunLayout(request.directory)
    if outcome is not None:
        _say(f"run {outcome.run_id} has ended: {outcome.state.value}, step {outcome.step}")
        writer.end(outcome.exit_code, None, outcome.state is RunState.FAILED and not listens(request.address))
        return outcome.exit_code
    error = driving.error
    if isinstance(error, ConvoyError):
        if _another_drives(layout):
            _say(error.message)
            return _busy(layout)
        _say(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""))
        writer.end(error.exit_code, error.message + (f"\nhint: {error.hint}" if error.hint else ""))
        return error.exit_code
    if stopped and isinstance(error, KeyboardInterrupt):
        writer.end(130, "stopped before it began")
        return 130
    text = "".join(traceback.format_exception(error))
    _say(text)
    writer.end(1, f"{type(error).__name__}: {error}")
    return 1


def _another_drives(layout: RunLayout) -> bool:
    """Whether the run's record names another process of this host that lives."""
    driver = DriverProcess.from_json((read_json(layout.state) or {}).get("driver"))
    return driver is not None and driver != DriverProcess.current() and driver.alive() is True


def _busy(layout: RunLayout) -> int:
    """This process was one too many: the run's driver is the one in its record."""
    driver = (read_json(layout.state) or {}).get("driver")
    with contextlib.suppress(OSError):
        write_json(layout.driver, driver)
    return BUSY


def _say(message: str) -> None:
    """Into the driver's log."""
    print(message, file=sys.stderr, flush=True)


def end_process(exit_code: int) -> None:
    """End without waiting for threads: Ray's may hang if its cluster is gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


if __name__ == "__main__":
    from orchestrator.json_values import parse_object

    end_process(drive(DriverRequest.from_json(parse_object(sys.argv[1]))))

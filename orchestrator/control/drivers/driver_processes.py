"""Driver processes of a server's runs: implements `DriverPort`.

Nothing about a driver is known by this process alone: everything is in the run's files, so a server that is started
again finds every driver."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from orchestrator.control.drivers.driver_main import DriverRequest
from orchestrator.control.drivers.driver_start import DriverStart, read_launch
from orchestrator.control.drivers.driver_watch import DriverWatch
from orchestrator.control.ports import DriverFacts
from orchestrator.domain.errors import ConvoyError
from orchestrator.domain.queue.grant import Grant
from orchestrator.domain.run_layout import RunLayout
from orchestrator.run.launcher import TRAIN_ENTRY
from orchestrator.store.driver_process import DriverProcess
from orchestrator.store.exchange.grant_files import write_grant


class DriverProcesses:
    """Thread-safe. Closing it ends no driver."""

    def __init__(
        self,
        home: Path,
        server: int,
        environment: Mapping[str, str],
        preload: bool = True,
        entry: str = TRAIN_ENTRY,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`home`: `CONVOY_HOME` of the runs; `server`: the fencing number of this server's lease on its database;
        `environment` of the drivers, see `driver_environment`; `preload`: keep a fork server for fast starts; `entry`:
        entry point of the workers."""
        self._home, self._server, self._entry, self._monotonic_s = home, server, entry, monotonic_s
        self.starts = DriverStart(environment, preload)
        self._lock = threading.Lock()
        self._watches: dict[str, DriverWatch] = {}

    def launch(self, run_id: str, directory: Path, grant: Grant, resume: bool, cluster_address: str) -> None:
        """See `DriverPort`. A run that was begun is continued, whatever `resume` says: its files say it."""
        self._give(run_id, directory, grant)
        with contextlib.suppress(OSError):
            RunLayout(directory).grant_answer.unlink(missing_ok=True)  # of the driver before
        request = DriverRequest(directory.absolute(), self._home.absolute(), cluster_address, self._entry)
        pid = self.starts.start(request.to_json())
        with self._lock:
            self._watch(run_id, directory).launched(read_launch(directory) or DriverProcess.of(pid))

    def grant(self, run_id: str, directory: Path, grant: Grant) -> None:
        """See `DriverPort`. Raises ConvoyError if a later server has decided, or the disk refuses it."""
        self._give(run_id, directory, grant)

    def stop(self, run_id: str, directory: Path) -> None:
        """See `DriverPort`."""
        self._signal(run_id, directory, signal.SIGTERM)

    def kill(self, run_id: str, directory: Path) -> None:
        """See `DriverPort`. Ray ends the workers of a driver that is gone."""
        self._signal(run_id, directory, signal.SIGKILL)

    def look(self, runs: Mapping[str, Path]) -> Mapping[str, DriverFacts]:
        """See `DriverPort`."""
        self.starts.reap()
        now_s = self._monotonic_s()
        with self._lock:
            for run_id in self._watches.keys() - runs.keys():
                del self._watches[run_id]
            return {run_id: self._watch(run_id, directory).look(now_s) for run_id, directory in runs.items()}

    def close(self) -> None:
        """End the fork server. Idempotent."""
        self.starts.close()

    def _watch(self, run_id: str, directory: Path) -> DriverWatch:
        found = self._watches.get(run_id)
        if found is None:
            found = self._watches[run_id] = DriverWatch(directory)
        return found

    def _give(self, run_id: str, directory: Path, grant: Grant) -> None:
        try:
            written = write_grant(RunLayout(directory), grant, self._server)
        except OSError as error:
            raise ConvoyError(f"the grant of run {run_id} cannot be written: {error}") from error
        if not written:
            raise ConvoyError(f"run {run_id} has a newer grant: another server acts on it")

    def _signal(self, run_id: str, directory: Path, number: signal.Signals) -> None:
        with self._lock:
            drivers = self._watch(run_id, directory).drivers()
        for driver in drivers:
            send(driver, number)


def send(driver: DriverProcess, number: signal.Signals) -> bool:
    """Send a signal to a driver, and to no other process that has got its pid; whether it was there."""
    try:
        descriptor = os.pidfd_open(driver.pid)
    except OSError:
        return False
    try:
        if driver.alive() is not True:
            return False
        signal.pidfd_send_signal(descriptor, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)

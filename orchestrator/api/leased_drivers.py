"""Drivers of the server that holds the lease: its number is in every grant, and drivers ignore an earlier server."""

from collections.abc import Callable, Mapping
from pathlib import Path

from orchestrator.control.drivers.driver_processes import DriverProcesses
from orchestrator.control.ports import DriverFacts
from orchestrator.domain.errors import UnavailableError
from orchestrator.domain.queue.grant import Grant


class LeasedDrivers:
    """Implements `DriverPort`. For one thread, the ticker's."""

    def __init__(self, token: Callable[[], int | None], make: Callable[[int], DriverProcesses]) -> None:
        """`token`: of the lease now; None while another server acts. `make`: the driver processes of a token."""
        self._token, self._make = token, make
        self._own: tuple[int, DriverProcesses] | None = None

    def launch(self, run_id: str, directory: Path, grant: Grant, resume: bool, cluster_address: str) -> None:
        """See `DriverPort`."""
        self._drivers().launch(run_id, directory, grant, resume, cluster_address)

    def grant(self, run_id: str, directory: Path, grant: Grant) -> None:
        """See `DriverPort`."""
        self._drivers().grant(run_id, directory, grant)

    def stop(self, run_id: str, directory: Path) -> None:
        """See `DriverPort`."""
        self._drivers().stop(run_id, directory)

    def kill(self, run_id: str, directory: Path) -> None:
        """See `DriverPort`."""
        self._drivers().kill(run_id, directory)

    def look(self, runs: Mapping[str, Path]) -> Mapping[str, DriverFacts]:
        """See `DriverPort`."""
        return self._drivers().look(runs)

    def close(self) -> None:
        """End what makes starts fast. Drivers stay."""
        if self._own is not None:
            self._own[1].close()
            self._own = None

    def _drivers(self) -> DriverProcesses:
        token = self._token()
        if token is None:
            raise UnavailableError("another server acts on this queue")
        if self._own is None or self._own[0] != token:
            self.close()
            self._own = (token, self._make(token))
        return self._own[1]

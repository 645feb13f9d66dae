"""The driver's side of the fork server: whether there is one, its start and its end."""

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.clusters.ray.processes import start_bound

VARIABLE = "CONVOY_FORK_SERVER"
"""`0`: workers start without one. A path: the socket of one that runs already."""
BACKLOG = 1024
"""Clients that wait while the server imports: as many workers may start at once."""
END_S = 5.0
"""How long a killed server may take to be gone."""
HERE = Path(__file__).parent
NEEDED_BY_RAY = (
    "yaml", "jsonschema", "requests", "google.protobuf.timestamp_pb2", "google.protobuf.json_format", "pydantic.v1",
    "numpy.ctypeslib", "pdb", "logging.handlers",
)  # fmt: skip
"""What Ray imports in every worker, vault and file server: most of the time that its own import takes. Not pyarrow,
which starts a thread."""


@dataclass(frozen=True)
class Status:
    """What a server says of itself."""

    refused: str | None = None
    """Why it did not fork the last process that it refused."""
    refusals: int = 0


@dataclass
class ForkServer:
    """A server that local raylets get worker processes from."""

    socket: Path
    status: Path | None = None
    """What it says of itself; None if it is not ours."""
    process: subprocess.Popen[bytes] | None = None

    def command(self, stock: Sequence[str]) -> list[str]:
        """What a raylet runs for a worker. `stock`: what it would run without this server."""
        return [sys.executable, "-I", "-S", str(HERE / "fork_client.py"), str(self.socket), *stock]

    def bypassed(self) -> str | None:
        """Why workers started without it, as far as is known by now; None if they did not."""
        reason = self._read_status().refused
        if reason is None and self.process is not None and not self.lives():
            return f"its process ended with code {self.process.returncode}"
        return reason

    def lives(self) -> bool:
        """Whether it is ours and its process runs."""
        return self.process is not None and self.process.poll() is None

    def refusals(self) -> int:
        """How many processes it was asked for and did not fork."""
        return self._read_status().refusals

    def _read_status(self) -> "Status":
        if self.status is not None:
            with contextlib.suppress(OSError, ValueError):
                value = json.loads(self.status.read_text())
                return Status(value.get("refused"), value.get("refusals", 0))
        return Status()

    def close(self) -> None:
        """End it, and every process that it forked. Idempotent."""
        if self.process is not None:
            self.process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(END_S)


def find_fork_server(
    directory: Path, modules: Sequence[str], driver: Mapping[str, str], worker: Mapping[str, str]
) -> ForkServer | None:
    """The server that the driver's environment names, or one that is started now. None if the environment forbids it,
    or there is nothing to import ahead. `worker`: the environment of workers. Does not wait."""
    named = driver.get(VARIABLE, "")
    if named not in ("", "0"):
        return ForkServer(Path(named))
    return start_fork_server(directory, modules, worker) if modules and named != "0" else None


def start_fork_server(directory: Path, modules: Sequence[str], env: Mapping[str, str]) -> ForkServer:
    """Start a server for workers whose environment is `env`; it imports `modules` meanwhile. Does not wait.

    `directory` takes its socket. It dies with the calling thread. Raises OSError if it cannot be started.
    """
    path, status = directory / "forks", directory / "forks.json"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(BACKLOG)
        command = [
            sys.executable,
            str(HERE / "fork_server.py"),
            str(listener.fileno()),
            str(status),
            *NEEDED_BY_RAY,
            *modules,
        ]
        process = start_bound(command, env, passed=(listener.fileno(),))
    return ForkServer(path, status, process)

"""The files of a server below `$CONVOY_HOME/server/`: its address, its first token, its log."""

import contextlib
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from orchestrator.api.access.issued_tokens import IssuedTokens, UnauthenticatedError
from orchestrator.atomic_files import read_json, write_bytes
from orchestrator.domain.errors import ConflictError, ConvoyError, UsageError
from orchestrator.json_values import JsonShapeError, parse_object, text
from orchestrator.store.driver_process import DriverProcess
from orchestrator.wire.request_messages import TokenRequest

ADDRESS = "address.json"
ADMIN_TOKEN = "admin-token"
LOG = "server.log"
STOP_LIMIT_S = 20.0
_LOOK_S = 0.1


@dataclass(frozen=True)
class RunningServer:
    """A server that was started for a home."""

    url: str
    process: DriverProcess

    @property
    def alive(self) -> bool:
        """Its process lives, as far as this host can tell."""
        return self.process.alive() is not False


class ServerFiles:
    """The folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log, self.admin_token = folder / LOG, folder / ADMIN_TOKEN
        self.database, self.uploads, self.cluster = folder / "queue.db", folder / "files", folder / "cluster"

    def make(self) -> None:
        """Make the folder, for its owner alone. Raises UsageError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o700)
        except OSError as error:
            raise UsageError(f"cannot write {self.folder}: {error.strerror}", "set CONVOY_HOME or --home") from error

    def running(self) -> RunningServer | None:
        """The server that lives; None if there is none."""
        value = read_json(self.folder / ADDRESS) or {}
        process = DriverProcess.from_json(value.get("process"))
        try:
            found = RunningServer(text(value, "url"), process) if process is not None else None
        except JsonShapeError:
            return None
        return found if found is not None and found.alive else None

    def announce(self, url: str, server_id: str, ca_file: Path | None) -> None:
        """Say where this process listens. Raises OSError."""
        value = {
            "url": url,
            "server_id": server_id,
            "ca_file": str(ca_file) if ca_file is not None else None,
            "process": DriverProcess.current().to_json(),
        }
        write_bytes(self.folder / ADDRESS, (json.dumps(value, indent=2) + "\n").encode(), mode=0o600)

    def withdraw(self) -> None:
        """This process listens no more."""
        path = self.folder / ADDRESS
        with contextlib.suppress(OSError, ValueError):
            if DriverProcess.from_json(parse_object(path.read_bytes()).get("process")) == DriverProcess.current():
                path.unlink()

    def ensure_admin_token(self, tokens: IssuedTokens, user: str) -> None:
        """Make the first token, of an admin, into a file that only its owner can read, unless the one in the file is
        valid. Raises UsageError if the file cannot be written, UnavailableError."""
        try:
            tokens.holder(self.admin_token.read_text(encoding="ascii").strip())
        except (OSError, ValueError, UnauthenticatedError):
            pass
        else:
            return
        name = _fresh_name(tokens)
        made = tokens.create(TokenRequest(name=name, user=user, team="admins", role="admin"))
        try:
            write_bytes(self.admin_token, (made.secret + "\n").encode(), mode=0o600)
        except OSError as error:
            tokens.revoke(made.token.id)
            raise UsageError(f"cannot write {self.admin_token}: {error.strerror}") from error

    def stop(self, found: RunningServer) -> None:
        """End a server, and wait. Runs continue without it. Raises ConvoyError if it does not end."""
        if found.process.alive() is None:
            raise ConflictError(f"the server runs on another host ({found.process.host})", "stop it there")
        with contextlib.suppress(ProcessLookupError):
            os.kill(found.process.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_LIMIT_S
        while found.alive:
            if time.monotonic() > deadline:
                raise ConvoyError(
                    f"the server (process {found.process.pid}) has not ended within {STOP_LIMIT_S:g} s",
                    f"kill -9 {found.process.pid} is safe: nothing in the queue is lost",
                )
            time.sleep(_LOOK_S)


def _fresh_name(tokens: IssuedTokens) -> str:
    taken = {view.name for view in tokens.list() if not view.revoked}
    return next(name for number in range(1, 10_000) if (name := f"admin-{number}") not in taken)

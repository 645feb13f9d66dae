"""A server that `convoy monitor up` starts: until it is ready, while it runs, until it has ended."""

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.domain.errors import ConvoyError, UsageError
from orchestrator.json_values import JsonObject
from orchestrator.monitor.server_setup import LISTEN_HOST
from orchestrator.store.driver_process import DriverProcess

READY_S = 120.0
"""How long a server may take until it answers. Prometheus reads its log of recent samples first."""
READY_LOOK_S = 0.1
PROBE_TIMEOUT_S = 2.0
END_S = 10.0
"""How long a server may take to end; then it is killed."""
LOG_BYTES = 16 << 20
"""A longer log is emptied."""
SHOWN_LOG_LINES = 5


class ServerError(ConvoyError):
    """A server did not start, or has ended."""


@dataclass(frozen=True)
class ServerPlan:
    """How to start one."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    url: str
    ready_path: str
    """Answers 200 once it is ready."""
    log: Path


class ServerProcess:
    """One server. It gets signals from here alone, not from the terminal: Ctrl-C ends all in order."""

    def __init__(self, plan: ServerPlan) -> None:
        """Raises ServerError if it cannot be started."""
        self.plan = plan
        plan.log.parent.mkdir(parents=True, exist_ok=True)
        with plan.log.open("wb") as log:
            try:
                self._process = subprocess.Popen(
                    list(plan.command),
                    env=dict(plan.env),
                    cwd=plan.log.parent,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise ServerError(f"{plan.command[0]} cannot be started: {error.strerror or error}") from error

    def wait_until_ready(self, stop: Callable[[], bool]) -> bool:
        """Whether it answers; False if `stop` came first. Raises ServerError if it ends, or takes too long."""
        deadline = time.monotonic() + READY_S
        while not stop():
            self.require_alive()
            if answers(f"{self.plan.url}{self.plan.ready_path}"):
                return True
            if time.monotonic() >= deadline:
                raise ServerError(f"{self.plan.name} does not answer after {READY_S:g} s{self._last_words()}")
            time.sleep(READY_LOOK_S)
        return False

    def require_alive(self) -> None:
        """Raises ServerError, with the end of its log, if it has ended."""
        code = self._process.poll()
        if code is not None:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise ServerError(f"{self.plan.name} has ended ({how}){self._last_words()}", hint=f"see {self.plan.log}")

    def bound_log(self) -> None:
        """Empty its log if it is too long."""
        with contextlib.suppress(OSError):
            if self.plan.log.stat().st_size > LOG_BYTES:
                os.truncate(self.plan.log, 0)

    def end(self) -> None:
        """SIGTERM; SIGKILL after `END_S`. Idempotent."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def to_json(self) -> JsonObject:
        """Which process it is, and where it answers."""
        return {"name": self.plan.name, "url": self.plan.url, "process": DriverProcess.of(self._process.pid).to_json()}

    def _last_words(self) -> str:
        try:
            lines = self.plan.log.read_text(errors="replace").splitlines()[-SHOWN_LOG_LINES:]
        except OSError:
            return ""
        return ":\n" + "\n".join(f"  {line[:300]}" for line in lines) if lines else ""


def end_leftover(process: DriverProcess) -> bool:
    """End a server whose `convoy monitor up` was killed; whether there was one. Waits `END_S` at most."""
    if process.alive() is not True:
        return False
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + END_S
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)
        while process.alive() and time.monotonic() < deadline:
            time.sleep(READY_LOOK_S)
    return True


def answers(url: str) -> bool:
    """Whether a GET gives 200."""
    try:
        with _DIRECT.open(url, timeout=PROBE_TIMEOUT_S) as response:
            return bool(response.status == 200)
    except (OSError, ValueError):
        return False


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Loopback is not reached through a proxy."""


def free_port(wanted: int, option: str) -> int:
    """The port to listen on at loopback; 0: one that is free. Raises UsageError if it is in use."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LISTEN_HOST, wanted))
        except OSError as error:
            raise UsageError(
                f"port {wanted} of {LISTEN_HOST} cannot be used: {error.strerror or error}",
                hint=f"choose another one with {option}, or 0 for a free one",
            ) from error
        return int(probe.getsockname()[1])

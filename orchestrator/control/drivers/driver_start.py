"""Starts driver processes: by the resident fork server, or by a new interpreter if there is none."""

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from orchestrator.atomic_files import read_json, write_json
from orchestrator.domain.errors import ConvoyError
from orchestrator.domain.run_layout import RunLayout
from orchestrator.json_values import JsonObject, JsonShapeError, parse_object
from orchestrator.store.driver_process import DriverProcess

PRELOADED = (
    "ray",
    "ray.util.placement_group",
    "ray.util.scheduling_strategies",
    "orchestrator.run.launcher",
    "orchestrator.gang.driver",
    "orchestrator.gang.group.worker_group",
    "orchestrator.gang.elastic.reformation",
    "orchestrator.gang.ray_executor",
    "orchestrator.gang.vaults.vault_clients",
    "orchestrator.clusters.ray.joined_cluster",
    "orchestrator.report.report_file",
)
"""What every driver imports."""
ANSWER_S = 0.8
"""How long the fork server may take to fork. Then it is replaced, and the driver starts without it."""
READY_S = 60.0
"""How long it may take to import."""
LINE_BYTES = 4096


class DriverStart:
    """Thread-safe."""

    def __init__(self, environment: Mapping[str, str], preload: bool = True) -> None:
        """`environment` of all drivers. `preload`: keep a fork server; it starts now, in the background."""
        self._environment = dict(environment)
        self._lock = threading.Lock()
        self._cold: list[subprocess.Popen[bytes]] = []
        """Drivers that are children of this process; to be reaped."""
        self._preload = preload
        self._server: _ForkServerOfDrivers | None = None
        self._refresh()

    def start(self, request: JsonObject) -> int:
        """The pid of a new driver; `request`: the fields of `DriverRequest`. Raises ConvoyError."""
        with self._lock:
            self.reap()
            self._refresh()
            pid = self._server.fork(request) if self._server is not None else None
            try:
                return pid if pid is not None else self._start_cold(request)
            except OSError as error:
                raise ConvoyError(f"no driver process can be started: {error}") from error

    @property
    def ready(self) -> bool:
        """The fork server has imported everything."""
        return self._server is not None and self._server.ready()

    def wait_until_ready(self, timeout_s: float = READY_S) -> bool:
        """Wait until it has."""
        deadline = time.monotonic() + timeout_s
        while not self.ready and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.ready

    def reap(self) -> None:
        """Forget drivers that have ended."""
        self._cold = [process for process in self._cold if process.poll() is None]

    def close(self) -> None:
        """End the fork server; drivers stay."""
        with self._lock:
            if self._server is not None:
                self._server.close()
            self._server, self._preload = None, False

    def _refresh(self) -> None:
        """Replace a fork server that has ended."""
        if self._preload and (self._server is None or self._server.ended()):
            try:
                self._server = _ForkServerOfDrivers(self._environment)
            except OSError:
                self._server = None  # drivers start without it

    def _start_cold(self, request: JsonObject) -> int:
        directory = Path(str(request["directory"]))
        log = open_log(directory)
        try:
            command = [sys.executable, "-m", "orchestrator.control.drivers.driver_main", json.dumps(request)]
            process = subprocess.Popen(
                command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        finally:
            os.close(log)
        self._cold.append(process)
        write_launch(directory, process.pid)
        return process.pid


class _ForkServerOfDrivers:
    """A running `driver_forks`. It ends with this process: its stdin is closed then."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "orchestrator.control.drivers.driver_forks", *PRELOADED]
        self._process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._began_s, self._ready = time.monotonic(), False

    def ended(self) -> bool:
        """Whether its process is gone."""
        return self._process.poll() is not None

    def ready(self) -> bool:
        """Whether it has imported everything. One that refuses, or takes too long, is ended."""
        if not self._ready and not self.ended():
            answer = self._read(0.0)
            self._ready = answer is not None and answer.get("ready") is True
            if (answer is not None and not self._ready) or time.monotonic() - self._began_s > READY_S:
                self.close()
        return self._ready

    def fork(self, request: JsonObject) -> int | None:
        """The pid of a driver; None if there is none, or nobody knows."""
        assert self._process.stdin is not None
        if not self.ready():
            return None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            self.close()
            return None
        answer = self._read(ANSWER_S)
        pid = answer.get("pid") if answer is not None else None
        if isinstance(pid, int):
            return pid
        if answer is None:
            self.close()
        return None

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _read(self, timeout_s: float) -> JsonObject | None:
        """The next line, if it comes in time."""
        assert self._process.stdout is not None
        descriptor, data = self._process.stdout.fileno(), b""
        deadline = time.monotonic() + timeout_s
        look = select.poll()  # unlike `select`, for descriptors above 1,023: a server has many
        look.register(descriptor, select.POLLIN)
        while not data.endswith(b"\n"):
            if not look.poll(max(0.0, deadline - time.monotonic()) * 1000.0):
                return None
            piece = os.read(descriptor, LINE_BYTES)
            if not piece:
                return None
            data += piece
        try:
            return parse_object(data)
        except JsonShapeError:
            return None


def open_log(directory: Path) -> int:
    """A descriptor of the drivers' log of a run, at its end. Raises OSError."""
    path = RunLayout(directory).driver_log
    path.parent.mkdir(exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)


def write_launch(directory: Path, pid: int) -> None:
    """Note which process was started for a run: a server that is restarted looks for it. Raises OSError."""
    write_json(RunLayout(directory).driver, DriverProcess.of(pid).to_json())


def read_launch(directory: Path) -> DriverProcess | None:
    """The process that was started last for a run."""
    return DriverProcess.from_json(read_json(RunLayout(directory).driver))

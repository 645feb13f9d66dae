"""`convoy monitor up`: Prometheus and Grafana for the runs of a home, from their start to their end."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.atomic_files import read_json, try_lock, write_json, write_text
from orchestrator.domain.errors import UsageError
from orchestrator.host_identity import boot_id
from orchestrator.json_values import JsonObject, JsonShapeError, mapping, objects, text
from orchestrator.metrics.metrics_endpoint import TOKEN_VARIABLE
from orchestrator.monitor.binaries import Binary, find_grafana, find_prometheus
from orchestrator.monitor.monitoring_files import dashboards
from orchestrator.monitor.server_process import (
    END_S,
    ServerPlan,
    ServerProcess,
    answers,
    end_leftover,
    free_port,
)
from orchestrator.monitor.server_setup import (
    LISTEN_HOST,
    RETENTION_S,
    MonitorPaths,
    PrometheusNeeds,
    config_text,
    grafana_command,
    grafana_environment,
    grafana_install,
    prometheus_command,
)
from orchestrator.store.driver_process import DriverProcess
from orchestrator.store.metric_targets import announcements, clean_targets, targets_directory

PROMETHEUS, GRAFANA = "Prometheus", "Grafana"
READY_PATHS = {PROMETHEUS: "/-/ready", GRAFANA: "/api/health"}
"""By server: what answers 200 once it is ready."""
LOOK_S = 0.25
"""How often the servers are looked at."""
CLEAN_S = 30.0
"""How often the files of drivers that are gone are looked for."""
DOWN_S = 2 * END_S + 5.0
"""How long `down` waits for a monitor to end: it ends two servers."""


@dataclass(frozen=True)
class MonitorChoice:
    """What the user asks for."""

    home: Path
    port: int
    grafana_port: int
    grafana: bool = True
    """Start Grafana if it is installed."""
    retention: str = RETENTION_S
    alertmanager: str | None = None
    """`host:port`."""
    scrape_interval: str | None = None
    """E.g. 1s; None: that of the shipped configuration."""


@dataclass(frozen=True)
class MonitorState:
    """A monitor that runs, or did."""

    supervisor: DriverProcess
    servers: tuple[tuple[str, str, DriverProcess], ...]
    """Name, URL and process of each."""

    @property
    def running(self) -> bool:
        """Whether `convoy monitor up` is there."""
        return self.supervisor.alive() is True


class MonitorSession:
    """Holds the lock of the home's monitoring, and the servers. Use as a context manager: leaving it ends them."""

    def __init__(self, choice: MonitorChoice, env: Mapping[str, str]) -> None:
        """Find programs and ports. Nothing is started. Raises UsageError."""
        self._choice, self._env = choice, env
        self.paths = MonitorPaths(choice.home)
        self.notes: list[str] = []
        self.servers: list[ServerProcess] = []
        self._prometheus = find_prometheus()
        self._grafana: Binary | None = None
        if choice.grafana:
            self._grafana = find_grafana()
            if self._grafana is None:
                self.notes.append("Grafana is not installed (no `grafana` in PATH): dashboards need it")
        self._ending = contextlib.ExitStack()

    def __enter__(self) -> "MonitorSession":
        try:
            self._ending.enter_context(_locked(self.paths))
        except OSError as error:
            raise UsageError(f"cannot write into {self.paths.root}: {error.strerror or error}") from error
        return self

    def __exit__(self, *exception: object) -> None:
        self._ending.close()

    def start(self, stop: threading.Event) -> bool:
        """Start what was found, and wait until it answers; False if `stop` came first. Raises UsageError for a port
        that is in use, ServerError if a server does not start."""
        choice, paths = self._choice, self.paths
        for _, _, process in _servers_of(paths):
            end_leftover(process)
        port = free_port(choice.port, "--port")
        url = f"http://{LISTEN_HOST}:{port}"
        plans = [self._prometheus_plan(url, port)]
        if self._grafana is not None:
            plans.append(self._grafana_plan(url, free_port(choice.grafana_port, "--grafana-port")))
        self._write_files(plans[1].url if len(plans) > 1 else None)
        for plan in plans:
            server = ServerProcess(plan)
            self._ending.callback(server.end)
            self.servers.append(server)
        self._record(ready=False)
        self._ending.callback(lambda: paths.state.unlink(missing_ok=True))
        if not all(server.wait_until_ready(stop.is_set) for server in self.servers):
            return False
        self._record(ready=True)
        return True

    def watch(self, stop: threading.Event) -> None:
        """Until `stop`. Raises ServerError if a server ends before."""
        cleaned_s = float("-inf")
        while not stop.wait(LOOK_S):
            for server in self.servers:
                server.require_alive()
                server.bound_log()
            if time.monotonic() - cleaned_s >= CLEAN_S:
                cleaned_s = time.monotonic()
                clean_targets(self._choice.home)

    @property
    def has_grafana(self) -> bool:
        """Whether Grafana is started."""
        return self._grafana is not None

    def pages(self) -> list[tuple[str, str]]:
        """Titles and URLs of the dashboards, if Grafana runs."""
        grafana = [server.plan.url for server in self.servers if server.plan.name == GRAFANA]
        return [(each.title, f"{url}/d/{each.uid}") for url in grafana for each in dashboards()]

    def _prometheus_plan(self, url: str, port: int) -> ServerPlan:
        command = prometheus_command(self._prometheus.path, self.paths, port, self._choice.retention)
        return ServerPlan(
            PROMETHEUS, command, self._env, url, READY_PATHS[PROMETHEUS], self.paths.server_log("prometheus")
        )

    def _grafana_plan(self, prometheus_url: str, port: int) -> ServerPlan:
        assert self._grafana is not None
        command = grafana_command(grafana_install(self._grafana.path))
        env = grafana_environment(self._env, self.paths, port, prometheus_url)
        url = f"http://{LISTEN_HOST}:{port}"
        return ServerPlan(GRAFANA, command, env, url, READY_PATHS[GRAFANA], self.paths.server_log("grafana"))

    def _write_files(self, grafana_url: str | None) -> None:
        """Raises UsageError."""
        paths, token = self.paths, self._env.get(TOKEN_VARIABLE)
        try:
            for directory in (targets_directory(paths.home), paths.prometheus_data, paths.grafana_data):
                directory.mkdir(parents=True, exist_ok=True)
            paths.token.unlink(missing_ok=True)
            if token:
                _write_secret(paths.token, token)
            choice = self._choice
            needs = PrometheusNeeds(boot_id(), bool(token), choice.alertmanager, grafana_url, choice.scrape_interval)
            write_text(paths.prometheus_config, config_text(paths, needs))
        except OSError as error:
            raise UsageError(f"cannot write into {paths.root}: {error.strerror or error}") from error

    def _record(self, ready: bool) -> None:
        value: JsonObject = {
            "supervisor": DriverProcess.current().to_json(),
            "servers": [server.to_json() for server in self.servers],
            "ready": ready,
        }
        write_json(self.paths.state, value)


def read_state(paths: MonitorPaths, ready: bool = True) -> MonitorState | None:
    """The monitor that was started last and not ended; None if there is none. `ready`: only one that answers."""
    value = read_json(paths.state)
    if value is None or (ready and value.get("ready") is not True):
        return None
    supervisor = DriverProcess.from_json(value.get("supervisor"))
    if supervisor is None:
        return None
    return MonitorState(supervisor, tuple(_servers_of(paths)))


def _servers_of(paths: MonitorPaths) -> Iterator[tuple[str, str, DriverProcess]]:
    value = read_json(paths.state) or {}
    try:
        for each in objects(value, "servers"):
            process = DriverProcess.from_json(mapping(each, "process"))
            if process is not None:
                yield text(each, "name"), text(each, "url"), process
    except JsonShapeError:
        return


def end_monitor(home: Path) -> bool:
    """End the monitor of a home and its servers; whether there was one. A monitor that does not end in time is killed,
    and so are servers whose monitor was killed."""
    paths = MonitorPaths(home)
    state = read_state(paths, ready=False)
    if state is None:
        return False
    was_there = state.running
    if was_there:
        with contextlib.suppress(ProcessLookupError):
            os.kill(state.supervisor.pid, signal.SIGTERM)
        _wait(lambda: not state.running, DOWN_S)
        if state.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(state.supervisor.pid, signal.SIGKILL)
    leftovers = [end_leftover(process) for _, _, process in state.servers]
    paths.state.unlink(missing_ok=True)
    return was_there or any(leftovers)


def _wait(done: Callable[[], bool], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not done() and time.monotonic() < deadline:
        time.sleep(LOOK_S)


def monitor_facts(home: Path) -> JsonObject:
    """What `convoy monitor status` shows: servers, and the runs that Prometheus finds."""
    clean_targets(home)
    state = read_state(MonitorPaths(home))
    servers: list[JsonObject] = []
    if state is not None:
        servers = [
            {"name": name, "url": url, "answers": process.alive() is True and answers(f"{url}{READY_PATHS[name]}")}
            for name, url, process in state.servers
        ]
    targets: list[JsonObject] = [
        {"run": found.run_id, "job": found.job, "target": found.target, "token": found.bearer, "here": found.here}
        for _, found in announcements(home)
    ]
    running = state is not None and state.running
    return {"running": running, "servers": servers if running else [], "targets": targets}


@contextlib.contextmanager
def _locked(paths: MonitorPaths) -> Iterator[None]:
    """Be the only monitor of a home. Raises UsageError if there is one, OSError."""
    paths.root.mkdir(parents=True, exist_ok=True)
    descriptor = try_lock(paths.lock)
    if descriptor is None:
        state = read_state(paths, ready=False)
        where = f": {', '.join(f'{name} at {url}' for name, url, _ in state.servers)}" if state is not None else ""
        raise UsageError(
            f"monitoring of {paths.home.absolute()} is running already{where}",
            hint="`convoy monitor status` shows it, `convoy monitor down` ends it",
        )
    try:
        yield
    finally:
        os.close(descriptor)


def _write_secret(path: Path, secret: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, secret.encode())
    finally:
        os.close(descriptor)

"""`convoy monitor up`: a real Prometheus finds runs that come and go, and what can be wrong is said."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import psutil
import pytest
from prometheus_client import CollectorRegistry, Gauge

from orchestrator.domain.errors import UsageError
from orchestrator.metrics.metrics_endpoint import MetricsServer
from orchestrator.monitor import binaries
from orchestrator.monitor.binaries import checked, find_grafana, find_prometheus
from orchestrator.monitor.monitor_session import end_monitor, monitor_facts, read_state
from orchestrator.monitor.server_setup import MonitorPaths
from orchestrator.store.driver_process import DriverProcess
from orchestrator.store.metric_targets import Announcement, announce, targets_directory, withdraw

pytestmark = pytest.mark.cluster
T = TypeVar("T")
TOKEN = "0123456789abcdef0123456789abcdef"
GRAFANA = """\
#!{python}
import http.server, json, os, sys
if "--version" in sys.argv:
    print("grafana version 12.1.0")
    sys.exit()
assert sys.argv[1] == "server", sys.argv
assert os.environ["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
for folder in ("datasources", "dashboards"):
    assert os.listdir(os.path.join(os.environ["GF_PATHS_PROVISIONING"], folder))
assert os.environ["CONVOY_PROMETHEUS_URL"].startswith("http://127.0.0.1:")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(os.environ["GF_SERVER_HTTP_PORT"])), Handler).serve_forever()
"""
"""Stands for Grafana: it is started as Grafana is, and looks at what it gets."""


def convoy(home: Path, *arguments: str, path: str | None = None, token: str | None = None) -> subprocess.Popen[str]:
    env = {name: value for name, value in os.environ.items() if name != "CONVOY_METRICS_TOKEN"}
    env |= {"PATH": path or os.environ["PATH"], **({"CONVOY_METRICS_TOKEN": token} if token else {})}
    command = [sys.executable, "-m", "orchestrator", "monitor", *arguments, "--home", str(home)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def done(process: subprocess.Popen[str], code: int) -> str:
    out, errors = process.communicate(timeout=60)
    assert process.returncode == code, out + errors
    return out + errors


def wait_for(look: Callable[[], T | None], timeout_s: float = 60.0) -> T:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def query(url: str, expression: str) -> dict[str, dict[str, str]]:
    """The labels of the series that it returns, by `instance`."""
    with urllib.request.urlopen(f"{url}/api/v1/query?query={quote(expression)}", timeout=10) as response:
        found: list[dict[str, Any]] = json.load(response)["data"]["result"]
    return {each["metric"]["instance"]: each["metric"] for each in found}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "runs"
    end_monitor(tmp_path / "runs")


@pytest.fixture
def with_grafana(tmp_path: Path) -> str:
    """A PATH on which there is a Grafana."""
    binary = tmp_path / "bin" / "grafana"
    binary.parent.mkdir()
    binary.write_text(GRAFANA.format(python=sys.executable))
    binary.chmod(0o755)
    return f"{binary.parent}{os.pathsep}{os.environ['PATH']}"


class Served:
    """A run's endpoint, without the run."""

    def __init__(self, home: Path, run_id: str, token: str | None = None) -> None:
        registry = CollectorRegistry()
        Gauge("convoy_test", "A test.", ["run", "job"], registry=registry).labels(run_id, "a-job").set(1)
        self.server = MetricsServer(registry, "127.0.0.1", 0, token)
        self.announcement = Announcement(
            run_id, "a-job", str(home / run_id), f"127.0.0.1:{self.server.port}", 1, DriverProcess.current(),
            bearer=token is not None,
        )  # fmt: skip
        self.path = announce(home, self.announcement)

    def end(self) -> None:
        withdraw(self.path, 1)
        self.server.close()


@pytest.mark.needs("prometheus")
def test_runs_come_and_go_and_ctrl_c_ends_everything(home: Path, with_grafana: str) -> None:
    early, guarded = Served(home, "early-1"), Served(home, "guarded-1", TOKEN)
    elsewhere = replace(early.announcement, run_id="elsewhere-1")
    driver = replace(elsewhere.driver, boot_id="of another machine")
    announce(home, replace(elsewhere, driver=driver))
    ports = ("--port", "0", "--grafana-port", "0")
    up = convoy(home, "up", *ports, "--scrape-interval", "1s", path=with_grafana, token=TOKEN)
    state = wait_for(lambda: read_state(MonitorPaths(home)))
    (_, url, prometheus), (_, grafana_url, grafana) = state.servers
    assert urllib.request.urlopen(f"{grafana_url}/api/health", timeout=10).status == 200
    facts = monitor_facts(home)
    assert facts["running"] is True
    assert [each["answers"] for each in facts["servers"]] == [True, True]
    secret = MonitorPaths(home).token
    assert (secret.read_text(), stat.S_IMODE(secret.stat().st_mode)) == (TOKEN, 0o600)
    assert TOKEN not in MonitorPaths(home).prometheus_config.read_text()

    found = wait_for(lambda: _all_of(query(url, "convoy_test"), {"early-1", "guarded-1"}))
    late = Served(home, "late-1")
    early.end()
    assert found["early-1"] == {
        "__name__": "convoy_test", "instance": "early-1", "run": "early-1", "job": "a-job",
    }, "and neither exported_run nor exported_job"  # fmt: skip
    # Nor does it scrape what another machine has on its loopback.
    wait_for(lambda: set(query(url, "up")) == set(query(url, "convoy_test")) == {"guarded-1", "late-1"})
    with urllib.request.urlopen(f"{url}/api/v1/rules", timeout=10) as response:
        assert json.load(response)["data"]["groups"]
    second = done(convoy(home, "up", "--port", "0"), 2)
    assert f"is running already: Prometheus at {url}, Grafana at {grafana_url}" in second

    up.send_signal(signal.SIGINT)
    out = done(up, 130)
    assert f"Prometheus  {url}" in out
    assert f"Grafana     {grafana_url}" in out
    assert (prometheus.alive(), grafana.alive()) == (False, False)
    assert done(convoy(home, "down"), 0) == "nothing was running\n"
    late.end()
    guarded.end()


def _all_of(found: dict[str, dict[str, str]], wanted: set[str]) -> dict[str, dict[str, str]] | None:
    return found if set(found) == wanted else None


@pytest.mark.needs("prometheus")
def test_detached_and_killed(home: Path) -> None:
    """Servers whose monitor was killed are ended by the next one; data of before is there again."""
    out = done(convoy(home, "up", "--port", "0", "--no-grafana", "--detach"), 0)
    state = read_state(MonitorPaths(home))
    assert state is not None
    ((_, url, prometheus),) = state.servers
    assert f"Prometheus  {url}" in out
    os.kill(state.supervisor.pid, signal.SIGKILL)
    wait_for(lambda: not state.running)
    assert prometheus.alive()
    done(convoy(home, "up", "--port", "0", "--no-grafana", "-d"), 0)
    assert prometheus.alive() is False
    again = read_state(MonitorPaths(home))
    assert again is not None
    status = done(convoy(home, "status"), 0)
    assert status == f"Prometheus  {again.servers[0][1]}\n0 runs with metrics\n"
    assert done(convoy(home, "down"), 0) == "ended\n"
    assert not psutil.pid_exists(again.servers[0][2].pid)
    assert done(convoy(home, "status"), 0).startswith("not running")
    assert MonitorPaths(home).prometheus_data.is_dir()


@pytest.mark.needs("prometheus")
def test_what_is_wrong_is_said(home: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = done(convoy(home, "up", "--port", port, "--no-grafana"), 2)
    assert f"error: port {port} of 127.0.0.1 cannot be used: Address already in use" in said
    assert "hint: choose another one with --port" in said
    assert "not a duration" in done(convoy(home, "up", "--retention", "ever"), 2)
    data = MonitorPaths(home).prometheus_data
    data.parent.mkdir(parents=True)
    data.write_text("a file in the way")
    said = done(convoy(home, "up", "--port", "0", "--no-grafana"), 2)
    assert "cannot write into" in said
    data.unlink()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "prometheus").write_text(
        "#!/bin/sh\n[ $1 = --version ] && echo 'prometheus, version 3' && exit\necho why\n"
    )
    (broken / "prometheus").chmod(0o755)
    said = done(convoy(home, "up", "--port", "0", "--no-grafana", path=f"{broken}:/usr/bin:/bin"), 1)
    assert "error: Prometheus has ended (exit code 0):\n  why" in said
    said = done(convoy(home, "up", "--port", "0", "--no-grafana", "-d", path=f"{broken}:/usr/bin:/bin"), 1)
    assert "error: Prometheus has ended (exit code 0):\n  why" in said, "a detached one says it, too"
    assert not targets_directory(home).exists() or not list(targets_directory(home).iterdir())


def test_programs_that_are_missing_or_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no `prometheus` in PATH") as raised:
        find_prometheus()
    assert "apt install prometheus" in str(raised.value.hint)
    assert "compose.yaml" in str(raised.value.hint)
    assert find_grafana() is None
    binary = tmp_path / "prometheus"
    for content, said in (
        (b"\x7fELF garbage", "does not run"),
        (b"#!/bin/sh\necho no library >&2\nexit 3\n", "no library"),
    ):
        binary.write_bytes(content)
        binary.chmod(0o755)
        with pytest.raises(UsageError, match=said):
            find_prometheus()
    monkeypatch.setattr(binaries, "VERSION_S", 0.1)
    binary.write_text("#!/bin/sh\nexec /bin/sleep 5\n")
    with pytest.raises(UsageError, match="no answer to --version"):
        find_prometheus()
    binary.write_text("#!/bin/sh\necho 'prometheus, version 3.5.0 (branch: HEAD)'\n")
    monkeypatch.setattr(binaries, "VERSION_S", 20.0)
    assert checked(binary, "--version").version == "3.5.0"

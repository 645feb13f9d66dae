"""The metrics endpoint of a run: announced while it is served, and never the reason that a run does not begin."""

import socket
import threading
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge

from orchestrator.domain.errors import UsageError
from orchestrator.domain.events import Event, EventBody, MetricsServing, WarningIssued
from orchestrator.metrics.metrics_endpoint import TOKEN_VARIABLE
from orchestrator.run import served_metrics
from orchestrator.run.launcher import create_run
from orchestrator.run.run_context import RunContext
from orchestrator.run.served_metrics import ServedMetrics, reachable_host
from orchestrator.spec.loading.load import load_job
from orchestrator.store.metric_targets import announcements, targets_directory
from tests.cluster.gang_runs import write_job

pytestmark = pytest.mark.unit
TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("convoy_up", "Up.", registry=registry).set(1)
    return registry


class Listening:
    def __init__(self) -> None:
        self.bodies: list[EventBody] = []

    def on_event(self, event: Event) -> None:
        self.bodies.append(event.body)

    def on_step(self, report: object) -> None:
        raise AssertionError("no step")


def a_run(directory: Path, **metrics: object) -> tuple[RunContext, Listening]:
    job = load_job(write_job(directory, metrics=metrics))
    handle, seen = create_run(job, directory / "runs", threading.Event()), Listening()
    handle.watch("test", seen)
    return handle.context, seen


def test_a_run_announces_its_endpoint_until_it_ends(tmp_path: Path, registry: CollectorRegistry) -> None:
    run, seen = a_run(tmp_path)
    served = ServedMetrics(run, registry, {})
    ((path, found),) = announcements(tmp_path / "runs")
    assert seen.bodies == [MetricsServing(f"http://{found.target}/metrics")]
    assert (found.run_id, found.job, found.lease) == (run.layout.run_id, "gang", run.lease.token)
    assert (found.bearer, found.everywhere, found.here) == (False, False, True)
    with urllib.request.urlopen(f"http://{found.target}/metrics", timeout=5) as response:
        assert b"convoy_up 1.0" in response.read()
    served.close()
    served.close()
    assert not path.exists()
    run.lease.close()


def test_a_token_is_in_no_file(tmp_path: Path, registry: CollectorRegistry) -> None:
    run, _ = a_run(tmp_path, host="0.0.0.0")
    served = ServedMetrics(run, registry, {TOKEN_VARIABLE: TOKEN})
    ((path, found),) = announcements(tmp_path / "runs")
    assert found.bearer
    assert not found.target.startswith("0.0.0.0"), "nothing can be scraped there"
    assert TOKEN not in path.read_text()
    served.close()
    run.lease.close()


def test_an_endpoint_that_nobody_asked_for_is_no_reason_to_fail(
    tmp_path: Path, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seen = a_run(tmp_path)

    def no_sockets(*arguments: object) -> None:
        raise UsageError("metrics cannot be served at 127.0.0.1:0: Operation not permitted")

    monkeypatch.setattr(served_metrics, "MetricsServer", no_sockets)
    ServedMetrics(run, registry, {}).close()
    (warning,) = seen.bodies
    assert isinstance(warning, WarningIssued)
    assert "Operation not permitted" in warning.message
    with pytest.raises(UsageError):
        ServedMetrics(run, registry, {"CONVOY_METRICS_PORT": "9464"})
    run.lease.close()


def test_an_address_that_was_asked_for_must_be_served(tmp_path: Path, registry: CollectorRegistry) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        run, _ = a_run(tmp_path, port=taken.getsockname()[1])
        with pytest.raises(UsageError, match="cannot be served"):
            ServedMetrics(run, registry, {})
    assert list(announcements(tmp_path / "runs")) == []
    run.lease.close()


def test_without_an_endpoint_there_is_no_file(tmp_path: Path, registry: CollectorRegistry) -> None:
    run, seen = a_run(tmp_path, port="off")
    ServedMetrics(run, registry, {}).close()
    assert seen.bodies == []
    assert not targets_directory(tmp_path / "runs").exists()
    run.lease.close()


def test_a_home_that_cannot_be_written_costs_the_announcement(tmp_path: Path, registry: CollectorRegistry) -> None:
    run, seen = a_run(tmp_path)
    (tmp_path / "runs" / "monitoring").write_text("a file in the way")
    ServedMetrics(run, registry, {}).close()
    assert [type(body) for body in seen.bodies] == [MetricsServing, WarningIssued]
    run.lease.close()


def test_the_host_to_scrape() -> None:
    assert reachable_host("127.0.0.1") == ("127.0.0.1", False)
    assert reachable_host("localhost") == ("localhost", False)
    assert reachable_host("10.0.0.7") == ("10.0.0.7", True)
    host, everywhere = reachable_host("0.0.0.0")
    assert host not in ("0.0.0.0", "")
    assert everywhere == (host != "127.0.0.1")

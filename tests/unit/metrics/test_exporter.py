import contextlib
import select
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.domain.errors import UsageError
from orchestrator.domain.events import (
    CheckpointFailed,
    CheckpointSaved,
    CheckpointStarted,
    DataProgress,
    DataReady,
    EvalFinished,
    FaultKind,
    MemoryMeasured,
    NumericFaultFound,
    RecoveryFinished,
    RecoveryStarted,
    RunState,
    StateChanged,
    TrainingPlanned,
    WorkerFailed,
    WorkerPhase,
    WorkerStarted,
)
from orchestrator.domain.ranks.rank_report import CollectiveTimes, RankMemory
from orchestrator.domain.ranks.rank_summary import summarise
from orchestrator.domain.step_report import StepReport
from orchestrator.metrics import metric_catalog, metrics_endpoint
from orchestrator.metrics.exporter import MetricsObserver
from orchestrator.metrics.metrics_endpoint import MetricsServer, asked_port, refuses_connections
from orchestrator.store.metric_targets import targets_directory
from tests.events import event
from tests.unit.goodput.test_ledger_result import RESULT
from tests.unit.metrics.test_straggler_observer import slowed

pytestmark = pytest.mark.unit
Make = Callable[..., StepReport]
ROOT = Path(__file__).parents[3]
TOKEN = "0123456789abcdef0123"


def fed(report: Make) -> MetricsObserver:
    observer = MetricsObserver("tiny-1", "tiny", lambda: RESULT, clock=lambda: 100.0)
    for kind, fields in [
        (TrainingPlanned, {"total_steps": 50, "world_size": 2}),
        (DataProgress, {"done_bytes": 10, "total_bytes": 20}),
        (DataReady, {"tokens": 9, "documents": 3, "bad_records": 1, "train_samples": 5,
                                "validation_samples": 2}),
        (StateChanged, {"state": RunState.RUNNING}),
        (EvalFinished, {"loss": 4.5}),
        (CheckpointSaved, {"bytes": 100, "seconds": 0.5, "step": 2}),
        (CheckpointFailed, {"step": 3, "fault": "full", "seconds": 0.1}),
        (WorkerFailed, {"rank": 1}),
        (NumericFaultFound, {"fault": FaultKind.LOSS, "skipped_count": 12}),
        (NumericFaultFound, {"fault": FaultKind.SPIKE, "skipped_count": None}),
        (MemoryMeasured, {"measured": {"parameters": 10}, "predicted": {"parameters": 11, "activations": 12}}),
        (WorkerStarted, {"rank": 0, "host": "host-0", "node_id": "abc"}),
    ]:  # fmt: skip
        observer.on_event(event(kind, 1.0, **fields))
    observer.on_step(report(1))
    observer.on_step(report(2))
    return observer


def scrape(url: str, token: str | None = None) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    with urllib.request.urlopen(request, timeout=5) as response:
        text = response.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def server(report: Make) -> Iterator[MetricsServer]:
    server = MetricsServer(fed(report).registry, "127.0.0.1", 0, None)
    yield server
    server.close()


def test_a_scrape_shows_the_run(server: MetricsServer) -> None:
    values = scrape(server.url)

    def value(name: str, **labels: str) -> float:
        return values[name, frozenset({"run": "tiny-1", "job": "tiny", **labels}.items())]

    assert value("convoy_step") == 2
    assert value("convoy_steps_total") == 2
    assert value("convoy_total_steps") == 50
    assert value("convoy_tokens_total") == 1536
    assert value("convoy_loss") == 4.0
    assert value("convoy_validation_loss") == 4.5
    assert value("convoy_model_flops_per_second") == 0.5e12
    assert value("convoy_step_phase_duration_seconds_sum", phase="backward") == pytest.approx(0.8)
    assert value("convoy_step_phase_duration_seconds_count", phase="backward") == 2
    assert value("convoy_worker_rss_bytes", rank="1") == 1001
    assert value("convoy_worker_memory_bytes", kind="peak_rss", stat="max") == 2001
    assert value("convoy_worker_step_seconds", phase="own", stat="p50") == pytest.approx(0.9)
    assert value("convoy_run_state", state="running") == 1
    assert value("convoy_run_state", state="preparing") == 0
    assert value("convoy_checkpoint_bytes_total") == 100
    assert value("convoy_data_samples", split="validation") == 2
    assert value("convoy_worker_failures_total") == 1
    assert value("convoy_numeric_faults_total", kind="loss_not_finite") == 1
    assert value("convoy_numeric_faults_total", kind="loss_spike") == 1
    assert value("convoy_skipped_samples_total") == 12
    assert value("convoy_checkpoint_failures_total") == 1
    assert value("convoy_checkpoint_age_seconds") == 99, "saved at 1, asked at 100"
    assert value("convoy_worker_time_seconds", **{"class": "waiting"}) == 1.0
    assert value("convoy_worker_time_seconds", **{"class": "export"}) == 0.0
    assert (value("convoy_goodput_ratio"), value("convoy_ettr_ratio")) == (0.75, 0.7)
    assert value("convoy_reserved_seconds", device="gpu") == 4.0
    assert value("convoy_cost_usd") == 2.0
    assert value("convoy_cost_lost_usd", cause="node_died") == 0.5
    assert value("convoy_samples_per_second") == 12
    assert value("convoy_slowest_rank") == 0
    assert value("convoy_memory_part_bytes", part="parameters", source="measured") == 10
    assert value("convoy_memory_part_bytes", part="activations", source="predicted") == 12
    assert value("convoy_node_info", node="abc", hostname="host-0") == 1
    assert value("convoy_recoveries_total", reason="hang") == 0, "an increase shows only if there was a 0"
    assert value("convoy_recovery_phase_seconds_total", phase="restore") == 0
    assert value("convoy_durable_write_duration_seconds_count") == 1
    assert value("convoy_skipped_steps_total") == 0
    assert ("convoy_loss_scale", frozenset({"run": "tiny-1", "job": "tiny"}.items())) not in values
    assert ("convoy_mfu_ratio", frozenset({"run": "tiny-1", "job": "tiny"}.items())) not in values


def one(observer: MetricsObserver, name: str, **labels: str) -> float | None:
    """A sample of a registry; None if there is none."""
    return observer.registry.get_sample_value(name, {"run": "tiny-1", "job": "tiny", **labels})


def test_communication_counts_apart_from_compute_and_only_if_it_was_measured(report: Make) -> None:
    observer, phase = MetricsObserver("tiny-1", "tiny"), "convoy_step_phase_duration_seconds"
    cpu = report(1)
    waits = [replace(rank, waits=CollectiveTimes(0.0, 0.1 * rank.rank, 0.1)) for rank in cpu.ranks.every]
    observer.on_step(replace(cpu, ranks=summarise(waits)))
    assert one(observer, "convoy_communication_ratio") == pytest.approx(0.15)
    assert one(observer, f"{phase}_sum", phase="communication") == pytest.approx(0.15)
    memory = RankMemory(1, 2, 3, 4, 5)
    gpus = [replace(rank, memory=memory, waits=CollectiveTimes()) for rank in cpu.ranks.every]
    on_gpus = MetricsObserver("tiny-1", "tiny")
    on_gpus.on_step(replace(cpu, ranks=summarise(gpus)))  # a step that was not sampled
    assert one(on_gpus, "convoy_communication_ratio") is None
    assert one(on_gpus, f"{phase}_count", phase="communication") is None
    assert one(on_gpus, "convoy_worker_step_seconds", phase="collective", stat="max") is None
    sampled = [replace(rank, waits=CollectiveTimes(0.2, 0.0, 0.0)) for rank in gpus]
    on_gpus.on_step(replace(cpu, ranks=summarise(sampled)))
    on_gpus.on_step(replace(cpu, ranks=summarise(gpus)))
    assert one(on_gpus, "convoy_communication_ratio") == pytest.approx(0.2), "of the last one that was"
    assert one(on_gpus, f"{phase}_count", phase="communication") == 1


def test_fp16_and_snapshots_come_from_the_steps(report: Make) -> None:
    observer, step = MetricsObserver("tiny-1", "tiny"), report(1)
    observer.on_step(replace(step, loss_scale=1024.0, skipped=True))
    assert one(observer, "convoy_loss_scale") == 1024
    assert one(observer, "convoy_skipped_steps_total") == 1
    assert one(observer, "convoy_snapshot_duration_seconds_count") == 0
    copied = [replace(r, phases=replace(r.phases, snapshot_s=0.1 + r.rank)) for r in step.ranks.every]
    observer.on_step(replace(step, ranks=summarise(copied)))
    assert one(observer, "convoy_snapshot_duration_seconds_sum") == pytest.approx(1.1), "the slowest rank's"
    assert one(observer, "convoy_skipped_steps_total") == 1


def test_recoveries_count_by_reason_and_phase() -> None:
    observer = MetricsObserver("tiny-1", "tiny")
    observer.on_event(event(RecoveryStarted, 12.0, reason="hang", detected_s=11.0, alive_s=5.0))
    observer.on_event(event(WorkerPhase, 13.0, phase="restore"))
    observer.on_event(event(WorkerPhase, 15.0, phase="train"))
    observer.on_event(event(RecoveryFinished, 15.5, seconds=4.5))
    assert one(observer, "convoy_recoveries_total", reason="hang") == 1
    assert one(observer, "convoy_recoveries_total", reason="worker_died") == 0
    phases = {"detection": 6.0, "decision": 1.0, "rebuild": 1.0, "restore": 2.0, "first_step": 0.5}
    assert {name: one(observer, "convoy_recovery_phase_seconds_total", phase=name) for name in phases} == phases


def test_checkpoints_that_are_being_written_are_queued() -> None:
    observer = MetricsObserver("tiny-1", "tiny")
    seen = []
    for kind, fields in [
        (CheckpointStarted, {"step": 1}),
        (CheckpointStarted, {"step": 2}),
        (CheckpointSaved, {"step": 1, "seconds": 0.1, "write_seconds": 7.0}),
        (CheckpointFailed, {"step": 2}),
        (CheckpointSaved, {"step": 3, "seconds": 0.5}),
    ]:
        observer.on_event(event(kind, 1.0, **fields))
        seen.append(one(observer, "convoy_durable_writes_queued"))
    assert seen == [1, 2, 1, 0, 0]
    assert one(observer, "convoy_durable_write_duration_seconds_sum") == 7.5, "one in the foreground: its pause"


def test_everything_served_is_in_the_catalog(server: MetricsServer) -> None:
    known = {metric.name for metric in metric_catalog.CATALOG}
    suffixes = ("_bucket", "_sum", "_count", "_created")
    served = {name for name, _ in scrape(server.url)}
    for suffix in suffixes:
        served = {name.removesuffix(suffix) for name in served}
    assert {name.removesuffix("_total") for name in served} <= {name.removesuffix("_total") for name in known}


def test_other_paths_are_not_served(server: MetricsServer) -> None:
    with pytest.raises(urllib.error.HTTPError) as raised:
        scrape(server.url.replace("/metrics", "/"))
    assert raised.value.code == 404


def test_with_a_token_nobody_reads_without_it(report: Make) -> None:
    server = MetricsServer(fed(report).registry, "0.0.0.0", 0, TOKEN)
    try:
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        for wrong in (None, "x", TOKEN + "x", TOKEN[:-1]):
            with pytest.raises(urllib.error.HTTPError) as raised:
                scrape(url, wrong)
            assert raised.value.code == 401
        assert len(scrape(url, TOKEN)) > 20
    finally:
        server.close()


@pytest.mark.parametrize(("host", "token"), [("0.0.0.0", None), ("10.0.0.7", None), ("::", None), ("127.0.0.1", "abc")])
def test_an_open_door_is_refused(report: Make, host: str, token: str | None) -> None:
    with pytest.raises(UsageError) as raised:
        MetricsServer(fed(report).registry, host, 0, token)
    assert "CONVOY_METRICS_TOKEN" in raised.value.message
    assert raised.value.hint is not None


def test_whoever_holds_connections_keeps_nobody_from_scraping(server: MetricsServer) -> None:
    host, port = server.url.split("/")[2].split(":")
    held = [socket.create_connection((host, int(port)), timeout=5.0) for _ in range(metrics_endpoint.MAX_CLIENTS + 10)]
    assert scrape(server.url)
    assert held[0].recv(1) == b""  # the oldest made room
    held[-1].settimeout(0.05)
    with pytest.raises(TimeoutError):
        held[-1].recv(1)
    assert sum(thread.name.endswith("(process_request_thread)") for thread in threading.enumerate()) <= (
        metrics_endpoint.MAX_CLIENTS + 1
    )
    for each in held:
        each.close()


def test_the_time_of_a_scrape_is_bounded_whatever_trickles_in(report: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_endpoint, "CLIENT_S", 0.2)
    server = MetricsServer(fed(report).registry, "127.0.0.1", 0, None)
    host, port = server.url.split("/")[2].split(":")
    trickle, began_s = socket.create_connection((host, int(port)), timeout=5.0), time.monotonic()
    over = False
    with contextlib.suppress(OSError):
        while not over and time.monotonic() - began_s < 10.0:
            trickle.sendall(b"G")
            over = bool(select.select([trickle], [], [], 0.05)[0]) and not trickle.recv(100)
    assert time.monotonic() - began_s < 10.0
    trickle.close()
    server.close()


def test_a_server_short_of_descriptors_serves_again(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    accept, left = socket.socket.accept, [2]

    def failing(listener: socket.socket) -> object:
        if left[0]:
            left[0] -= 1
            raise OSError(24, "Too many open files")
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", failing)
    assert scrape(server.url)
    assert left == [0]


@pytest.mark.parametrize(
    ("port", "variable", "asked"),
    [
        (9464, "1", 9464),
        (0, "off", 0),
        ("off", "9464", None),
        ("auto", None, 0),
        (None, None, 0),
        ("auto", "", 0),
        ("auto", "auto", 0),
        ("auto", "9464", 9464),
        ("auto", "off", None),
    ],
)
def test_where_the_port_comes_from(port: int | str | None, variable: str | None, asked: int | None) -> None:
    env = {} if variable is None else {"CONVOY_METRICS_PORT": variable}
    assert asked_port(port, env) == asked


@pytest.mark.parametrize("said", ["many", "-1", "65536", "on"])
def test_a_variable_that_is_no_port_is_refused(said: str) -> None:
    with pytest.raises(UsageError, match="expected a port from 0 to 65535, auto or off"):
        asked_port("auto", {"CONVOY_METRICS_PORT": said})


def test_a_port_in_use_is_refused_and_a_free_one_is_found(report: Make, server: MetricsServer) -> None:
    with pytest.raises(UsageError, match="cannot be served"):
        MetricsServer(fed(report).registry, "127.0.0.1", server.port, None)
    other = MetricsServer(fed(report).registry, "127.0.0.1", 0, None)
    assert other.port not in (0, server.port)
    assert other.url == f"http://127.0.0.1:{other.port}/metrics"
    target = f"127.0.0.1:{other.port}"
    assert not refuses_connections(target)
    other.close()
    assert refuses_connections(target)
    assert not refuses_connections("no target at all")


def test_names_follow_the_conventions() -> None:
    names = [metric.name for metric in metric_catalog.CATALOG]
    assert len(names) == len(set(names))
    for metric in metric_catalog.CATALOG:
        assert metric.name.startswith("convoy_")
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.help.endswith(".")


def test_the_scrape_config_is_a_config() -> None:
    config = yaml.safe_load((ROOT / "monitoring" / "prometheus" / "prometheus.yml").read_text())
    assert config["scrape_configs"][0]["honor_labels"] is True
    (files,) = config["scrape_configs"][0]["file_sd_configs"][0]["files"]
    assert (ROOT / "monitoring" / "prometheus" / files).parent.resolve() == targets_directory(ROOT / "runs").resolve()


def test_a_large_gang_has_series_of_the_slowest_ranks_alone(report: Make) -> None:
    observer = fed(report)
    small = len(list(series(observer)))
    observer.on_step(report(3, world_size=1024))
    ranks = {labels["rank"] for _, labels in series(observer) if "rank" in labels}
    assert ranks == {"0", "1", "2", "3"}
    large = len(list(series(observer)))
    assert large == small + 2 * (4 - 2), "two metrics of memory for two more ranks"
    slow = slowed(report(4, world_size=1024), 700, 2.0)
    observer.on_step(slow)
    ranks = {labels["rank"] for _, labels in series(observer) if "rank" in labels}
    assert ranks == {"700", "0", "1", "2"}
    observer.on_step(report(5))
    assert len(list(series(observer))) == small


def series(observer: MetricsObserver) -> Iterator[tuple[str, dict[str, str]]]:
    for family in observer.registry.collect():
        yield from ((sample.name, sample.labels) for sample in family.samples)


@pytest.mark.needs("promtool")
def test_promtool_accepts_config_and_metrics(report: Make) -> None:
    promtool = "promtool"
    from prometheus_client import generate_latest

    config = ROOT / "monitoring" / "prometheus" / "prometheus.yml"
    assert subprocess.run([promtool, "check", "config", str(config)]).returncode == 0
    text = generate_latest(fed(report).registry)
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True)
    assert checked.returncode == 0, checked.stderr.decode()

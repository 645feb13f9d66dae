"""A run's metrics for Prometheus: an observer that keeps them, and the `/metrics` endpoint that serves them."""

import contextlib
import hmac
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestrator import __version__
from orchestrator.domain.errors import UsageError
from orchestrator.domain.events import (
    CheckpointFailed,
    CheckpointRejected,
    CheckpointRestored,
    CheckpointSaved,
    DataProgress,
    DataReady,
    EvalFinished,
    Event,
    GangResized,
    GangWaiting,
    NodeDraining,
    NumericFaultFound,
    RecoveryFinished,
    RunState,
    ScaleAnswered,
    ScaleState,
    StateChanged,
    TrainingPlanned,
    WarningIssued,
    WorkerFailed,
    WorkerHung,
)
from orchestrator.domain.step_report import StepReport
from orchestrator.json_values import JsonObject, mapping, number
from orchestrator.metrics import metric_catalog
from orchestrator.metrics.durability_recorder import COMPUTED, DurabilityCollector, DurabilityRecorder

PORT_VARIABLE = "CONVOY_METRICS_PORT"
TOKEN_VARIABLE = "CONVOY_METRICS_TOKEN"
MIN_TOKEN_LENGTH = 16
CLIENT_S = 10.0
"""From a connection to the end of its answer."""
MAX_CLIENTS = 16
"""Connections at a time, each with a thread; a further one ends the oldest."""
CLOSE_POLL_S = 0.05
"""How often the serving thread looks whether it shall end: `close`, and so the end of a run, waits for that."""
ERROR_PAUSE_S = 0.1
"""Pause after an error of `accept`, which would otherwise recur at once if descriptors are exhausted."""


class MetricsObserver:
    """Keeps every metric of the catalog for one run, in a registry of its own."""

    def __init__(
        self,
        run_id: str,
        job: str,
        ledger: Callable[[], JsonObject] | None = None,
        clock: Callable[[], float] = time.time,
        slowness: Callable[[], dict[int, float]] | None = None,
        durability: DurabilityRecorder | None = None,
    ) -> None:
        """`ledger` gives the run's ledger as it is when scraped (`LedgerRecorder.snapshot`), `clock` Unix seconds,
        `slowness` the ratio of each rank (`StragglerRecorder.ratios`)."""
        self.registry = CollectorRegistry()
        self._common = (run_id, job)
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}
        self._histograms: dict[str, Histogram] = {}
        computed = {metric_catalog.CATEGORY_SECONDS.name, metric_catalog.GOODPUT.name, metric_catalog.STRAGGLER.name}
        computed |= {metric.name for metric in COMPUTED}
        for metric in metric_catalog.CATALOG:
            if metric.name in computed:
                continue
            if metric.kind == "gauge":
                self._gauges[metric.name] = Gauge(metric.name, metric.help, metric.all_labels, registry=self.registry)
            elif metric.kind == "counter":
                counter = Counter(metric.name, metric.help, metric.all_labels, registry=self.registry)
                self._counters[metric.name] = counter
                if not metric.labels:
                    counter.labels(*self._common)  # a counter is there, at 0, before anything is counted
            else:
                self._histograms[metric.name] = Histogram(
                    metric.name, metric.help, metric.all_labels, registry=self.registry, buckets=metric.buckets
                )
        if ledger is not None:
            self.registry.register(_LedgerCollector(self._common, ledger))
        if slowness is not None:
            self.registry.register(_SlownessCollector(self._common, slowness))
        if durability is not None:
            self.registry.register(DurabilityCollector(self._common, durability))
        self._set(metric_catalog.RUN_INFO, 1, __version__)
        self._set_state(RunState.PREPARING)
        self._checkpoint_s = clock()
        age = self._gauges[metric_catalog.CHECKPOINT_AGE.name].labels(*self._common)
        age.set_function(lambda: max(0.0, clock() - self._checkpoint_s))

    def on_event(self, event: Event) -> None:
        """Update what the event changes."""
        match event.body:
            case StateChanged(state):
                self._set_state(state)
                self._set(metric_catalog.MISSING_WORKERS, 0)  # the event that follows says how many
            case TrainingPlanned() as plan:
                self._set(metric_catalog.TOTAL_STEPS, plan.total_steps)
                self._set(metric_catalog.WORKERS, plan.world_size)
            case DataProgress() as data:
                self._set(metric_catalog.DATA_DONE, data.done_bytes)
                self._set(metric_catalog.DATA_TOTAL, data.total_bytes)
            case DataReady() as ready:
                self._set(metric_catalog.DATA_TOKENS, ready.tokens)
                self._set(metric_catalog.DATA_DOCUMENTS, ready.documents)
                self._set(metric_catalog.DATA_BAD, ready.bad_records)
                self._set(metric_catalog.DATA_SAMPLES, ready.train_samples, "train")
                self._set(metric_catalog.DATA_SAMPLES, ready.validation_samples, "validation")
            case EvalFinished() as evaluation:
                self._set(metric_catalog.VALIDATION_LOSS, evaluation.loss)
            case CheckpointSaved() as saved:
                self._checkpoint_s = event.time_s
                self._count(metric_catalog.CHECKPOINTS, 1)
                self._count(metric_catalog.CHECKPOINT_BYTES, saved.bytes)
                self._count(metric_catalog.CHECKPOINT_SECONDS, saved.seconds)
                self._set(metric_catalog.CHECKPOINT_STEP, saved.step)
            case CheckpointFailed():
                self._count(metric_catalog.CHECKPOINT_FAILURES, 1)
            case CheckpointRestored():
                self._count(metric_catalog.CHECKPOINT_RESTORES, 1)
            case CheckpointRejected():
                self._count(metric_catalog.CHECKPOINT_REJECTIONS, 1)
            case WarningIssued():
                self._count(metric_catalog.WARNINGS, 1)
            case _:
                self._on_trouble(event)

    def _on_trouble(self, event: Event) -> None:
        """What has to do with lost workers, bad numbers and changes of size."""
        match event.body:
            case WorkerFailed():
                self._count(metric_catalog.WORKER_FAILURES, 1)
            case WorkerHung():
                self._count(metric_catalog.HANGS, 1)
            case RecoveryFinished() as recovery:
                self._count(metric_catalog.RECOVERIES, 1)
                self._count(metric_catalog.RECOMPUTED_STEPS, recovery.steps_recomputed)
                self._histograms[metric_catalog.RECOVERY_SECONDS.name].labels(*self._common).observe(recovery.seconds)
            case GangResized():
                self._count(metric_catalog.RESIZES, 1)
            case NumericFaultFound() as found:
                self._count(metric_catalog.NUMERIC_FAULTS, 1, found.fault.value)
                self._count(metric_catalog.SKIPPED_SAMPLES, found.skipped_count)
            case ScaleAnswered(state=ScaleState.ACCEPTED) as answer:
                self._set(metric_catalog.TARGET_WORKERS, answer.workers)
            case NodeDraining():
                self._count(metric_catalog.DRAINING_NODES, 1)
            case GangWaiting() as waiting:
                self._set(metric_catalog.MISSING_WORKERS, waiting.need - waiting.have)
                self._set(metric_catalog.WORKERS, waiting.have)

    def on_step(self, report: StepReport) -> None:
        """Update the figures of the last step and what is counted."""
        gauges = {
            metric_catalog.STEP: report.step,
            metric_catalog.EPOCH: report.epoch,
            metric_catalog.LOSS: report.loss,
            metric_catalog.GRAD_NORM: report.grad_norm,
            metric_catalog.LEARNING_RATE: report.lr,
            metric_catalog.TOKENS_PER_SECOND: report.tokens_per_s,
            metric_catalog.FLOPS_PER_SECOND: None if report.tflops_per_s is None else report.tflops_per_s * 1e12,
            metric_catalog.MFU: report.mfu,
            metric_catalog.WORKERS: report.world_size,
            metric_catalog.LAST_STEP_TIME: report.time_s,
            metric_catalog.PROTECTED_STEP: report.protected_step,
        }
        for metric, value in gauges.items():
            self._set(metric, value)
        self._count(metric_catalog.STEPS, 1)
        self._count(metric_catalog.TOKENS, report.tokens)
        self._count(metric_catalog.SAMPLES, report.samples)
        self._histograms[metric_catalog.STEP_SECONDS.name].labels(*self._common).observe(report.step_time_s)
        for rank in report.ranks:
            for phase, seconds in asdict(rank.phases).items():
                self._count(metric_catalog.PHASE_SECONDS, seconds / len(report.ranks), phase.removesuffix("_s"))
            label = str(rank.rank)
            self._set(metric_catalog.RSS, rank.memory.rss_bytes, label)
            self._set(metric_catalog.PEAK_RSS, rank.memory.peak_rss_bytes, label)
            self._set(metric_catalog.ALLOCATED, rank.memory.allocated_bytes, label)
            self._set(metric_catalog.RESERVED, rank.memory.reserved_bytes, label)
            self._set(metric_catalog.PEAK_ALLOCATED, rank.memory.peak_allocated_bytes, label)

    def _set_state(self, state: RunState) -> None:
        for known in RunState:
            self._set(metric_catalog.RUN_STATE, int(known is state), known.value)

    def _set(self, metric: metric_catalog.Metric, value: object, *labels: str) -> None:
        if isinstance(value, int | float):
            self._gauges[metric.name].labels(*self._common, *labels).set(value)

    def _count(self, metric: metric_catalog.Metric, value: object, *labels: str) -> None:
        if isinstance(value, int | float) and value >= 0:
            self._counters[metric.name].labels(*self._common, *labels).inc(value)


class _LedgerCollector(Collector):
    """The ledger's seconds, worked out when asked for."""

    def __init__(self, common: tuple[str, str], ledger: Callable[[], JsonObject]) -> None:
        self._common = common
        self._ledger = ledger

    def collect(self) -> Iterable[Metric]:
        value = self._ledger()
        seconds_metric = metric_catalog.CATEGORY_SECONDS
        family = GaugeMetricFamily(seconds_metric.name, seconds_metric.help, labels=seconds_metric.all_labels)
        spent = mapping(value, "seconds")
        for category in spent:
            family.add_metric((*self._common, category), number(spent, category))
        goodput = GaugeMetricFamily(
            metric_catalog.GOODPUT.name, metric_catalog.GOODPUT.help, labels=metric_catalog.COMMON_LABELS
        )
        goodput.add_metric(self._common, number(value, "goodput"))
        return [family, goodput]


class _SlownessCollector(Collector):
    """Ratios of the ranks there are: those of a larger gang before are gone with it."""

    def __init__(self, common: tuple[str, str], slowness: Callable[[], dict[int, float]]) -> None:
        self._common = common
        self._slowness = slowness

    def collect(self) -> Iterable[Metric]:
        metric = metric_catalog.STRAGGLER
        family = GaugeMetricFamily(metric.name, metric.help, labels=metric.all_labels)
        for rank, ratio in self._slowness().items():
            family.add_metric((*self._common, str(rank)), ratio)
        return [family]


class MetricsServer:
    """The endpoint, served from a daemon thread until `close`."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int, token: str | None) -> None:
        """Raises UsageError if the address cannot be bound, or is reachable from outside without a token."""
        check_exposure(host, token)
        app = _guarded(make_wsgi_app(registry), token)
        server_class = _ServerV6 if ":" in host else _Server
        try:
            self._server = make_server(host, port, app, server_class, handler_class=_QuietHandler)
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"metrics cannot be served at {host}:{port}: {getattr(error, 'strerror', None) or error}",
                hint="choose another metrics.port, or 0 for a free one",
            ) from error
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_port}/metrics"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(CLOSE_POLL_S,), name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


def serve_metrics(
    observer: MetricsObserver, host: str, port: int | None, env: Mapping[str, str]
) -> MetricsServer | None:
    """Start the endpoint if the spec (`port`) or `CONVOY_METRICS_PORT` sets a port; None if neither does.

    Raises UsageError for a bad port, an address that cannot be bound, or a missing token.
    """
    if port is None:
        asked = env.get(PORT_VARIABLE, "")
        if not asked:
            return None
        if not asked.isdecimal() or int(asked) > 65535:
            raise UsageError(f"{PORT_VARIABLE} is {asked!r}, expected a port from 0 to 65535")
        port = int(asked)
    return MetricsServer(observer.registry, host, port, env.get(TOKEN_VARIABLE) or None)


def check_exposure(host: str, token: str | None) -> None:
    """Raises UsageError if `host` is not loopback and there is no token, or the token is guessable."""
    if token is not None and len(token) < MIN_TOKEN_LENGTH:
        raise UsageError(
            f"{TOKEN_VARIABLE} has {len(token)} characters, expected at least {MIN_TOKEN_LENGTH}",
            hint="make one with: openssl rand -hex 32",
        )
    if token is None and not _is_loopback(host):
        raise UsageError(
            f"metrics.host {host!r} can be reached from other machines, and there is no {TOKEN_VARIABLE}",
            hint=f"export {TOKEN_VARIABLE}=$(openssl rand -hex 32), or use metrics.host: 127.0.0.1",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _guarded(app: WSGIApplication, token: str | None) -> WSGIApplication:
    """`app` at `/metrics` alone, for those who have the token."""
    expected = f"Bearer {token}".encode() if token is not None else None

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        given = str(environ.get("HTTP_AUTHORIZATION", "")).encode("latin-1", errors="replace")
        if expected is not None and not hmac.compare_digest(given, expected):
            start_response("401 Unauthorized", [("WWW-Authenticate", "Bearer"), ("Content-Type", "text/plain")])
            return [b"a bearer token is needed\n"]
        if environ.get("PATH_INFO") != "/metrics":
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"metrics are at /metrics\n"]
        return app(environ, start_response)

    return guarded


class _Server(ThreadingMixIn, WSGIServer):
    """Anybody who reaches the port can connect, so connections and their time are bounded before the token is read."""

    daemon_threads = True

    def server_bind(self) -> None:
        """Bind without looking up this host's full name, which can take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()
        self._clients: dict[socket.socket, float] = {}
        """When each has to be over, the oldest first."""
        self._clients_lock = threading.Lock()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept, as the base class does."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(ERROR_PAUSE_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread."""
        with self._clients_lock:
            self._clients[request] = time.monotonic() + CLIENT_S
            surplus = list(self._clients)[:-MAX_CLIENTS]
        self._hang_up(surplus)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """A connection is over."""
        with self._clients_lock:
            self._clients.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Between two looks for connections."""
        with self._clients_lock:
            late = [client for client, due_s in self._clients.items() if due_s <= time.monotonic()]
        self._hang_up(late)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """An interrupted scrape is not reported; the scraper sees it."""

    @staticmethod
    def _hang_up(clients: list[socket.socket]) -> None:
        """Wake their threads, which then close them."""
        for client in clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _QuietHandler(WSGIRequestHandler):
    timeout = CLIENT_S

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not news."""

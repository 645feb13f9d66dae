"""The metrics endpoint of a run, announced to Prometheus as long as it is served."""

import contextlib
import socket
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry

from orchestrator.domain.errors import UsageError
from orchestrator.domain.events import MetricsServing, WarningIssued
from orchestrator.host_identity import outward_address
from orchestrator.metrics.metrics_endpoint import AUTO, TOKEN_VARIABLE, MetricsServer, asked_port, is_loopback
from orchestrator.run.run_context import RunContext
from orchestrator.store.driver_process import DriverProcess
from orchestrator.store.metric_targets import Announcement, announce, clean_targets, withdraw

_WILDCARDS = {"0.0.0.0": socket.AF_INET, "": socket.AF_INET, "::": socket.AF_INET6}
"""Addresses of all interfaces."""


class ServedMetrics:
    """Serves and announces until `close`, unless the job wants no endpoint."""

    def __init__(self, run: RunContext, registry: CollectorRegistry, env: Mapping[str, str]) -> None:
        """Raises UsageError if an address that was asked for cannot be served. Without such a wish a run that cannot
        serve its metrics goes without, with a warning."""
        self._lease, self._file, self._server = run.lease.token, Path(), None
        spec, token = run.spec.metrics, env.get(TOKEN_VARIABLE) or None
        port = asked_port(spec.port, env)
        if port is None:
            return
        try:
            self._server = MetricsServer(registry, spec.host, port, token)
        except UsageError as error:
            if spec.port not in (AUTO, None) or not is_loopback(spec.host) or port or token:
                raise
            run.emit(WarningIssued(error.message))
            return
        run.emit(MetricsServing(self._server.url))
        self._announce(run, self._server, token is not None)

    def _announce(self, run: RunContext, server: MetricsServer, bearer: bool) -> None:
        host, everywhere = reachable_host(run.spec.metrics.host)
        announcement = Announcement(
            run_id=run.layout.run_id,
            job=run.spec.name,
            directory=str(run.layout.root),
            target=f"[{host}]:{server.port}" if ":" in host else f"{host}:{server.port}",
            lease=run.lease.token,
            driver=DriverProcess.current(),
            bearer=bearer,
            everywhere=everywhere,
        )
        try:
            clean_targets(run.store.home)
            self._file = announce(run.store.home, announcement)
        except OSError as error:
            run.emit(WarningIssued(f"Prometheus cannot find the metrics at {server.url}: no file for it: {error}"))

    def await_scrape(self) -> None:
        """Let Prometheus read the last state of a run that failed. At most `scrape_pace.LONGEST_WAIT_S`."""
        if self._server is not None:
            self._server.await_scrape()

    def close(self) -> None:
        """Withdraw the announcement and stop serving. Idempotent."""
        if self._file.name:
            with contextlib.suppress(OSError):
                withdraw(self._file, self._lease)
            self._file = Path()
        if self._server is not None:
            self._server.close()
            self._server = None


def reachable_host(host: str) -> tuple[str, bool]:
    """The host to scrape an endpoint at that is bound to `host`, and whether other machines reach it there."""
    if host in _WILDCARDS:
        family = _WILDCARDS[host]
        outward = outward_address(family)
        return (outward, True) if outward is not None else ("::1" if family is socket.AF_INET6 else "127.0.0.1", False)
    return host, not is_loopback(host)

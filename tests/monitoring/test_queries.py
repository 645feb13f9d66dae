"""Every query of every panel, recording rule and alert, asked of a real Prometheus that scraped a run with faults."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.dashboards.boards.all_dashboards import DASHBOARDS
from orchestrator.dashboards.metric_uses import metrics_of
from orchestrator.dashboards.panel_values import Query
from orchestrator.dashboards.rules.alert_rules import ALERTS
from orchestrator.dashboards.rules.recording_rules import RECORDING_RULES
from orchestrator.domain.events import RecoveryFinished, RunState
from orchestrator.metrics.metric_catalog import CATALOG
from tests.cluster.gang_runs import own_temporary_directory
from tests.monitoring.drilled_run import Drill, drill, scraped_twice
from tests.monitoring.made_up_run import JOB, RUN, made_up_endpoints
from tests.monitoring.prometheus_server import PrometheusServer, Span, free_port, substituted

pytestmark = [pytest.mark.faults, pytest.mark.needs("prometheus")]

RULES = Path(__file__).parents[2] / "monitoring" / "prometheus" / "rules"
MADE_UP = {"gpu", "fp16", "waiting", "exporters", "ranks"}
"""Needs that the run of the drill does not meet, and the made-up one does. A price it has."""


@dataclass(frozen=True)
class Monitored:
    """What Prometheus knows, and of when."""

    server: PrometheusServer
    run: Drill
    run_id: str
    span: Span

    def ask(self, query: Query) -> list[dict[str, object]]:
        """Of the run of the drill; what it cannot have, of the made-up one."""
        return self._of(JOB, RUN, query) if query.needs in MADE_UP else self._of("drilled", self.run_id, query)

    def _of(self, job: str, run: str, query: Query) -> list[dict[str, object]]:
        expr = substituted(query.expr, {"job": job, "run": run, "rank": ".+"}, self.span)
        return self.server.instant(expr, self.span.end_s) if query.instant else self.server.range(expr, self.span)


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    directory, port = tmp_path_factory.mktemp("monitored"), free_port()
    rules = (RULES / "recording.yml", RULES / "alerts.yml")
    with own_temporary_directory(), made_up_endpoints() as (made_up, exporters):
        targets = {"convoy": [f"127.0.0.1:{port}", made_up], "exporters": [exporters]}
        server = PrometheusServer(directory, targets, rules)
        try:
            outcome, run = drill(directory, port, lambda: scraped_twice(server, "drilled"))
            assert outcome.state is RunState.STOPPED
            assert run.struck == 1
            assert run.of(RecoveryFinished)
            yield Monitored(server, run, outcome.run_dir.name, Span(run.begun_s, run.ended_s))
        finally:
            server.close()


def finite(series: list[dict[str, object]]) -> bool:
    """Whether there is a number among the values."""
    points = [point for one in series for point in one.get("values", [one.get("value")])]  # type: ignore[attr-defined]
    return any(math.isfinite(float(point[1])) for point in points)


def test_every_query_of_every_panel_returns_data(monitored: Monitored) -> None:
    empty = [
        f"{dashboard.title}, {panel.title}: {query.expr}"
        for dashboard in DASHBOARDS
        for panel in dashboard.panels()
        for query in panel.queries
        if not finite(monitored.ask(query))
    ]
    assert empty == []


def test_what_happened_is_marked(monitored: Monitored) -> None:
    found = {
        annotation.name: bool(monitored.ask(Query(annotation.expr)))
        for dashboard in DASHBOARDS
        for annotation in dashboard.annotations
    }
    assert found == {"Recoveries": True, "Resizes": True, "Checkpoints": True, "Alerts": False}


def test_every_variable_has_values(monitored: Monitored) -> None:
    for dashboard in DASHBOARDS:
        for variable in dashboard.variables:
            metric, label = variable.query.removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
            found = monitored.ask(Query(f"group by ({label}) ({metric})", instant=True))
            assert [one["metric"][label] for one in found], variable.query  # type: ignore[index]


def test_every_rule_works_and_no_alert_fires(monitored: Monitored) -> None:
    rules = list(monitored.server.rules())
    assert {rule["name"] for rule in rules} == {
        *(rule.record for rule in RECORDING_RULES),
        *(alert.name for alert in ALERTS),
    }
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []
    for rule in RECORDING_RULES:
        assert monitored.server.instant(f'{rule.record}{{job="drilled"}}', monitored.span.end_s), rule.record
    fired = monitored.server.range('ALERTS{alertstate="firing",job="drilled"}', monitored.span)
    assert fired == [], "the run recovered by itself"


def test_every_metric_of_the_catalog_is_served(monitored: Monitored) -> None:
    missing = []
    for metric in CATALOG:
        name = f"{metric.name}_bucket" if metric.kind == "histogram" else metric.name
        if not monitored.server.instant(f'count({name}{{job=~"drilled|{JOB}"}})', monitored.span.end_s):
            missing.append(metric.name)
    assert missing == []


def test_every_metric_of_an_alert_has_series(monitored: Monitored) -> None:
    for alert in ALERTS:
        for name in metrics_of(alert.expr):
            assert monitored.server.instant(f"count({name})", monitored.span.end_s), f"{alert.name}: {name}"

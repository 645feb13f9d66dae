"""No panel without a metric, no metric without a use."""

from pathlib import Path

import pytest

from orchestrator.dashboards.boards.all_dashboards import DASHBOARDS
from orchestrator.dashboards.metric_uses import expressions, metrics_of, uses
from orchestrator.dashboards.monitoring_reference import monitoring_markdown
from orchestrator.dashboards.rules.alert_rules import ALERTS
from orchestrator.metrics.metric_catalog import CATALOG

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]


def test_names_are_found_in_expressions() -> None:
    expr = (
        'sum(rate(convoy_step_duration_seconds_bucket{a="convoy_x"}[5m])) / convoy_tokens_total > job_run:convoy_a:rate'
    )
    assert metrics_of(expr) == {"convoy_step_duration_seconds", "convoy_tokens_total"}


def test_every_expression_uses_metrics_of_the_catalog() -> None:
    known = {metric.name for metric in CATALOG}
    for expression in expressions():
        assert metrics_of(expression.expr) <= known, expression


def test_every_panel_has_a_metric() -> None:
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels():
            assert any(metrics_of(query.expr) for query in panel.queries), f"{dashboard.title}: {panel.title}"


def test_every_metric_has_a_use_or_says_why_not() -> None:
    used = uses()
    assert [metric.name for metric in CATALOG if not used[metric.name] and not metric.unused] == []
    assert [metric.name for metric in CATALOG if used[metric.name] and metric.unused] == []


def test_the_document_is_made_from_the_catalog_and_its_uses() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8") == monitoring_markdown(), (
        "run: python -m orchestrator.dashboards.monitoring_reference > docs/metrics.md"
    )


def test_an_alert_has_a_section_and_a_dashboard() -> None:
    document = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for alert in ALERTS:
        assert f"\n### {alert.name}\n" in document
        assert alert.dashboard in {dashboard.uid for dashboard in DASHBOARDS}
    assert "{{" not in document

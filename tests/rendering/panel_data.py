"""What the page needs of one dashboard: its JSON, and what Prometheus answers to its queries."""

import json
import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.monitoring.prometheus_server import PrometheusServer, Span, substituted

ROOT = Path(__file__).parents[2]
DASHBOARDS = ROOT / "monitoring" / "grafana" / "dashboards"
CURVE_POINTS = 400
"""On a time axis."""


def dashboard_data(path: Path, server: PrometheusServer, chosen: Mapping[str, str], span: Span) -> dict[str, Any]:
    """All that the page shows. Rows that are collapsed are shown open."""
    dashboard = json.loads(path.read_text(encoding="utf-8"))
    step_s = max(span.step_s, math.ceil((span.end_s - span.start_s) / CURVE_POINTS))
    fine = Span(span.start_s, span.end_s, step_s)
    times = [datetime.fromtimestamp(second, UTC).strftime("%H:%M") for second in (span.start_s, span.end_s)]
    variables = [variable for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    return {
        "uid": dashboard["uid"],
        "title": dashboard["title"],
        "choices": [(each["label"], shown(chosen[each["name"]])) for each in variables],
        "span": f"{times[0]} to {times[1]} UTC",
        "range": [span.start_s, span.end_s],
        "annotations": [
            {"color": each["iconColor"], "times": marks(server, substituted(each["expr"], chosen, fine), fine)}
            for each in dashboard["annotations"]["list"]
        ],
        "panels": [
            {"panel": panel, "results": [answer(server, target, chosen, fine) for target in panel.get("targets", [])]}
            for panel in opened(dashboard["panels"])
        ],
    }


def shown(value: str) -> str:
    return "All" if value in (".+", ".*") else value


def opened(panels: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows that are collapsed take the place of one line: what is below moves down by their panels."""
    shift = 0
    for panel in panels:
        inner = panel.get("panels", [])
        yield moved(panel, shift)
        if inner:
            yield from (moved(each, shift) for each in inner)
            bottom = max(each["gridPos"]["y"] + each["gridPos"]["h"] for each in inner)
            shift += bottom - panel["gridPos"]["y"] - 1


def moved(panel: dict[str, Any], rows: int) -> dict[str, Any]:
    place = panel["gridPos"]
    return {**panel, "gridPos": {**place, "y": place["y"] + rows}}


def answer(server: PrometheusServer, target: dict[str, Any], chosen: Mapping[str, str], span: Span) -> dict[str, Any]:
    """The series of one query."""
    expr = substituted(target["expr"], chosen, span)
    series = server.instant(expr, span.end_s) if target["instant"] else server.range(expr, span)
    return {"refId": target["refId"], "legend": target["legendFormat"], "series": series}


def marks(server: PrometheusServer, expr: str, span: Span) -> list[float]:
    """When an annotation begins: the first of values that follow each other."""
    found: list[float] = []
    for series in server.range(expr, span):
        before = -math.inf
        for time_s, value in series["values"]:  # type: ignore[attr-defined]
            if float(value) and time_s - before > 1.5 * span.step_s:
                found.append(time_s)
            before = time_s if float(value) else before
    return sorted(found)

"""Prometheus' alerting rules as rules that Grafana evaluates itself. Pure.

For a Grafana without an Alertmanager, or whose people want notifications from it. The format is that of
https://grafana.com/docs/grafana/latest/developers/http_api/alerting_provisioning/.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.json_values import JsonObject, JsonValue, text, text_mapping

QUERY, CONDITION = "A", "B"
WINDOW_S = 600
"""How far back Grafana offers data to an instant query; the expression says what it looks at."""
DEFAULT_INTERVAL_S = 60
STEP_S = 10
"""Grafana evaluates at multiples of this."""
MAX_UID_CHARS = 40
_DURATION = re.compile(r"(\d+)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


_EXTERNAL = re.compile(r"\{\{ with \$externalLabels\.(\w+) \}\}\{\{ \. \}\}\{\{ else \}\}(.*?)\{\{ end \}\}")
"""How annotations refer to an external label of Prometheus, with what stands there without it."""


@dataclass(frozen=True)
class GroupTarget:
    """Where rules are to be in Grafana."""

    folder_uid: str
    datasource_uid: str
    external: Mapping[str, str]
    """What Prometheus would have as external labels; Grafana has none."""


def grafana_group(name: str, group: JsonObject, rules: Sequence[JsonObject], target: GroupTarget) -> JsonObject:
    """An `AlertRuleGroup` of the alerts of one of Prometheus' groups."""
    interval_s = seconds_of(str(group["interval"])) if "interval" in group else DEFAULT_INTERVAL_S
    return {
        "title": name,
        "folderUid": target.folder_uid,
        "interval": max(STEP_S, round(interval_s / STEP_S) * STEP_S),
        "rules": [_rule(rule, name, target) for rule in rules],
    }


def _rule(rule: JsonObject, group: str, target: GroupTarget) -> JsonObject:
    """A `ProvisionedAlertRule`. A Prometheus alert fires for each series that its expression returns, whatever the
    value; so the condition is whether there is a value. No series is no alert."""
    name = text(rule, "alert")
    annotations = text_mapping(rule, "annotations") if "annotations" in rule else {}
    labels: JsonValue = text_mapping(rule, "labels") if "labels" in rule else {}
    return {
        "uid": alert_uid(name),
        "title": name,
        "orgID": 1,
        "folderUID": target.folder_uid,
        "ruleGroup": group,
        "condition": CONDITION,
        "for": str(rule.get("for", "0s")),
        "noDataState": "OK",
        "execErrState": "Error",
        "isPaused": False,
        "labels": labels,
        "annotations": {key: _template(value, target.external) for key, value in annotations.items()},
        "data": [_query(text(rule, "expr"), target.datasource_uid), _there_is_a_value()],
    }


def _query(expression: str, datasource_uid: str) -> JsonObject:
    model: JsonObject = {
        "refId": QUERY,
        "expr": " ".join(expression.split()),
        "instant": True,
        "range": False,
        "intervalMs": 1000,
        "maxDataPoints": 43200,
    }
    return {
        "refId": QUERY,
        "queryType": "",
        "relativeTimeRange": {"from": WINDOW_S, "to": 0},
        "datasourceUid": datasource_uid,
        "model": model,
    }


def _there_is_a_value() -> JsonObject:
    """A math expression: 1 for every series that has a number, be it 0."""
    model: JsonObject = {
        "refId": CONDITION,
        "type": "math",
        "expression": f"is_number(${QUERY}) || is_inf(${QUERY})",
        "datasource": {"type": "__expr__", "uid": "__expr__"},
    }
    return {
        "refId": CONDITION,
        "queryType": "",
        "relativeTimeRange": {"from": 0, "to": 0},
        "datasourceUid": "__expr__",
        "model": model,
    }


def _template(value: str, external: Mapping[str, str]) -> str:
    """Prometheus' `$value` is the query's value; `$labels` and the functions have the same names."""
    filled = _EXTERNAL.sub(lambda found: external.get(found[1], found[2]), " ".join(value.split()))
    return re.sub(r"\$value\b", f"$values.{QUERY}.Value", filled)


def alert_uid(name: str) -> str:
    """Stable: installing again replaces the rule."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-")[:MAX_UID_CHARS]


def seconds_of(duration: str) -> float:
    """Of a duration as Prometheus writes it: `1h30m`. Raises ValueError if it is none."""
    parts = _DURATION.findall(duration)
    if not parts or "".join(number + unit for number, unit in parts) != duration:
        raise ValueError(f"{duration!r} is not a duration")
    return sum(int(number) * _SECONDS[unit] for number, unit in parts)

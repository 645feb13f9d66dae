"""Prometheus' alerts as Grafana's own."""

import pytest

from orchestrator.monitor.grafana_alerts import MAX_UID_CHARS, GroupTarget, alert_uid, grafana_group, seconds_of
from orchestrator.monitor.monitoring_files import alert_groups

pytestmark = pytest.mark.unit
LINKS = (
    "{{ with $externalLabels.docs_url }}{{ . }}{{ else }}docs{{ end }}/a.md "
    "{{ with $externalLabels.grafana_url }}{{ . }}{{ else }}{{ end }}/d/x?run={{ $labels.run }}"
)


def test_a_rule() -> None:
    rule = {
        "alert": "ConvoyIsSlow",
        "expr": "convoy_x\n  == 0",
        "for": "10m",
        "labels": {"severity": "warning"},
        "annotations": {"summary": "{{ $labels.job }}: {{ $value | humanize }} of $valueless", "url": LINKS},
    }
    target = GroupTarget("folder", "prom", {"grafana_url": "https://g"})
    group = grafana_group("convoy", {"name": "convoy", "interval": "25s"}, [rule], target)
    assert {key: group[key] for key in ("title", "folderUid", "interval")} == {
        "title": "convoy", "folderUid": "folder", "interval": 20,
    }  # fmt: skip
    (made,) = group["rules"]
    assert made["uid"] == "convoy-is-slow"
    assert (made["for"], made["labels"], made["noDataState"]) == ("10m", {"severity": "warning"}, "OK")
    assert made["annotations"]["summary"] == "{{ $labels.job }}: {{ $values.A.Value | humanize }} of $valueless"
    assert made["annotations"]["url"] == "docs/a.md https://g/d/x?run={{ $labels.run }}", "Grafana has no such labels"
    query, condition = made["data"]
    assert (query["datasourceUid"], query["model"]["expr"], query["model"]["instant"]) == (
        "prom",
        "convoy_x == 0",
        True,
    )
    assert made["condition"] == condition["refId"]
    assert condition["model"]["expression"] == "is_number($A) || is_inf($A)", "a value of 0 fires as well"


def test_every_shipped_alert_has_an_id_of_its_own() -> None:
    names = [str(rule["alert"]) for _, _, rules in alert_groups() for rule in rules]
    assert len(names) >= 5
    assert len({alert_uid(name) for name in names}) == len(names)
    assert all(len(alert_uid(name)) <= MAX_UID_CHARS for name in names)


@pytest.mark.parametrize(
    ("text", "seconds"), [("15s", 15), ("1m", 60), ("1h30m", 5400), ("500ms", 0.5), ("2d", 172800)]
)
def test_durations(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "m", "5 m", "1h foo"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        seconds_of(text)

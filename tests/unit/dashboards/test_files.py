"""The committed files are what the descriptions give, and Grafana's linter would accept them.

The rules are those of https://github.com/grafana/dashboard-linter, except the variable `instance`: a run is chosen by
`run`, since a driver that is resumed has another instance.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from orchestrator.dashboards.boards.all_dashboards import DASHBOARDS
from orchestrator.dashboards.panel_values import Panel
from orchestrator.dashboards.rules.rule_files import rule_texts
from orchestrator.metrics.metric_catalog import CATALOG

pytestmark = pytest.mark.unit
FOLDER = Path(__file__).parents[3] / "monitoring"
WRITE = "run: python -m orchestrator.dashboards.write_files"
PANELS = [(board.title, panel) for board in DASHBOARDS for panel in board.panels()]
UNITS = {"none", "short", "percentunit", "s", "h", "bytes", "Bps", "flops", "sci", "currencyUSD", "watt", "celsius"}
"""Of those that Grafana knows."""
Json = Mapping[str, object]


def files() -> Iterator[dict[str, object]]:
    for dashboard in DASHBOARDS:
        yield json.loads((FOLDER / "grafana" / "dashboards" / f"{dashboard.uid}.json").read_text(encoding="utf-8"))


@pytest.mark.needs("grafana_sdk")
def test_the_dashboards_are_made_from_their_descriptions() -> None:
    from orchestrator.dashboards.write_files import dashboard_texts

    texts = dashboard_texts()
    assert {name: (FOLDER / name).read_text(encoding="utf-8") == text for name, text in texts.items()} == dict.fromkeys(
        texts, True
    ), WRITE
    there = {f"grafana/dashboards/{path.name}" for path in (FOLDER / "grafana" / "dashboards").iterdir()}
    assert there == texts.keys(), "a file that nothing makes"


@pytest.mark.needs("grafana_sdk")
def test_grafana_s_own_types_know_every_key() -> None:
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    for value in files():
        assert json.loads(JSONEncoder().encode(Dashboard.from_json(value))) == value


def test_the_rules_are_made_from_their_descriptions() -> None:
    for name, text in rule_texts().items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, WRITE


def test_addresses_are_stable() -> None:
    assert [board.uid for board in DASHBOARDS] == [
        "convoy-fleet",
        "convoy-run",
        "convoy-goodput",
        "convoy-reliability",
        "convoy-gpus",
    ]
    for value in files():
        assert "id" not in value
        assert value["schemaVersion"] == 39
        assert value["editable"] is False


def test_variables() -> None:
    for value in files():
        source, job, *others = value["templating"]["list"]  # type: ignore[index]
        assert (source["type"], source["name"], source["label"]) == ("datasource", "datasource", "Data source")
        assert (job["name"], job["label"], job["multi"], job["allValue"]) == ("job", "Job", True, ".+")
        assert others[0]["name"] == "run"
        for variable in (job, *others):
            assert variable["datasource"]["uid"] == "${datasource}"
            assert variable["refresh"] == 2, "reloaded if the time range changes"


def every_panel(value: Json) -> Iterator[dict[str, object]]:
    for panel in value["panels"]:  # type: ignore[attr-defined]
        yield from panel.get("panels", [])
        if panel["type"] != "row":
            yield panel


def test_panels_have_the_chosen_data_source_and_numbers_of_their_own() -> None:
    for value in files():
        panels = list(every_panel(value))
        assert len({panel["id"] for panel in panels}) == len(panels)
        for panel in panels:
            assert panel["datasource"]["uid"] == "${datasource}"  # type: ignore[index]
            assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("title", "panel"), PANELS, ids=lambda value: getattr(value, "title", value))
def test_a_panel_explains_itself(title: str, panel: Panel) -> None:
    assert panel.title
    assert panel.description.endswith(".")
    assert panel.queries
    assert panel.unit in UNITS
    for series in panel.series.values():
        assert series.unit is None or series.unit in UNITS


@pytest.mark.parametrize(("title", "panel"), PANELS, ids=lambda value: getattr(value, "title", value))
def test_queries(title: str, panel: Panel) -> None:
    counters = "|".join(metric.name for metric in CATALOG if metric.kind == "counter")
    for query in panel.queries:
        for window in re.findall(r"(?<![a-z_])i?rate\([^\[]*\[([^\]]+)\]", query.expr):
            assert window == "$__rate_interval"
        for selector in re.findall(r"convoy_\w+\{[^}]*\}", query.expr):
            assert 'job=~"$job"' in selector
            assert 'run=~"$run"' in selector
        used = re.findall(rf"(\w+)\((?:{counters})\{{", query.expr)
        assert set(used) <= {"rate", "increase"}, query.expr
        assert len(used) == len(re.findall(rf"(?:{counters})\{{", query.expr)), query.expr
        if len(panel.queries) > 1 and panel.visual != "table":
            assert query.legend, "several series have names"


def test_a_run_s_first_screen_fits_a_screen() -> None:
    run = next(board for board in DASHBOARDS if board.uid == "convoy-run")
    first = run.rows[0]
    assert first.title == ""
    lines: list[int] = []
    width = 0
    for panel in first.panels:
        if width % 24 == 0:
            lines.append(panel.height)
        width += panel.width
    assert sum(lines) <= 22, "22 rows of 38 pixels are what a screen of 1080 lines shows"

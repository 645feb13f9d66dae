"""Dashboards and alert rules into a Grafana: once, again, and when it refuses. A server of its documented API."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from orchestrator.cli.main import cli
from orchestrator.domain.errors import ConvoyError, UsageError
from orchestrator.monitor import grafana_install, monitoring_files
from orchestrator.monitor.grafana_api import GrafanaApi, GrafanaError
from orchestrator.monitor.grafana_install import choose_datasource, ensure_folder, folder_uid_of, install, is_within
from orchestrator.monitor.monitoring_files import alert_groups
from tests.unit.monitor.grafana_server import TOKEN, GrafanaServer, grafana

pytestmark = pytest.mark.unit
MODEL = {
    "uid": "convoy-test",
    "title": "Convoy / Test",
    "schemaVersion": 42,
    "panels": [{"type": "timeseries", "datasource": {"uid": "${datasource}"}}],
    "templating": {"list": [{"type": "datasource", "name": "datasource"}, {"type": "query", "name": "run"}]},
}


@pytest.fixture
def server() -> Iterator[GrafanaServer]:
    with grafana() as state:
        yield state


@pytest.fixture
def api(server: GrafanaServer) -> GrafanaApi:
    return GrafanaApi(server.url, TOKEN)


@pytest.fixture(autouse=True)
def one_dashboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shipped files, with one dashboard that a test may change."""
    assets = tmp_path / "assets"
    shutil.copytree(monitoring_files.ASSETS, assets)
    folder = assets / "grafana" / "dashboards"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "test.json").write_text(json.dumps(MODEL))
    for name in ("dashboards", "alert_groups"):
        found = getattr(monitoring_files, name)
        monkeypatch.setattr(grafana_install, name, lambda found=found: found(assets))
    return folder / "test.json"


def installed(api: GrafanaApi, **changes: Any) -> dict[str, str]:
    choice = {"folder": "Convoy", "datasource": None, "alerts": True, **changes}
    return {each.name: each.action.value for each in install(api, **choice)}


def test_the_second_time_nothing_changes(server: GrafanaServer, api: GrafanaApi) -> None:
    first = installed(api)
    assert first["Convoy / Test"] == "created"
    assert first["Convoy"] == "created"
    assert first["Prometheus"] == "unchanged"
    alerts = {rule["alert"] for _, _, rules in alert_groups() for rule in rules}
    assert {rule["title"] for rule in server.rules.values()} == alerts
    assert all(uid.startswith("convoy-") and "provenance" not in rule for uid, rule in server.rules.items())
    saved = server.dashboards["convoy-test"]
    assert saved["meta"]["folderUid"] == "convoy"
    variable, other = saved["dashboard"]["templating"]["list"]
    assert variable["current"] == {"selected": True, "text": "Prometheus", "value": "prom1"}
    assert "current" not in other
    server.changes.clear()
    assert set(installed(api).values()) == {"unchanged"}
    assert server.changes == []


def test_what_has_changed_is_replaced(server: GrafanaServer, api: GrafanaApi, one_dashboard: Path) -> None:
    installed(api)
    one_dashboard.write_text(json.dumps({**MODEL, "title": "Convoy / New"}))
    uid, rule = next(iter(server.rules.items()))
    server.rules[uid] = {**rule, "for": "1d"}
    server.rules["convoy-stale"] = {**rule, "uid": "convoy-stale", "title": "Stale"}
    again = installed(api)
    assert again["Convoy / New"] == "updated"
    assert again[str(rule["ruleGroup"])] == "updated"
    assert server.dashboards["convoy-test"]["dashboard"]["version"] == 2
    assert server.rules[uid]["for"] == rule["for"]
    assert "convoy-stale" not in server.rules


def test_another_folder_moves_what_is_there(server: GrafanaServer, api: GrafanaApi) -> None:
    installed(api)
    installed(api, folder="Team A/B")
    assert server.folders == {"convoy": "Convoy", "team-a-b": "Team A/B"}
    assert server.dashboards["convoy-test"]["meta"]["folderUid"] == "team-a-b"
    assert {rule["folderUID"] for rule in server.rules.values()} == {"team-a-b"}


def test_a_folder_is_found_by_its_title_or_its_uid(server: GrafanaServer, api: GrafanaApi) -> None:
    server.folders = {"abc": "Training", "convoy": "Renamed"}
    assert ensure_folder(api, "Training") == ("abc", False)
    assert ensure_folder(api, "Convoy") == ("convoy", False)
    assert server.changes == []
    with pytest.raises(UsageError, match="cannot name a folder"):
        folder_uid_of("!!!")


def test_which_data_source_is_taken(server: GrafanaServer, api: GrafanaApi) -> None:
    prometheus = server.datasources[1]
    second = {"uid": "prom2", "name": "Mimir", "type": "prometheus", "isDefault": False}
    server.datasources.append(second)
    assert choose_datasource(api, None).uid == "prom1", "the default one"
    assert choose_datasource(api, "Mimir").uid == choose_datasource(api, "prom2").uid == "prom2"
    prometheus["isDefault"] = False
    with pytest.raises(UsageError, match="several") as raised:
        choose_datasource(api, None)
    assert raised.value.hint == "--datasource, one of: Prometheus (prom1), Mimir (prom2)"
    server.datasources.remove(second)
    assert choose_datasource(api, None).uid == "prom1", "the only one"
    with pytest.raises(UsageError, match="no Prometheus data source 'Loki'"):
        choose_datasource(api, "Loki")
    server.datasources.remove(prometheus)
    with pytest.raises(UsageError, match="has no Prometheus data source"):
        choose_datasource(api, None)


@pytest.mark.parametrize(
    ("failure", "kind", "said"),
    [
        (401, UsageError, "does not accept the token (made to fail)"),
        (403, UsageError, "the token may not use /api/dashboards/db"),
        (404, UsageError, "has no /api/dashboards/db"),
        (412, GrafanaError, "Grafana keeps what it has: version-mismatch (made to fail)"),
        (500, GrafanaError, "Grafana answers 500 to /api/dashboards/db (made to fail)"),
        ("hang", GrafanaError, "does not answer POST /api/dashboards/db within 1 s"),
        ("trickle", GrafanaError, "does not answer POST /api/dashboards/db within 1 s"),
        ("html", UsageError, "is not the API of Grafana"),
        ("page not found", UsageError, "is not the API of Grafana"),
        ("redirect", UsageError, "redirects to https://elsewhere.example.com/"),
    ],
)
def test_what_grafana_refuses(
    server: GrafanaServer, api: GrafanaApi, failure: int | str, kind: type[ConvoyError], said: str
) -> None:
    server.fail = lambda method, path: failure if method == "POST" and path.endswith("/db") else None
    if failure in ("hang", "trickle"):
        api = GrafanaApi(server.url, TOKEN, timeout_s=1.0)
    with pytest.raises(kind) as raised:
        installed(api)
    assert type(raised.value) is kind
    assert said in raised.value.message
    assert TOKEN not in raised.value.message
    assert server.dashboards == {}


def test_a_server_that_is_none(server: GrafanaServer) -> None:
    url = server.url
    with pytest.raises(UsageError, match="does not accept the token"):
        installed(GrafanaApi(url, "wrong", timeout_s=1))
    server.fail = lambda method, path: "html"
    with pytest.raises(UsageError, match="is not the API of Grafana"):
        installed(GrafanaApi(url, TOKEN, timeout_s=1))
    for wrong in ("grafana.example.com", "ftp://x", "http://", "https://admin:secret@x"):
        with pytest.raises(UsageError, match="is not the URL of a Grafana"):
            GrafanaApi(wrong, TOKEN)


def test_nothing_listens() -> None:
    with grafana() as state:
        url = state.url
    with pytest.raises(GrafanaError, match="cannot be reached"):
        installed(GrafanaApi(url, TOKEN, timeout_s=1))


def test_how_objects_are_compared() -> None:
    assert is_within({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2, "id": 9}], "c": 3})
    assert not is_within({"a": [1]}, {"a": [1, 2]})
    assert not is_within({"a": None}, {})
    assert not is_within({"a": 1}, [1])
    assert not is_within([1], 1)


def convoy(*arguments: str, env: dict[str, str | None] | None = None) -> Result:
    return CliRunner(env={"GRAFANA_TOKEN": None, **(env or {})}).invoke(cli, ["monitor", "install", *arguments])


def test_the_command(server: GrafanaServer, tmp_path: Path) -> None:
    done = convoy("--grafana-url", server.url, "--no-alerts", env={"GRAFANA_TOKEN": TOKEN})
    assert done.exception is None, done.output
    assert f"created   dashboard   Convoy / Test  {server.url}/d/convoy-test" in done.output
    assert server.rules == {}
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    again = convoy("--grafana-url", server.url, "--token-file", str(file), "--json")
    assert again.exception is None, again.output
    found = {each["name"]: each["action"] for each in json.loads(again.output)}
    assert found["Convoy / Test"] == "unchanged"
    assert server.rules != {}


@pytest.mark.parametrize(
    ("env", "content", "said"),
    [
        ({}, None, "there is no token for Grafana in GRAFANA_TOKEN"),
        ({"GRAFANA_TOKEN": "a b"}, None, "is not a token"),
        ({}, b"", "there is no token for Grafana in"),
        ({}, b"one\ntwo", "is not a token"),
        ({}, b"\xff\xfe", "the token cannot be read from"),
    ],
)
def test_what_is_no_token(tmp_path: Path, env: dict[str, str], content: bytes | None, said: str) -> None:
    arguments = ["--grafana-url", "http://127.0.0.1:1"]
    if content is not None:
        (tmp_path / "token").write_bytes(content)
        arguments += ["--token-file", str(tmp_path / "token")]
    done = convoy(*arguments, env=dict(env))
    assert isinstance(done.exception, UsageError)
    assert said in done.exception.message

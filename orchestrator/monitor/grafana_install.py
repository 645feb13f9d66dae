"""`convoy monitor install`: dashboards and alert rules into a Grafana that runs elsewhere. The second time it changes
only what is different."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.domain.errors import UsageError
from orchestrator.json_values import JsonObject, JsonValue, mapping, objects, text
from orchestrator.monitor.grafana_alerts import MAX_UID_CHARS, GroupTarget, grafana_group
from orchestrator.monitor.grafana_api import GrafanaApi, Method, part
from orchestrator.monitor.monitoring_files import DashboardFile, alert_groups, dashboards
from orchestrator.monitor.server_setup import GRAFANA_LABEL

FOLDER = "Convoy"
MAX_FOLDERS = 1000
"""Of which one is looked for by its title: the most that Grafana lists at once."""


class InstallAction(StrEnum):
    """What was done."""

    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"


@dataclass(frozen=True)
class Installed:
    """One thing that Grafana has now."""

    kind: str
    """data source, folder, dashboard or alert rules."""
    name: str
    action: InstallAction
    url: str = ""
    """Of a dashboard."""

    def to_json(self) -> JsonObject:
        """For `--json`."""
        return {"kind": self.kind, "name": self.name, "action": self.action.value, "url": self.url}


@dataclass(frozen=True)
class DataSource:
    """A Prometheus that Grafana knows."""

    uid: str
    name: str


def install(api: GrafanaApi, folder: str, datasource: str | None, alerts: bool) -> Iterator[Installed]:
    """Install everything, one after the other. `datasource`: name or uid; None: the only Prometheus, or the default
    one. Raises UsageError, GrafanaError: what was installed before stays."""
    source = choose_datasource(api, datasource)
    yield Installed("data source", source.name, InstallAction.UNCHANGED)
    folder_uid, made = ensure_folder(api, folder)
    yield Installed("folder", folder, InstallAction.CREATED if made else InstallAction.UNCHANGED)
    for dashboard in dashboards():
        yield _install_dashboard(api, dashboard, folder_uid, source)
    if alerts:
        target = GroupTarget(folder_uid, source.uid, {GRAFANA_LABEL: api.url})
        for name, group, rules in alert_groups():
            wanted = grafana_group(name, group, rules, target)
            yield _install_alerts(api, name, wanted, folder_uid)


def choose_datasource(api: GrafanaApi, wanted: str | None) -> DataSource:
    """Raises UsageError if there is none, or more than one and none is the default."""
    known = api.get("/datasources")
    found = [each for each in known if isinstance(each, dict)] if isinstance(known, list) else []
    prometheus = [each for each in found if each.get("type") == "prometheus"]
    names = ", ".join(f"{each.get('name')} ({each.get('uid')})" for each in prometheus)
    if wanted is not None:
        matching = [each for each in prometheus if wanted in (each.get("uid"), each.get("name"))]
        if not matching:
            hint = f"there are: {names}" if names else "add one in Grafana: Connections, Data sources, Prometheus"
            raise UsageError(f"Grafana has no Prometheus data source {wanted!r}", hint=hint)
    elif not prometheus:
        hint = "add the Prometheus that scrapes the runs: Connections, Data sources, Add data source, Prometheus"
        raise UsageError("Grafana has no Prometheus data source", hint=hint)
    else:
        default = [each for each in prometheus if each.get("isDefault")]
        matching = prometheus if len(prometheus) == 1 else default
        if not matching:
            raise UsageError("Grafana has several Prometheus data sources", hint=f"--datasource, one of: {names}")
    return DataSource(text(matching[0], "uid"), text(matching[0], "name"))


def ensure_folder(api: GrafanaApi, title: str) -> tuple[str, bool]:
    """The uid of the folder with this title, and whether it was made."""
    known = api.get(f"/folders?limit={MAX_FOLDERS}")
    for each in known if isinstance(known, list) else []:
        if isinstance(each, dict) and each.get("title") == title:
            return text(each, "uid"), False
    uid = folder_uid_of(title)
    if api.get(f"/folders/{part(uid)}") is not None:
        return uid, False  # somebody has given it another title
    made = api.send(Method.POST, "/folders", {"uid": uid, "title": title})
    return (text(made, "uid") if isinstance(made, dict) and "uid" in made else uid), True


def folder_uid_of(title: str) -> str:
    """`Team A/B` has the uid `team-a-b`. Raises UsageError for a title without letters or digits."""
    uid = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:MAX_UID_CHARS].strip("-")
    if not uid:
        raise UsageError(f"{title!r} cannot name a folder", hint="use letters or digits")
    return uid


def _install_dashboard(api: GrafanaApi, dashboard: DashboardFile, folder_uid: str, source: DataSource) -> Installed:
    wanted = with_datasource(dashboard.model, source)
    before = api.get(f"/dashboards/uid/{part(dashboard.uid)}")
    action = InstallAction.CREATED
    if isinstance(before, dict):
        there, meta = mapping(before, "dashboard"), mapping(before, "meta")
        same = _comparable(there) == _comparable(wanted) and meta.get("folderUid") == folder_uid
        action = InstallAction.UNCHANGED if same else InstallAction.UPDATED
        if same:
            return Installed("dashboard", dashboard.title, action, f"{api.url}/d/{dashboard.uid}")
    body: JsonObject = {
        "dashboard": {**wanted, "id": None},
        "folderUid": folder_uid,
        "overwrite": True,
        "message": "convoy monitor install",
    }
    api.send(Method.POST, "/dashboards/db", body)
    return Installed("dashboard", dashboard.title, action, f"{api.url}/d/{dashboard.uid}")


def with_datasource(model: JsonObject, source: DataSource) -> JsonObject:
    """The dashboard, with the data source chosen in its variable of that type."""
    templating = model.get("templating")
    variables = templating.get("list") if isinstance(templating, dict) else None
    if not isinstance(variables, list):
        return model
    current: JsonObject = {"selected": True, "text": source.name, "value": source.uid}
    chosen: list[JsonValue] = [
        {**each, "current": current} if isinstance(each, dict) and each.get("type") == "datasource" else each
        for each in variables
    ]
    return {**model, "templating": {"list": chosen}}


def _comparable(model: JsonObject) -> JsonObject:
    """Without what Grafana counts."""
    return {key: value for key, value in model.items() if key not in ("id", "version")}


def _install_alerts(api: GrafanaApi, name: str, wanted: JsonObject, folder_uid: str) -> Installed:
    path = f"/v1/provisioning/folder/{part(folder_uid)}/rule-groups/{part(name)}"
    before = api.get(path)
    if before is not None and is_within(wanted, before):
        return Installed("alert rules", name, InstallAction.UNCHANGED)
    for rule in objects(wanted, "rules"):
        _ensure_rule(api, rule)
    # Sets the interval and the order, and removes rules that the group has no more.
    api.send(Method.PUT, path, wanted, headers=_EDITABLE)
    return Installed("alert rules", name, InstallAction.CREATED if before is None else InstallAction.UPDATED)


_EDITABLE = {"X-Disable-Provenance": "true"}
"""Without it nobody could change or pause the rules on Grafana's pages."""


def _ensure_rule(api: GrafanaApi, rule: JsonObject) -> None:
    """A rule with its uid, in its folder and group. Groups cannot do that: of a rule whose uid Grafana does not know,
    some versions make an error 500 (grafana#98283)."""
    path = f"/v1/provisioning/alert-rules/{part(text(rule, 'uid'))}"
    before = api.get(path)
    if before is None:
        api.send(Method.POST, "/v1/provisioning/alert-rules", rule, headers=_EDITABLE)
    elif isinstance(before, dict) and any(before.get(key) != rule[key] for key in ("folderUID", "ruleGroup")):
        api.send(Method.PUT, path, rule, headers=_EDITABLE)


def is_within(wanted: JsonValue, found: JsonValue) -> bool:
    """Whether `found` has all that `wanted` has; objects may have more keys, lists may not have more items."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(
            key in found and is_within(value, found[key]) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(found, list)
            and len(found) == len(wanted)
            and all(is_within(one, other) for one, other in zip(wanted, found, strict=True))
        )
    return wanted == found

"""The files of `monitoring/`, which are installed with the package: configurations, rules, dashboards."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from orchestrator.domain.errors import UsageError
from orchestrator.json_values import JsonObject, array, objects, text

ASSETS = Path(__file__).parent / "assets"
"""A link to `monitoring/` in a checkout, a copy of it in an installed package."""
PROMETHEUS_CONFIG = Path("prometheus") / "prometheus.yml"
RULES = ("prometheus/rules/*.yml",)
"""Files of recording and alerting rules."""
DASHBOARDS = "grafana/dashboards/*.json"
PROVISIONING = Path("grafana") / "provisioning"


@dataclass(frozen=True)
class DashboardFile:
    """One of Grafana's dashboards, as JSON."""

    uid: str
    title: str
    model: JsonObject
    path: Path


def dashboards(assets: Path = ASSETS) -> list[DashboardFile]:
    """All of them, by title. Raises JsonShapeError if a file is none: they are generated, and tested."""
    found = []
    for path in sorted(assets.glob(DASHBOARDS)):
        model: JsonObject = json.loads(path.read_bytes())
        found.append(DashboardFile(text(model, "uid"), text(model, "title"), model, path))
    return sorted(found, key=lambda each: each.title)


def rule_groups(assets: Path = ASSETS) -> list[JsonObject]:
    """The groups of all rule files, in the format of Prometheus."""
    found: list[JsonObject] = []
    for path in rule_files(assets):
        found += objects(yaml.safe_load(path.read_text(encoding="utf-8")), "groups")
    return found


def rule_files(assets: Path = ASSETS) -> list[Path]:
    """Files of rules."""
    return [path for pattern in RULES for path in sorted(assets.glob(pattern))]


def alert_groups(assets: Path = ASSETS) -> Iterator[tuple[str, JsonObject, list[JsonObject]]]:
    """Name, group and rules of the groups that have alerts; recording rules are left out."""
    for group in rule_groups(assets):
        alerts = [rule for rule in objects(group, "rules") if "alert" in rule]
        if alerts:
            yield text(group, "name"), group, alerts


def prometheus_config(assets: Path = ASSETS) -> JsonObject:
    """The configuration of Prometheus as it is shipped."""
    value: JsonObject = yaml.safe_load((assets / PROMETHEUS_CONFIG).read_text(encoding="utf-8"))
    array(value, "scrape_configs")
    return value


def copy_files(to: Path, assets: Path = ASSETS) -> list[Path]:
    """Copy all of them into a new or empty directory; which. Raises UsageError if it has files, or cannot be
    written."""
    try:
        if to.exists() and (not to.is_dir() or any(to.iterdir())):
            raise UsageError(f"{to} exists and is not an empty directory", hint="choose another directory")
        shutil.copytree(assets, to, dirs_exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write into {to}: {error.strerror or error}") from error
    return sorted(path for path in to.rglob("*") if path.is_file())

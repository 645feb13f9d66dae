"""How Prometheus and Grafana are started for the runs of a home: their configurations, commands and environment. Pure,
but for looking at files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from orchestrator.json_values import JsonObject, JsonValue, mapping, objects
from orchestrator.monitor.monitoring_files import ASSETS, PROVISIONING, prometheus_config, rule_files
from orchestrator.store.metric_targets import MONITORING, targets_directory

LISTEN_HOST = "127.0.0.1"
RETENTION_S = "15d"
RETENTION_SIZE = "4GB"
"""Prometheus removes the oldest blocks beyond either."""
GRAFANA_LABEL = "grafana_url"
"""External label that the annotations of alerts make links with."""
META_AUTH, META_MACHINE = "__meta_convoy_auth", "__meta_convoy_machine"


class PlainDumper(yaml.SafeDumper):
    """Writes a value that occurs twice twice, without anchors."""

    def ignore_aliases(self, data: object) -> bool:
        """All of them."""
        return True


@dataclass(frozen=True)
class MonitorPaths:
    """What monitoring has under a home; all of it can be removed when it does not run."""

    home: Path

    @property
    def root(self) -> Path:
        return self.home.absolute() / MONITORING

    @property
    def state(self) -> Path:
        """Which processes run, and where."""
        return self.root / "monitor.json"

    @property
    def lock(self) -> Path:
        """Held by the process of `convoy monitor up`."""
        return self.root / "monitor.lock"

    @property
    def log(self) -> Path:
        """Of a detached `convoy monitor up`."""
        return self.root / "monitor.log"

    @property
    def token(self) -> Path:
        """The token of runs that need one; only its owner can read it."""
        return self.root / "metrics.token"

    @property
    def prometheus_config(self) -> Path:
        return self.root / "prometheus" / "prometheus.yml"

    @property
    def prometheus_data(self) -> Path:
        return self.root / "prometheus" / "data"

    @property
    def grafana_data(self) -> Path:
        return self.root / "grafana"

    def server_log(self, name: str) -> Path:
        """Output of a server, of its last start."""
        return self.root / f"{name}.log"


@dataclass(frozen=True)
class PrometheusNeeds:
    """What the configuration of a Prometheus depends on, besides its home."""

    machine: str
    """Boot id of this machine. Runs of other machines that serve on their own loopback cannot be reached from here, and
    are left out."""
    with_token: bool = False
    """Runs that need a token are scraped, too."""
    alertmanager: str | None = None
    """`host:port`."""
    grafana_url: str | None = None
    """For the links in alerts."""
    scrape_interval: str | None = None
    """As Prometheus writes it, e.g. 1s; None: that of the shipped configuration."""


def config_text(paths: MonitorPaths, needs: PrometheusNeeds) -> str:
    """The shipped configuration of Prometheus, with the paths of this home."""
    config = prometheus_config()
    common = mapping(config, "global")
    if needs.grafana_url is not None:
        common["external_labels"] = {GRAFANA_LABEL: needs.grafana_url}
    if needs.scrape_interval is not None:
        common["scrape_interval"] = needs.scrape_interval
    (shipped,) = objects(config, "scrape_configs")
    files: JsonValue = [{"files": [str(targets_directory(paths.home) / "*.json")], "refresh_interval": "10s"}]
    reachable: JsonObject = {"source_labels": [META_MACHINE], "regex": f"|{needs.machine}", "action": "keep"}
    plain = {**shipped, "file_sd_configs": files, "relabel_configs": [_auth("drop"), reachable]}
    scrapes: list[JsonValue] = [plain]
    if needs.with_token:
        token = {"type": "Bearer", "credentials_file": str(paths.token)}
        name = f"{shipped['job_name']}-with-token"
        relabel: JsonValue = [_auth("keep"), reachable]
        scrapes.append({**plain, "job_name": name, "authorization": token, "relabel_configs": relabel})
    config["scrape_configs"] = scrapes
    config["rule_files"] = [str(path) for path in rule_files()]
    config.pop("alerting", None)
    if needs.alertmanager is not None:
        config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [needs.alertmanager]}]}]}
    return "# Written by `convoy monitor up`.\n" + yaml.dump(config, Dumper=PlainDumper, sort_keys=False)


def _auth(action: str) -> JsonObject:
    return {"source_labels": [META_AUTH], "regex": "bearer", "action": action}


def prometheus_command(binary: Path, paths: MonitorPaths, port: int, retention: str) -> list[str]:
    """Flags of https://prometheus.io/docs/prometheus/latest/command-line/prometheus/."""
    return [
        str(binary),
        f"--config.file={paths.prometheus_config}",
        f"--storage.tsdb.path={paths.prometheus_data}",
        f"--storage.tsdb.retention.time={retention}",
        f"--storage.tsdb.retention.size={RETENTION_SIZE}",
        f"--web.listen-address={LISTEN_HOST}:{port}",
        "--log.level=warn",
    ]


@dataclass(frozen=True)
class GrafanaInstall:
    """A Grafana that was found."""

    command: tuple[str, ...]
    """`grafana server`, or `grafana-server` of versions before 9.2."""
    home: Path | None
    """Its directory of defaults and web pages; None: it knows it itself."""


GRAFANA_HOMES = (Path("/usr/share/grafana"),)
"""Where packages put it."""


def grafana_install(binary: Path) -> GrafanaInstall:
    """How to start the Grafana with this binary: in an unpacked archive, `bin/` lies beside `conf/` and `public/`."""
    command = (str(binary), "server") if binary.name == "grafana" else (str(binary),)
    beside = binary.resolve().parent.parent
    home = next((each for each in (beside, *GRAFANA_HOMES) if (each / "conf" / "defaults.ini").is_file()), None)
    return GrafanaInstall(command, home)


def grafana_command(install: GrafanaInstall) -> list[str]:
    """Everything else is in the environment."""
    return [*install.command, *(("--homepath", str(install.home)) if install.home is not None else ())]


def grafana_environment(env: Mapping[str, str], paths: MonitorPaths, port: int, prometheus_url: str) -> dict[str, str]:
    """Settings as variables `GF_<SECTION>_<KEY>`, and what the shipped provisioning files refer to."""
    return {
        **env,
        "GF_SERVER_HTTP_ADDR": LISTEN_HOST,
        "GF_SERVER_HTTP_PORT": str(port),
        "GF_PATHS_DATA": str(paths.grafana_data / "data"),
        "GF_PATHS_LOGS": str(paths.grafana_data / "logs"),
        "GF_PATHS_PLUGINS": str(paths.grafana_data / "plugins"),
        "GF_PATHS_PROVISIONING": str((ASSETS / PROVISIONING).resolve()),
        "GF_LOG_MODE": "console",
        "GF_LOG_LEVEL": "warn",
        "GF_AUTH_ANONYMOUS_ENABLED": "true",
        "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer",
        "GF_ANALYTICS_REPORTING_ENABLED": "false",
        "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
        "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES": "false",
        "CONVOY_PROMETHEUS_URL": prometheus_url,
        "CONVOY_DASHBOARDS": str((ASSETS / "grafana" / "dashboards").resolve()),
    }

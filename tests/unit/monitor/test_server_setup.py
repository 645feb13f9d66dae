"""How Prometheus and Grafana are started: nothing but what is shipped, with the paths of this home."""

import posixpath
import socket
import subprocess
from pathlib import Path

import pytest
import yaml

from orchestrator.domain.errors import UsageError
from orchestrator.monitor.kubernetes_manifests import MAX_CONFIG_MAP_BYTES, manifests
from orchestrator.monitor.monitoring_files import (
    ASSETS,
    PROMETHEUS_CONFIG,
    copy_files,
    dashboards,
    prometheus_config,
    rule_groups,
)
from orchestrator.monitor.server_process import free_port
from orchestrator.monitor.server_setup import (
    MonitorPaths,
    PrometheusNeeds,
    config_text,
    grafana_command,
    grafana_environment,
    grafana_install,
    prometheus_command,
)

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[3]


def test_the_configuration_is_the_shipped_one_with_other_paths(tmp_path: Path) -> None:
    paths = MonitorPaths(tmp_path)
    needs = PrometheusNeeds("b00t", True, "127.0.0.1:9093", "http://127.0.0.1:3000", "1s")
    text = config_text(paths, needs)
    config, shipped = yaml.safe_load(text), prometheus_config()
    assert "&" not in text, "no anchors"
    links = {"external_labels": {"grafana_url": "http://127.0.0.1:3000"}}
    assert config["global"] == {**shipped["global"], **links, "scrape_interval": "1s"}
    plain, with_token = config["scrape_configs"]
    assert plain["job_name"] == shipped["scrape_configs"][0]["job_name"]
    assert plain["honor_labels"]
    assert with_token["honor_labels"]
    assert plain["file_sd_configs"][0]["files"] == [str(tmp_path / "monitoring" / "targets" / "*.json")]
    assert [each["action"] for each in plain["relabel_configs"]] == ["drop", "keep"]
    assert plain["relabel_configs"][1]["regex"] == "|b00t", "runs that others reach, and those of this machine"
    assert with_token["authorization"] == {"type": "Bearer", "credentials_file": str(paths.token)}
    assert config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] == ["127.0.0.1:9093"]
    assert config["rule_files"]
    assert all(Path(file).is_file() for file in config["rule_files"])
    alone = yaml.safe_load(config_text(paths, PrometheusNeeds("b00t")))
    assert len(alone["scrape_configs"]) == 1
    assert "alerting" not in alone
    assert "external_labels" not in alone["global"]


@pytest.mark.needs("promtool")
def test_promtool_accepts_it(tmp_path: Path) -> None:
    paths = MonitorPaths(tmp_path)
    paths.root.mkdir()
    paths.token.write_text("secret")
    paths.prometheus_config.parent.mkdir()
    needs = PrometheusNeeds("b", with_token=True, alertmanager="127.0.0.1:9093", grafana_url="http://127.0.0.1:3000")
    paths.prometheus_config.write_text(config_text(paths, needs))
    done = subprocess.run(["promtool", "check", "config", str(paths.prometheus_config)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_stored_is_bounded(tmp_path: Path) -> None:
    command = prometheus_command(Path("/bin/prometheus"), MonitorPaths(tmp_path), 9090, "12h")
    assert "--storage.tsdb.retention.time=12h" in command
    assert any(flag.startswith("--storage.tsdb.retention.size=") for flag in command)
    assert "--web.listen-address=127.0.0.1:9090" in command


def test_grafana_is_found_as_a_package_and_as_an_archive(tmp_path: Path) -> None:
    (tmp_path / "grafana" / "bin").mkdir(parents=True)
    (tmp_path / "grafana" / "conf").mkdir()
    (tmp_path / "grafana" / "conf" / "defaults.ini").touch()
    binary = tmp_path / "grafana" / "bin" / "grafana"
    binary.touch()
    link = tmp_path / "grafana-link"
    link.symlink_to(binary)
    install = grafana_install(binary)
    assert grafana_command(install) == [str(binary), "server", "--homepath", str(tmp_path / "grafana")]
    old = grafana_install(tmp_path / "grafana-server")
    assert old.command == (str(tmp_path / "grafana-server"),)


def test_grafana_gets_the_shipped_provisioning(tmp_path: Path) -> None:
    env = grafana_environment({"PATH": "/bin"}, MonitorPaths(tmp_path), 3000, "http://127.0.0.1:9090")
    provisioning = Path(env["GF_PATHS_PROVISIONING"])
    assert env["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    (source,) = yaml.safe_load((provisioning / "datasources" / "convoy.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "convoy.yml").read_text())["providers"]
    used = {source["url"], provider["options"]["path"]}
    assert used == {"${CONVOY_PROMETHEUS_URL}", "${CONVOY_DASHBOARDS}"}
    assert {"CONVOY_PROMETHEUS_URL", "CONVOY_DASHBOARDS"} <= set(env)
    assert (source["type"], source["uid"]) == ("prometheus", "convoy-prometheus")


def test_a_port_that_is_in_use() -> None:
    port = free_port(0, "--port")
    assert port > 0
    with socket.create_server(("127.0.0.1", port)), pytest.raises(UsageError, match=f"port {port}") as raised:
        free_port(port, "--port")
    assert "--port" in str(raised.value.hint)


def test_the_files_can_be_copied_out_of_the_package(tmp_path: Path) -> None:
    copied = copy_files(tmp_path / "own")
    assert tmp_path / "own" / PROMETHEUS_CONFIG in copied
    assert tmp_path / "own" / "compose.yaml" in copied
    with pytest.raises(UsageError, match="is not an empty directory"):
        copy_files(tmp_path / "own")


def test_the_manifests_are_those_of_the_rules_and_dashboards() -> None:
    committed = {path.name: path.read_text() for path in (ROOT / "monitoring" / "kubernetes").iterdir()}
    assert committed == manifests(), "run: python -m orchestrator.monitor.kubernetes_manifests"
    documents = [each for text in committed.values() for each in yaml.safe_load_all(text)]
    kinds = {each["kind"]: each for each in documents}
    assert kinds["PrometheusRule"]["spec"]["groups"] == rule_groups()
    (endpoint,) = kinds["PodMonitor"]["spec"]["podMetricsEndpoints"]
    assert endpoint["honorLabels"], "else `run` would become `exported_run`"
    config_maps = [each for each in documents if each["kind"] == "ConfigMap"]
    assert len(config_maps) == len(dashboards())
    assert all(each["metadata"]["labels"]["grafana_dashboard"] == "1" for each in config_maps)
    assert all(len(yaml.safe_dump(each)) < MAX_CONFIG_MAP_BYTES for each in config_maps)


def test_the_compose_file_fits_the_other_files() -> None:
    compose = yaml.safe_load((ASSETS / "compose.yaml").read_text())
    assert set(compose["services"]) == {"prometheus", "alertmanager", "grafana"}
    for name, service in compose["services"].items():
        image, _, tag = service["image"].partition(":")
        assert tag.lstrip("v")[0].isdigit(), f"{image} is pinned"
        assert service["network_mode"] == "host", "runs serve on loopback"
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (ASSETS / source).exists() or source == "./grafana/dashboards", f"{name}: {source}"
            elif not source.startswith("$"):
                assert source in compose["volumes"]
    # What is relative in the configuration leads to where the targets are mounted.
    prometheus = compose["services"]["prometheus"]
    flag = next(each for each in prometheus["command"] if each.startswith("--config.file="))
    config = Path(flag.partition("=")[2])
    (files,) = prometheus_config()["scrape_configs"][0]["file_sd_configs"][0]["files"]
    mounted = {volume.split(":")[-2] for volume in prometheus["volumes"]}
    assert posixpath.dirname(posixpath.normpath(config.parent / files)) in mounted

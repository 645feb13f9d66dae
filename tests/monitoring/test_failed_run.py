"""A run that fails is seen by a real Prometheus before its endpoint goes, and raises the alert that is meant for it."""

import threading
import time
from pathlib import Path

import pytest

from orchestrator.domain.events import RunState
from orchestrator.run.launcher import run_job
from orchestrator.spec.loading.load import load_job
from tests.cluster.gang_runs import ENTRIES, own_temporary_directory, write_job
from tests.monitoring.drilled_run import JOB, StrikeWhenScraped, scraped_twice
from tests.monitoring.prometheus_server import PrometheusServer, free_port

pytestmark = [pytest.mark.faults, pytest.mark.needs("prometheus")]

RULES = Path(__file__).parents[2] / "monitoring" / "prometheus" / "rules"
LATEST_S = 10.0


def test_a_failed_run_raises_its_alert_and_no_other(tmp_path: Path) -> None:
    port, job = free_port(), {**JOB, "recovery": {"max_failures": 0}}
    server = PrometheusServer(
        tmp_path, {"convoy": [f"127.0.0.1:{port}"]}, (RULES / "recording.yml", RULES / "alerts.yml")
    )
    try:
        with own_temporary_directory():
            striker = StrikeWhenScraped(lambda: scraped_twice(server, "failing"))
            spec = load_job(write_job(tmp_path, "failing", **job, metrics={"port": port}))
            outcome = run_job(spec, tmp_path / "runs", [striker], threading.Event(), f"{ENTRIES}:train_held")
        assert outcome.state is RunState.FAILED
        ended_s = time.time()
        while time.time() < ended_s + LATEST_S and not server.instant("up == 0", time.time()):
            time.sleep(0.2)
        time.sleep(2.5)  # two evaluations of the rules without the endpoint
        raised = {str(rule["name"]) for rule in server.rules() if rule.get("state") in ("pending", "firing")}
        assert raised == {"ConvoyRunFailed"}
    finally:
        server.close()

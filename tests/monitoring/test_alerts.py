"""Every alert fires when it must, and none on a healthy run or while Convoy recovers: `promtool test rules`."""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from orchestrator.dashboards.rules.alert_rules import ALERTS
from orchestrator.dashboards.rules.recording_rules import RECORDING_RULES
from tests.monitoring.prometheus_server import at_interval

pytestmark = [pytest.mark.cluster, pytest.mark.needs("promtool")]

RULES = Path(__file__).parents[2] / "monitoring" / "prometheus" / "rules"
MINUTES = 480
"""A case is eight hours, with a sample each minute."""
INTERVAL = "2m"
"""Between two evaluations: longer than in the files, so that eight hours take no time."""
STATES = ("preparing", "starting", "running", "recovering", "waiting", "succeeded", "failed", "stopped")
_RUN = 'run="r-1",job="tiny"'
_UP = 'up{instance="r-1",job="convoy"}'


def metric(name: str, labels: str = "") -> str:
    """The series of a run's metric."""
    return f'{name}{{{_RUN},instance="r-1"{"," if labels else ""}{labels}}}'


def state(name: str) -> str:
    return metric("convoy_run_state", f'state="{name}"')


STEP_SUM, STEP_COUNT = metric("convoy_step_duration_seconds_sum"), metric("convoy_step_duration_seconds_count")
STEP, LAST_STEP = metric("convoy_step"), metric("convoy_last_step_timestamp_seconds")
RECOVERIES = metric("convoy_recoveries_total", 'reason="process_died"')
TOKENS, LOSS, WORKERS = metric("convoy_tokens_total"), metric("convoy_loss"), metric("convoy_workers")
AGE, FAILURES, SAVED = (
    metric("convoy_checkpoint_age_seconds"),
    metric("convoy_checkpoint_failures_total"),
    metric("convoy_checkpoints_total"),
)
MISSING, AT_RISK, LAG = (
    metric("convoy_missing_workers"),
    metric("convoy_steps_at_risk"),
    metric("convoy_driver_loop_lag_seconds"),
)
FAULTS = metric("convoy_numeric_faults_total", 'kind="loss_spike"')
PRODUCTIVE, RECOMPUTED = (
    metric("convoy_worker_time_seconds", 'class="productive"'),
    metric("convoy_worker_time_seconds", 'class="recomputed"'),
)
ECC = metric("convoy_gpu_ecc_errors_total", 'rank="2",kind="uncorrected"')
THROTTLED = metric("convoy_gpu_throttled", 'rank="2",reason="thermal"')
CAPPED = metric("convoy_gpu_throttled", 'rank="2",reason="power_cap"')

HEALTHY: Mapping[str, str] = {
    _UP: f"1x{MINUTES}",
    metric("convoy_run_info", 'version="1"'): f"1x{MINUTES}",
    **{state(name): f"{int(name == 'running')}x{MINUTES}" for name in STATES},
    STEP: f"0+60x{MINUTES}",
    metric("convoy_total_steps"): f"100000x{MINUTES}",
    LAST_STEP: f"0+60x{MINUTES}",
    AT_RISK: f"5x{MINUTES}",
    STEP_SUM: f"0+60x{MINUTES}",
    STEP_COUNT: f"0+60x{MINUTES}",
    TOKENS: f"0+600000x{MINUTES}",
    LOSS: "6x20 5x40 4x120 3.5x300",
    WORKERS: f"4x{MINUTES}",
    MISSING: f"0x{MINUTES}",
    AGE: f"100x{MINUTES}",
    SAVED: f"0+1x{MINUTES}",
    FAILURES: f"0x{MINUTES}",
    RECOVERIES: f"0x{MINUTES}",
    FAULTS: f"0x{MINUTES}",
    metric("convoy_straggler_ratio", 'rank="2"'): f"1.1x{MINUTES}",
    LAG: f"0.02x{MINUTES}",
    PRODUCTIVE: f"0+228x{MINUTES}",
    RECOMPUTED: f"0x{MINUTES}",
    ECC: f"0x{MINUTES}",
    THROTTLED: f"0x{MINUTES}",
    CAPPED: f"1x{MINUTES}",
}
"""A run of four workers that makes a step each second."""

RECOVERING: Mapping[str, str] = {
    **HEALTHY,
    # A node is lost in minute 101, its workers come back in minute 110; in minute 200 a rank hangs.
    state("running"): "1x100 0x1 1x98 0x2 1x275",
    state("recovering"): "0x100 1x1 0x98 1x2 0x275",
    RECOVERIES: "0x101 1x99 2x280",
    WORKERS: "4x100 2x10 4x370",
    STEP: "0+60x100 5970x1 6000+60x97 11800x3 11850+60x274",
    LAST_STEP: "0+60x100 6000x1 6120+60x97 11940x3 12180+60x274",
    STEP_SUM: "0+60x100 6000x2 6060+30x10 6420+60x366",
    STEP_COUNT: "0+60x100 6000x2 6060+30x10 6420+60x366",
    TOKENS: "0+600000x100 60000000x2 60300000+300000x9 63600000+600000x367",
    AT_RISK: "5x100 60x3 5x97 120x3 5x277",
    PRODUCTIVE: "0+228x100 22700+120x10 24128+228x370",
    RECOMPUTED: "0x101 100x99 180x280",
    # The disk is full once, and the next checkpoint is written again.
    FAILURES: "0x250 1x230",
    AGE: "100x250 100+60x10 100x220",
    MISSING: "0x101 1x3 0x376",
    # Ended: the run is complete, and the driver withdraws its endpoint.
}


@dataclass(frozen=True)
class Case:
    """Series that differ from those of a healthy run, and when to look."""

    series: Mapping[str, str]
    at_minute: int = 470
    also: frozenset[str] = field(default_factory=frozenset)
    """Other alerts that the same condition raises."""


CASES: Mapping[str, Case] = {
    "ConvoyRunFailed": Case(
        {
            **{name: f"{HEALTHY[name].split('x')[0]}x240" for name in HEALTHY if "x480" in HEALTHY[name]},
            _UP: "1x240",
            state("running"): "1x239 0x1",
            state("failed"): "0x239 1x1",
        },
        at_minute=247,
    ),
    "ConvoyDriverLost": Case(
        {
            **{name: f"{HEALTHY[name].split('x')[0]}x240" for name in HEALTHY if "x480" in HEALTHY[name]},
            _UP: "1x240 0x240",
        },
        at_minute=250,
    ),
    "ConvoyNoStep": Case(
        {
            STEP: "0+60x440 26400x40",
            LAST_STEP: "0+60x440 26400x40",
            STEP_SUM: "0+60x440 26400x40",
            STEP_COUNT: "0+60x440 26400x40",
            TOKENS: "0+600000x440 264000000x40",
        },
        also=frozenset({"ConvoyThroughputDropped"}),
    ),
    "ConvoyRecoveryTakesLong": Case({state("running"): "1x440 0x40", state("recovering"): "0x440 1x40"}),
    "ConvoyWaitsForWorkers": Case(
        {state("running"): "1x440 0x40", state("waiting"): "0x440 1x40", MISSING: "0x440 2x40"}
    ),
    "ConvoyRecoversOften": Case({RECOVERIES: "0x430 1x10 2x10 3x10 4x20"}),
    "ConvoyCheckpointsFail": Case(
        {FAILURES: "0x420 1x20 2x40", SAVED: "0+1x420 420x60", AGE: "100x420 100+60x60"}, at_minute=460
    ),
    "ConvoyCheckpointIsOld": Case({SAVED: "0+1x100 100x380", AGE: "100x100 100+60x380"}),
    "ConvoyWorkAtRisk": Case({AT_RISK: "5x400 2400x80"}),
    "ConvoyDriverIsLate": Case({LAG: "0.02x450 12x30"}),
    "ConvoyWorkerIsSlow": Case({metric("convoy_straggler_ratio", 'rank="2"'): "1.1x440 1.8x40"}),
    "ConvoyThroughputDropped": Case({TOKENS: "0+600000x400 240000000+240000x80"}),
    "ConvoyGoodputLow": Case({PRODUCTIVE: "0+228x240 54720+60x240", RECOMPUTED: "0x240 0+168x240"}),
    "ConvoyLossDiverges": Case({LOSS: "6x20 5x40 4x120 3.5x200 6x100"}),
    "ConvoyNumericFaults": Case({FAULTS: "0x440 1x10 2x10 3x20"}),
    "ConvoyGpuMemoryErrors": Case({ECC: "0x450 1x30"}),
    "ConvoyGpuThrottled": Case({THROTTLED: "0x440 1x40"}),
}
"""For each alert, what must raise it."""


def run_promtool(tests: list[dict[str, object]], directory: Path) -> subprocess.CompletedProcess[str]:
    files = [str(at_interval(RULES / name, directory, INTERVAL)) for name in ("recording.yml", "alerts.yml")]
    path = directory / "tests.yml"
    path.write_text(yaml.safe_dump({"rule_files": files, "evaluation_interval": INTERVAL, "tests": tests}))
    return subprocess.run(["promtool", "test", "rules", str(path)], capture_output=True, text=True, timeout=120)


def unit(name: str, series: Mapping[str, str], firing: Mapping[int, frozenset[str]]) -> dict[str, object]:
    """A test of promtool: exactly these alerts fire at these minutes."""
    return {
        "name": name,
        "interval": "1m",
        "input_series": [{"series": each, "values": values} for each, values in series.items()],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": f"{minute}m",
                "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(alerts)],
            }
            for minute, alerts in firing.items()
        ],
    }


def test_a_healthy_run_and_recoveries_raise_nothing(tmp_path: Path) -> None:
    quiet = {minute: frozenset[str]() for minute in range(1, MINUTES, 2)}
    done = run_promtool([unit("healthy", HEALTHY, quiet), unit("recovering", RECOVERING, quiet)], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_fires_when_it_must_and_no_other(tmp_path: Path) -> None:
    assert [alert.name for alert in ALERTS if alert.name not in CASES] == []
    tests = [
        unit(name, {**HEALTHY, **case.series}, {1: frozenset(), case.at_minute: case.also | {name}})
        for name, case in CASES.items()
    ]
    done = run_promtool(tests, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_alert_names_the_run_what_to_do_and_where_to_look(tmp_path: Path) -> None:
    expected = {
        "exp_labels": {"severity": "critical", "job": "tiny", "run": "r-1"},
        "exp_annotations": {
            "summary": "tiny is waiting for 2 workers",
            "description": next(alert.meaning for alert in ALERTS if alert.name == "ConvoyWaitsForWorkers"),
            "action": "Add nodes to the cluster; or continue with fewer workers:"
            " `convoy scale r-1 --workers N --force`.",
            "runbook_url": "docs/metrics.md#convoywaitsforworkers",
            "dashboard_url": "/d/convoy-run?var-run=r-1",
        },
    }
    case = CASES["ConvoyWaitsForWorkers"]
    test = unit("annotations", {**HEALTHY, **case.series}, {})
    test["alert_rule_test"] = [
        {"eval_time": f"{case.at_minute}m", "alertname": "ConvoyWaitsForWorkers", "exp_alerts": [expected]}
    ]
    done = run_promtool([test], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    linked = {**test, "external_labels": {"grafana_url": "https://grafana.example", "docs_url": "https://docs.example"}}
    expected["exp_annotations"]["runbook_url"] = "https://docs.example/metrics.md#convoywaitsforworkers"
    expected["exp_annotations"]["dashboard_url"] = "https://grafana.example/d/convoy-run?var-run=r-1"
    done = run_promtool([linked], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_recording_rules_are_used() -> None:
    users = [alert.expr for alert in ALERTS] + [rule.expr for rule in RECORDING_RULES]
    assert [rule.record for rule in RECORDING_RULES if not any(rule.record in expr for expr in users)] == []

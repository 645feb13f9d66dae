"""What slow data and a slow rank cost a real training is in the ledger, with its price, also while it trains."""

import json
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator.cli.main import cli
from orchestrator.domain.events import RunState
from orchestrator.domain.step_report import StepReport
from orchestrator.goodput.time_class import LossCause, TimeClass
from orchestrator.run.launcher import run_job
from orchestrator.spec.loading.load import load_job
from tests.cluster.entries import SLOW_DATA_STEPS, SLOW_RANK_STEPS, SLOW_S
from tests.cluster.gang_runs import ENTRIES, Recording, write_job
from tests.faults.ledger_account import check_ledger

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("temporary_directory")]

STEPS = 18


class Asks(Recording):
    """Asks for the goodput of the run while it trains."""

    def __init__(self, home: Path) -> None:
        super().__init__()
        self.home, self.shown = home, ""

    def on_step(self, report: StepReport) -> None:
        super().on_step(report)
        if report.step == STEPS - 1:
            self.shown = CliRunner().invoke(cli, ["goodput", "last", "--home", str(self.home)]).output


def test_bottlenecks_have_their_classes_and_their_price(tmp_path: Path) -> None:
    asks = Asks(tmp_path / "runs")
    job = write_job(
        tmp_path,
        train={"steps": STEPS, "global_batch": 4, "lr": 1e-3},
        cluster={"nodes": 2, "usd_per_hour": {"per": "node", "usd": 3600.0}},
    )
    outcome = run_job(load_job(job), tmp_path / "runs", [asks], threading.Event(), f"{ENTRIES}:train_with_bottlenecks")
    assert (outcome.state, outcome.reason) == (RunState.SUCCEEDED, None)
    ledger = check_ledger(outcome.run_dir)
    longest_s = max(step.step_time_s for step in asks.steps if step.step not in (*SLOW_DATA_STEPS, *SLOW_RANK_STEPS))
    slow_data_s, slow_rank_s = (2 * SLOW_S * len(steps) for steps in (SLOW_DATA_STEPS, SLOW_RANK_STEPS))
    assert ledger.seconds[TimeClass.DATA_WAIT] == pytest.approx(slow_data_s, abs=2 * longest_s)
    jitter_s = sum(
        2 * (step.ranks.spread.own_s.max - step.ranks.spread.own_s.p50)
        for step in asks.steps
        if step.step not in SLOW_RANK_STEPS
    )
    straggling_s = ledger.seconds[TimeClass.STRAGGLING]
    assert slow_rank_s - 2 * longest_s <= straggling_s <= slow_rank_s + jitter_s + 2 * longest_s
    assert max(ledger.by_node, key=lambda node: node.caused_s).caused_s >= slow_rank_s - 2 * longest_s
    # A dollar a second for each of two nodes with one worker: what is paid is what is reserved.
    assert ledger.cost is not None
    assert ledger.cost.spent_usd == pytest.approx(ledger.reserved_s, rel=0.01)
    assert ledger.cost.lost_usd[LossCause.STRAGGLING] == pytest.approx(straggling_s, rel=0.01)
    assert "running" in asks.shown
    assert "2 workers now" in asks.shown
    (by_cause,) = [CliRunner().invoke(cli, ["goodput", "last", "--by", "cause", "--home", str(tmp_path / "runs")])]
    assert "straggling" in by_cause.output
    several = CliRunner().invoke(cli, ["goodput", "last", "last", "--json", "--home", str(tmp_path / "runs")])
    assert [run["reserved_s"] for run in json.loads(several.output)] == [ledger.reserved_s] * 2

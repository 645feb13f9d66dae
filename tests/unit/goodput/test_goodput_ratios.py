"""Goodput, ETTR and money."""

import pytest

from orchestrator.domain.events import RecoveryReason
from orchestrator.goodput.goodput_ratios import ettr_ratio, goodput_ratio, losses, spent_usd
from orchestrator.goodput.ledger_result import IncidentTime
from orchestrator.goodput.time_class import LossCause, TimeClass
from orchestrator.goodput.worker_terms import WorkerTerms, terms_of
from tests.unit.spec.jobs_for_tests import load

pytestmark = pytest.mark.unit


def test_goodput_is_the_time_of_steps_with_their_communication() -> None:
    seconds = {
        TimeClass.PRODUCTIVE: 50.0,
        TimeClass.COMMUNICATION_WAIT: 20.0,
        TimeClass.STRAGGLING: 5.0,
        TimeClass.DATA_WAIT: 10.0,
        TimeClass.CHECKPOINT_STALL: 15.0,
    }
    assert goodput_ratio(seconds, 100.0) == pytest.approx(0.75)
    assert goodput_ratio({}, 0.0) == 0.0


def test_ettr_agrees_with_the_closed_form_of_the_paper() -> None:
    """Expected ETTR = (1 - failures per s (u0 + dt / 2)) / (1 + w / dt): arXiv:2410.21680, with a restart of u0 s, a
    checkpoint of w s each dt s of training. A run with exactly the mean losses is told as a ledger tells it."""
    interval_s, write_s, restart_s, failures = 600.0, 12.0, 90.0, 24
    checkpoints = 1000
    kept_s = checkpoints * interval_s
    thrown_away_s = failures * interval_s / 2
    elapsed_s = kept_s + thrown_away_s + failures * restart_s + checkpoints * write_s
    rate = failures / (kept_s + thrown_away_s + failures * restart_s)
    expected = (1 - rate * (restart_s + interval_s / 2)) / (1 + write_s / interval_s)
    assert ettr_ratio(kept_s, elapsed_s) == pytest.approx(expected, rel=1e-3)
    assert ettr_ratio(1.0, 0.0) == 0.0


def test_a_loss_is_put_down_to_its_incident_or_to_its_class() -> None:
    seconds = {
        TimeClass.PRODUCTIVE: 9.0,
        TimeClass.WAITING: 5.0,
        TimeClass.RECOVERY_REBUILD: 3.0,
        TimeClass.RECOMPUTED: 2.0,
    }
    cost = {TimeClass.WAITING: 4.0, TimeClass.RECOVERY_REBUILD: 1.0}
    incident = IncidentTime(1, RecoveryReason.NODE_DIED, "", 0, None, 0.0, cost, 0)
    older = {RecoveryReason.HANG: {TimeClass.RECOVERY_REBUILD: 1.0}}
    assert {cause: lost for cause, lost in losses(seconds, [incident], older).items() if lost} == {
        LossCause.NODE_DIED: 5.0,
        LossCause.HANG: 1.0,
        LossCause.WAITING: 1.0,
        LossCause.UNKNOWN_FAULT: 3.0,
    }


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("", WorkerTerms(0, None)),
        ("cluster: {usd_per_hour: 2.5}", WorkerTerms(0, 2.5)),
        ("cluster: {usd_per_hour: {per: worker, usd: 2}}", WorkerTerms(0, 2.0)),
        ("cluster: {usd_per_hour: {per: node, usd: 31.2}}", WorkerTerms(0, 31.2, per_node=True)),
    ],
)
def test_a_price_is_a_number_or_says_of_what(written: str, expected: WorkerTerms) -> None:
    terms = terms_of(load(("workers: 2\n", f"workers: 2\n{written}\n")))
    assert terms == expected


def test_what_is_paid_is_the_price_times_the_time() -> None:
    assert spent_usd(WorkerTerms(0, None), 3600.0, 3600.0) is None
    assert spent_usd(WorkerTerms(0, 2.0), 7200.0, 3600.0) == 4.0
    assert spent_usd(WorkerTerms(0, 2.0, per_node=True), 7200.0, 3600.0) == 2.0

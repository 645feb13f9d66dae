"""The result is read as it was written, by this version and by later ones."""

import json

import pytest

from orchestrator.domain.events import RecoveryReason
from orchestrator.goodput.ledger_result import Cost, IncidentTime, LedgerResult, NodeTime
from orchestrator.goodput.time_class import LossCause, TimeClass

pytestmark = pytest.mark.unit

RESULT = LedgerResult(
    time_s=3.0,
    elapsed_s=2.0,
    reserved_s=4.0,
    workers=2,
    seconds={TimeClass.PRODUCTIVE: 3.0, TimeClass.WAITING: 1.0},
    goodput=0.75,
    ettr=0.7,
    gpu_hours=4.0 / 3600,
    tokens=1000,
    lost_s={LossCause.NODE_DIED: 1.0},
    by_node=(NodeTime("10.0.0.1", "id", 2, {TimeClass.PRODUCTIVE: 3.0}, 1.0, 0.5),),
    by_incident=(
        IncidentTime(None, RecoveryReason.DRIVER_LOST, "lost", None, None, 1.0, {TimeClass.RECOMPUTED: 1.0}, 2, 0.1),
        IncidentTime(1, RecoveryReason.HANG, "hangs", 1, "10.0.0.1", 1.5, {TimeClass.WAITING: 1.0}, 0),
    ),
    cost=Cost(2.0, None, {LossCause.NODE_DIED: 0.5}),
)


def test_it_is_read_as_it_was_written() -> None:
    assert LedgerResult.from_json(json.loads(json.dumps(RESULT.to_json()))) == RESULT


def test_what_a_later_version_adds_is_left_out() -> None:
    value = json.loads(json.dumps(RESULT.to_json()))
    value["seconds"]["dreaming"] = 1.0
    value["lost_s"]["aliens"] = 1.0
    value["by_incident"][0]["reason"] = "aliens"
    value["news"] = 1
    read = LedgerResult.from_json(value)
    assert (read.seconds, read.lost_s) == (RESULT.seconds, RESULT.lost_s)
    assert read.by_incident[0].reason is RecoveryReason.UNKNOWN


def test_a_ledger_of_version_1_is_refused() -> None:
    with pytest.raises(ValueError, match="time_s"):
        LedgerResult.from_json({"elapsed_s": 1.0, "goodput": 0.5, "seconds": {"training": 0.5}})


def test_every_reason_of_a_recovery_is_a_cause_of_loss() -> None:
    assert {f"{reason}" for reason in RecoveryReason} <= set(LossCause)

import pytest

from orchestrator.domain.events import RecoveryFinished, RecoveryStarted, WorkerPhase
from orchestrator.metrics.collectors.recovery_phases import RecoveryPhase, RecoveryTimer
from tests.events import event

pytestmark = pytest.mark.unit


def phase(name: str, time_s: float) -> object:
    return event(WorkerPhase, time_s, phase=name)


def test_a_recovery_is_divided_among_its_phases() -> None:
    timer = RecoveryTimer()
    assert timer.on_event(phase("restore", 1.0)) is None  # of the start of the run
    timer.on_event(event(RecoveryStarted, 12.5, detected_s=12.0, alive_s=10.0))
    for name, time_s in (("import", 12.6), ("rendezvous", 12.7), ("build", 13.0), ("restore", 14.5), ("train", 15.5)):
        assert timer.on_event(phase(name, time_s)) is None
    found = timer.on_event(event(RecoveryFinished, 16.0))
    assert found == {
        RecoveryPhase.DETECTION: 2.0,
        RecoveryPhase.DECISION: 0.5,
        RecoveryPhase.REBUILD: 2.0,
        RecoveryPhase.RESTORE: 1.0,
        RecoveryPhase.FIRST_STEP: 0.5,
    }
    assert timer.on_event(event(RecoveryFinished, 17.0)) is None


def test_a_recovery_that_failed_counts_with_the_next_one() -> None:
    timer = RecoveryTimer()
    timer.on_event(event(RecoveryStarted, 1.0, detected_s=1.0))
    timer.on_event(phase("restore", 3.0))
    timer.on_event(event(RecoveryStarted, 5.0, detected_s=4.0))  # rank 0 was lost while it restored
    timer.on_event(phase("train", 7.0))
    found = timer.on_event(event(RecoveryFinished, 8.0))
    assert found is not None
    assert found[RecoveryPhase.DETECTION] == 0.0, "no sign of life is known: nothing is claimed"
    assert found[RecoveryPhase.REBUILD] == 2.0 + 2.0
    assert found[RecoveryPhase.RESTORE] == 1.0, "up to the detection of the next fault"
    assert sum(found.values()) == 7.0


def test_clocks_that_differ_take_nothing_away() -> None:
    timer = RecoveryTimer()
    timer.on_event(event(RecoveryStarted, 10.0, detected_s=10.0))
    timer.on_event(phase("restore", 9.0))  # the clock of rank 0's host is behind
    timer.on_event(phase("train", 11.0))
    found = timer.on_event(event(RecoveryFinished, 12.0))
    assert found is not None
    assert min(found.values()) >= 0.0
    assert sum(found.values()) == 2.0

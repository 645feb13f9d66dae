import pytest

from orchestrator.domain.events import (
    CheckpointFailed,
    CheckpointSaved,
    Event,
    GangResized,
    RecoveryFinished,
    RecoveryStarted,
    RunCreated,
    StateChanged,
    TrainingPlanned,
    WarningIssued,
    WorkerFailed,
)
from orchestrator.run_facts.event_history import KEPT_NOTES, EventHistory
from tests.unit.run_facts.made import T0, beginning, event, facts, ledger, step

pytestmark = pytest.mark.unit


def history(*more: Event) -> EventHistory:
    found = EventHistory()
    for each in (*beginning(4), *more):
        found.take(each)
    return found


def test_generations_end_with_the_reason() -> None:
    lost = event(RecoveryStarted, 21.0, incident=1, rank=3, detected_s=T0 + 20.0, step=9, from_step=9)
    found = history(
        lost,
        event(TrainingPlanned, 22.0, world_size=3),
        event(RecoveryFinished, 24.0, incident=1, seconds=4.0, steps_recomputed=1, world_size=3),
        event(GangResized, 50.0, before=3, world_size=4),
        event(TrainingPlanned, 51.0, world_size=4),
        event(StateChanged, 90.0, state="succeeded"),
    ).periods
    told = [(each.number, each.world_size, each.started_s - T0, each.ending) for each in found.generations]
    assert told == [(1, 4, 0.0, "worker 3 lost"), (2, 3, 22.0, "resized"), (3, 4, 51.0, "succeeded")]
    assert [each.ended_s and each.ended_s - T0 for each in found.generations] == [20.0, 50.0, 90.0]
    (recovery,) = found.recoveries
    assert (recovery.seconds, recovery.steps_recomputed, recovery.world_size) == (4.0, 1, 3)
    assert [mark.text for mark in found.marks] == ["worker 3 lost", "recovered in 4.0 s", "3 to 4 workers"]


def test_time_without_a_driver_does_not_count() -> None:
    """The first driver was killed after 30 s; another one resumed the run 1,000 s later."""
    killed = event(WarningIssued, 30.0)
    found = history(killed, event(RunCreated, 1030.0), event(StateChanged, 1040.0, state="running")).periods
    assert found.drivers == 2
    assert found.elapsed_s(T0 + 1050.0) == pytest.approx(50.0)
    assert [(each.started_s - T0, each.ended_s and each.ended_s - T0) for each in found.states] == [
        (0.0, 30.0),
        (1040.0, None),
    ]
    assert found.generations[0].ending == "the driver ended"


def test_the_wall_clock_is_the_ledgers_for_a_run_that_is_over() -> None:
    recorded = ledger(80.0, productive=160.0)
    assert facts([step(1)], ledger=recorded).wall_s == 80.0
    assert facts([step(1)], ledger=recorded, ended_s=None, now_s=100.0).wall_s == 100.0
    assert facts([step(1)]).wall_s == 100.0


def test_counts_are_exact_and_lists_are_bounded() -> None:
    many = [event(WarningIssued, 1.0, message=str(number)) for number in range(3 * KEPT_NOTES)]
    many += [event(WorkerFailed, 2.0)] * (2 * KEPT_NOTES)
    saved = [event(CheckpointSaved, 3.0, step=number, seconds=0.5) for number in range(20)]
    found = history(*many, *saved, event(CheckpointFailed, 4.0, seconds=2.0, reason="full"))
    assert list(found.warnings)[-1] == "full"
    assert (len(found.warnings), len(found.failures)) == (KEPT_NOTES, KEPT_NOTES)
    assert (found.totals.checkpoints, found.totals.failed_checkpoints) == (20, 1)
    assert found.totals.checkpoint_stall_s == pytest.approx(12.0)

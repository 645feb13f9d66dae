"""Each class of time, told as runs tell it. Times are seconds; two workers unless said."""

import pytest

from orchestrator.domain.events import (
    CheckpointFailed,
    CheckpointRestored,
    CheckpointSaved,
    ClusterReady,
    EvalFinished,
    GangResized,
    GangWaiting,
    ModelExported,
    RecoveryFinished,
    RecoveryReason,
    RecoveryStarted,
    RunCreated,
    StateChanged,
    TrainingPlanned,
    WorkerFailed,
    WorkerPhase,
    WorkersReserved,
)
from orchestrator.goodput.time_class import LossCause, TimeClass
from orchestrator.goodput.worker_terms import WorkerTerms
from tests.unit.goodput.story import T0, Rank, Story, nodes

pytestmark = pytest.mark.unit

TWO = {"a": 1, "b": 1}


def started(steps: int = 0, total_steps: int = 100) -> Story:
    """Two workers on two nodes, reserved from 10 to the first step at 20; then a step each second."""
    story = Story()
    story.event(RunCreated, 0.0)
    story.event(StateChanged, 0.0, state="preparing")
    story.event(ClusterReady, 8.0)
    story.tell(nodes({"": 2}), 10.0)
    story.tell(nodes(TWO), 12.0)
    story.event(StateChanged, 12.0, state="starting")
    story.event(WorkerPhase, 13.0, phase="import")
    story.event(WorkerPhase, 14.0, phase="build")
    story.event(TrainingPlanned, 14.0, world_size=2, total_steps=total_steps)
    story.event(WorkerPhase, 20.0, phase="train")
    story.event(StateChanged, 20.0, state="running")
    for step in range(1, steps + 1):
        story.step(step, 20.0 + step)
    return story


def lost(story: Story, at_s: float, from_step: int, step: int, **fields: object) -> None:
    """A worker is found lost half a second after its last sign of life, and half a second later it is decided from
    where training continues, `at_s`."""
    story.event(WorkerFailed, at_s - 0.1, rank=1)
    story.event(StateChanged, at_s - 0.1, state="recovering")
    given = {
        "incident": 1,
        "rank": 1,
        "cause": "killed",
        "alive_s": T0 + at_s - 1.0,
        "detected_s": T0 + at_s - 0.5,
        "reason": RecoveryReason.WORKER_DIED,
        **fields,
    }
    story.event(RecoveryStarted, at_s, from_step=from_step, step=step, **given)


def test_from_reservation_to_the_first_step_is_startup() -> None:
    story = started(steps=5)
    assert story.seconds() == {"startup": 20.0, "productive": 10.0}
    result = story.result()
    assert (result.reserved_s, result.elapsed_s, result.workers) == (pytest.approx(30.0), pytest.approx(25.0), 2)
    assert (result.goodput, result.ettr) == (pytest.approx(10 / 30), pytest.approx(5 / 25))
    assert result.tokens == 1000


def test_what_was_spent_before_the_nodes_were_known_is_theirs() -> None:
    result = started(steps=5).result()
    assert [node.node for node in result.by_node] == ["a", "b"]
    assert [sum(node.seconds.values()) for node in result.by_node] == pytest.approx([15.0, 15.0])


def test_after_the_last_step_comes_what_follows_it_and_the_idle_tail() -> None:
    story = started(steps=5, total_steps=5)
    story.event(EvalFinished, 28.0, seconds=2.0)
    story.event(WorkerPhase, 29.0, phase="export")
    story.event(ModelExported, 33.0, seconds=4.0)
    story.event(WorkersReserved, 34.0, nodes=())
    story.event(StateChanged, 36.0, state="succeeded")
    expected = {"startup": 20.0, "productive": 10.0, "evaluation": 4.0, "export": 8.0, "idle_tail": 6.0}
    assert story.seconds() == expected
    assert story.result(100.0).elapsed_s == pytest.approx(36.0)


def test_a_run_that_is_stopped_idles_from_its_last_step_to_release() -> None:
    story = started(steps=5)
    story.event(WorkersReserved, 27.0, nodes=())
    story.event(StateChanged, 27.5, state="stopped")
    assert story.seconds() == {"startup": 20.0, "productive": 10.0, "idle_tail": 4.0}


def test_pauses_inside_and_between_steps_have_their_classes() -> None:
    story = started(steps=1)
    story.step(2, 24.0, *(Rank(data_wait_s=1.5),) * 2)  # 0.5 s passed between the steps
    story.step(3, 25.5, *(Rank(snapshot_s=0.4),) * 2)  # the copy was made in that half second
    story.event(EvalFinished, 27.5, seconds=2.0)
    story.step(4, 30.0, *(Rank(checkpoint_s=1.0),) * 2)
    assert story.seconds() == {
        "startup": 20.0,
        "data_wait": 3.0,
        "snapshot_stall": 0.8,
        "evaluation": 4.0,
        "checkpoint_stall": 2.0,
        "productive": pytest.approx(2 + 2 + 1 - 0.8 + 2 + 1 + 2 + 1),
    }


def test_a_checkpoint_that_an_event_reports_first_is_counted_once() -> None:
    story = started(steps=1)
    story.event(CheckpointFailed, 22.5, seconds=0.5)
    story.event(CheckpointSaved, 24.0, seconds=1.0, write_seconds=None)
    story.event(CheckpointSaved, 24.0, seconds=0.2, write_seconds=9.0)  # in the background
    story.step(2, 24.0, *(Rank(checkpoint_s=2.0),) * 2)
    assert story.seconds() == {"startup": 20.0, "productive": 4.0, "checkpoint_stall": 4.0}


def test_a_recovery_is_detected_decided_rebuilt_and_restored() -> None:
    story = started(steps=5)
    lost(story, 27.0, from_step=5, step=5)
    story.event(WorkerPhase, 28.0, phase="import")
    story.tell(nodes({"a": 1, "c": 1}), 28.0)
    story.event(WorkerPhase, 30.0, phase="restore")
    story.event(CheckpointRestored, 31.0, step=5)
    story.event(WorkerPhase, 31.0, phase="train")
    story.step(6, 33.0)
    story.event(RecoveryFinished, 33.0, incident=1)
    recovery = {
        "recovery_detection": 1.0,
        "recovery_decision": 1.0,
        "recovery_rebuild": 6.0,
        "recovery_restore": 4.0,
        "recomputed": 2.0,  # the step that was cut off
    }
    assert story.seconds() == {**recovery, "startup": 20.0, "productive": 12.0}
    (incident,) = story.result().by_incident
    assert {each.value: round(s, 4) for each, s in incident.seconds.items()} == recovery
    assert (incident.incident, incident.reason, incident.node) == (1, RecoveryReason.WORKER_DIED, "b")
    assert story.result().lost_s[LossCause.WORKER_DIED] == pytest.approx(14.0)
    assert {node.node: node.caused_s for node in story.result().by_node} == {"a": 0.0, "b": pytest.approx(14.0), "c": 0}


def test_steps_that_are_thrown_away_are_recomputed_time() -> None:
    story = started(steps=5)
    lost(story, 26.0, from_step=2, step=5)
    assert story.seconds()["recomputed"] == pytest.approx(6.0)  # at once: it is what is known
    story.event(CheckpointRestored, 27.0, step=4)  # but the vaults know a newer state
    assert story.seconds()["recomputed"] == pytest.approx(2.0)
    story.step(5, 28.0)
    seconds = story.seconds()
    assert (seconds["recomputed"], seconds["productive"]) == (2.0, 10.0)
    (incident,) = story.result().by_incident
    assert (incident.seconds[TimeClass.RECOMPUTED], incident.steps_recomputed) == (pytest.approx(2.0), 1)
    assert story.result().tokens == 1000


def test_a_thrown_away_step_is_recomputed_with_all_that_was_in_it() -> None:
    story = started(steps=1)
    story.step(2, 24.0, *(Rank(data_wait_s=1.0, checkpoint_s=1.0),) * 2)
    story.event(EvalFinished, 25.0, seconds=1.0)
    story.step(3, 26.0)
    lost(story, 26.5, from_step=1, step=3, alive_s=T0 + 26.0, detected_s=T0 + 26.0)
    story.step(2, 28.5)
    assert story.seconds() == {
        "startup": 20.0,
        "productive": 4.0,
        "recomputed": 10.0,
        "recovery_decision": 1.0,
        "recovery_rebuild": 2.0,
    }


def test_a_recovery_that_waits_for_nodes_waits_meanwhile() -> None:
    story = started(steps=5)
    lost(story, 26.0, from_step=5, step=5, alive_s=T0 + 25.0, detected_s=T0 + 25.0)
    story.tell(nodes({"a": 1}), 27.0)
    story.event(StateChanged, 27.0, state="waiting")
    story.event(GangWaiting, 27.0, have=1, need=2)
    story.event(StateChanged, 40.0, state="recovering")
    story.tell(nodes(TWO), 40.0)
    story.step(6, 42.0)
    seconds = story.seconds()
    assert (seconds["waiting"], seconds["recovery_rebuild"]) == (13.0, 2.0 + 2.0)
    assert story.result().by_incident[0].seconds[TimeClass.WAITING] == pytest.approx(13.0)
    assert LossCause.WAITING not in story.result().lost_s


def test_a_drain_that_leaves_too_few_workers_waits_too() -> None:
    story = started(steps=5)
    story.event(StateChanged, 26.0, state="waiting")
    story.event(StateChanged, 30.0, state="starting")
    story.event(GangResized, 31.0, before=2, world_size=2)
    story.step(6, 34.0)
    expected = {"startup": 20.0, "productive": 12.0, "resizing": 2 + 2 + 4, "waiting": 8.0}
    assert story.seconds() == expected
    assert story.result().lost_s[LossCause.WAITING] == pytest.approx(8.0)


def test_a_resize_takes_from_the_last_step_to_the_first() -> None:
    story = started(steps=5)
    story.tell(nodes({"a": 1, "b": 1, "c": 1}), 25.5)
    story.event(GangResized, 26.0, before=2, world_size=3)
    story.event(WorkerPhase, 27.0, phase="import")
    story.event(WorkerPhase, 28.0, phase="restore")
    story.event(WorkerPhase, 29.0, phase="train")
    story.step(6, 31.0, *(Rank(),) * 3)
    assert story.seconds() == {"startup": 20.0, "productive": 13.0, "resizing": 2 * 0.5 + 3 * 4.5}
    assert story.result().by_incident == ()


def test_workers_that_start_to_join_are_resizing_while_the_others_train() -> None:
    story = started(steps=5)
    joins = nodes(TWO, {"c": 1})
    story.event(WorkersReserved, 25.0, nodes=joins.nodes, earlier_s=1.5)
    story.step(6, 26.0)
    story.step(7, 27.0)
    assert story.seconds() == {"startup": 20.0, "productive": 14.0, "resizing": 3.5}
    assert {node.node: sum(node.seconds.values()) for node in story.result().by_node}["c"] == pytest.approx(3.5)


def test_a_slow_rank_costs_every_worker_what_it_is_slower_by() -> None:
    story = started()
    story.workers = 4
    story.tell(nodes({"a": 2, "b": 2}), 20.0)
    fast, slow = Rank(compute_s=1.0, collective_s=2.2), Rank(compute_s=3.0, collective_s=0.2)
    story.step(1, 23.2, fast, fast, fast, slow)
    seconds = story.seconds()
    assert (seconds["straggling"], seconds["communication_wait"]) == (8.0, pytest.approx(0.8))
    assert seconds["productive"] == pytest.approx(4.0)
    assert {node.node: node.caused_s for node in story.result().by_node} == {"a": 0.0, "b": pytest.approx(8.0)}


def test_a_failure_before_the_first_step_cuts_no_step_off() -> None:
    story = started()
    lost(story, 24.0, from_step=0, step=0)
    story.step(1, 26.0)
    expected = {"startup": 20.0 + 6.0, "recovery_detection": 1.0, "recovery_decision": 1.0, "recovery_rebuild": 2.0}
    assert story.seconds() == {**expected, "productive": 2.0}


def test_a_failure_during_a_recovery_is_an_incident_of_its_own() -> None:
    story = started(steps=5)
    lost(story, 26.0, from_step=5, step=5, alive_s=T0 + 25.0, detected_s=T0 + 25.0)
    story.event(WorkerPhase, 28.0, phase="restore")
    lost(story, 31.0, from_step=5, step=5, incident=2, detected_s=T0 + 25.0)
    story.step(6, 33.0)
    first, second = story.result().by_incident
    assert first.seconds == {
        TimeClass.RECOVERY_DECISION: pytest.approx(2.0),
        TimeClass.RECOVERY_REBUILD: pytest.approx(4.0),
        TimeClass.RECOVERY_RESTORE: pytest.approx(0.0 + 4.0),
    }
    assert sum(second.seconds.values()) == pytest.approx(2 * (33.0 - 1.0 - 30.0))


def test_an_export_that_is_interrupted_ends_a_recovery_without_a_step() -> None:
    story = started(steps=5, total_steps=5)
    story.event(WorkerPhase, 25.0, phase="export")
    lost(story, 27.0, from_step=5, step=5)
    story.event(WorkerPhase, 28.0, phase="restore")
    story.event(WorkerPhase, 29.0, phase="export")
    story.event(ModelExported, 31.0, seconds=2.0)
    story.event(StateChanged, 31.0, state="succeeded")
    seconds = story.seconds()
    assert seconds["export"] == pytest.approx(2.0 + 4.0)
    assert "recomputed" not in seconds
    assert sum(story.result().by_incident[0].seconds.values()) == pytest.approx(2 * 3.0)


def test_a_run_that_gives_up_has_thrown_the_interrupted_step_away() -> None:
    story = started(steps=5)
    story.event(WorkerFailed, 27.0, rank=1)
    story.event(WorkersReserved, 28.0, nodes=())
    story.event(StateChanged, 28.0, state="failed")
    assert story.seconds() == {"startup": 20.0, "productive": 10.0, "recomputed": 6.0}
    assert story.result().lost_s[LossCause.UNKNOWN_FAULT] == pytest.approx(6.0)


def test_the_loss_of_a_driver_is_an_incident_of_the_next_one() -> None:
    story = started(steps=5)
    story.event(CheckpointSaved, 25.6, step=4, seconds=0.0, write_seconds=1.0)  # the last thing it did
    story.event(RunCreated, 100.0)
    story.event(StateChanged, 100.0, state="preparing")
    story.tell(nodes(TWO), 103.0)
    story.event(WorkerPhase, 105.0, phase="restore")
    story.event(CheckpointRestored, 106.0, step=4)
    story.event(WorkerPhase, 106.0, phase="train")
    story.step(5, 108.0)
    assert story.seconds() == {
        "startup": 20.0,
        "productive": 10.0,
        "recomputed": pytest.approx(2 * 0.6 + 2.0),
        "recovery_rebuild": 4.0,
        "recovery_restore": 4.0,
    }
    result = story.result()
    (incident,) = result.by_incident
    assert (incident.incident, incident.reason, incident.steps_recomputed) == (None, RecoveryReason.DRIVER_LOST, 1)
    assert incident.lost_s == pytest.approx(11.2)
    assert result.elapsed_s == pytest.approx(25.6 + 8.0)  # nothing in between


def test_a_resume_after_a_stop_starts_up_again() -> None:
    story = started(steps=5)
    story.event(WorkersReserved, 25.0, nodes=())
    story.event(StateChanged, 25.0, state="stopped")
    story.event(RunCreated, 50.0)
    story.tell(nodes(TWO), 52.0)
    story.event(WorkerPhase, 53.0, phase="restore")
    story.event(CheckpointRestored, 54.0, step=5)
    story.step(6, 56.0)
    assert story.seconds() == {"startup": 20.0 + 6.0, "productive": 12.0}
    assert story.result().by_incident == ()


def test_steps_that_were_made_without_a_driver_count() -> None:
    story = started(steps=5)
    story.event(RunCreated, 30.0)
    story.step(6, 26.0)  # the next driver found it in the vaults
    result = story.result()
    assert (result.tokens, result.reserved_s) == (1200, pytest.approx(30.0 + 2.0))
    assert result.seconds[TimeClass.PRODUCTIVE] == pytest.approx(12.0)


@pytest.mark.parametrize("off_s", [-3600.0, -0.5, 3600.0])
def test_a_host_with_a_wrong_clock_changes_nothing(off_s: float) -> None:
    story = started()
    for step in range(1, 6):
        story.now_s = 20.0 + step
        story.event(EvalFinished, story.now_s - 0.9 + off_s, received_s=story.now_s - 0.9, seconds=0.1)
        story.step(step, story.now_s, step_time_s=0.9)
    assert story.seconds() == {"startup": 20.0, "productive": 9.0, "evaluation": 1.0}


def test_records_without_reservations_are_of_the_workers_that_train() -> None:
    story = Story()
    story.event(RunCreated, 0.0)
    story.event(ClusterReady, 4.0)
    story.event(StateChanged, 10.0, state="starting")
    story.event(WorkerPhase, 11.0, phase="build")
    story.event(TrainingPlanned, 12.0, world_size=2, total_steps=3)
    story.event(WorkerPhase, 13.0, phase="train")
    for step in (1, 2, 3):
        story.step(step, 13.0 + step)
    story.event(StateChanged, 18.0, state="succeeded")
    assert story.seconds() == {"startup": 18.0, "productive": 6.0, "idle_tail": 4.0}


def test_a_price_is_of_workers_or_of_nodes() -> None:
    story = Story()
    story.event(RunCreated, 0.0)
    story.tell(nodes({"": 4}), 0.0)
    story.tell(nodes({"a": 3, "b": 1}), 300.0)  # they were on these nodes before that was known
    story.workers = 4
    story.step(1, 1800.0, step_time_s=900.0)
    by_worker = story.result(terms=WorkerTerms(1, 2.0)).cost
    by_node = story.result(terms=WorkerTerms(1, 2.0, per_node=True)).cost
    assert by_worker is not None
    assert by_node is not None
    assert (by_worker.spent_usd, by_node.spent_usd) == (pytest.approx(4.0), pytest.approx(2.0))
    assert by_node.lost_usd == {LossCause.STARTUP: pytest.approx(1.0)}
    assert by_node.usd_per_million_tokens == pytest.approx(2.0 / 400 * 1e6)
    result = story.result(terms=WorkerTerms(1, 2.0, per_node=True))
    assert result.gpu_hours == pytest.approx(2.0)
    assert sum(node.lost_usd or 0.0 for node in result.by_node) == pytest.approx(1.0)


def test_what_is_open_is_shown_as_what_it_will_probably_be() -> None:
    story = started(steps=5)
    assert story.seconds(27.0) == {"startup": 20.0, "productive": 14.0}
    assert story.seconds() == {"startup": 20.0, "productive": 10.0}, "and is not booked by that"

"""When a gang is formed anew for a planned change, and who the next one is made of."""

from dataclasses import replace

import pytest

from orchestrator.domain.session import Leave
from orchestrator.gang.elastic.resize_policy import (
    LEAVE_BEFORE_S,
    TOLD_AFTER_S,
    GangShape,
    Lineup,
    Wait,
    going,
    leave_before_s,
    lineup,
    planned_leave,
    replaced_later,
    worth_telling,
)
from orchestrator.gang.group.gang_policy import ARRIVAL_S

pytestmark = pytest.mark.unit

FULL = GangShape(
    members=4,
    doomed=0,
    ready=0,
    arriving=0,
    waited_s=0.0,
    target=4,
    minimum=2,
    notice_s=None,
    step_s=1.0,
    stepped=True,
)


def test_a_full_gang_stays() -> None:
    assert planned_leave(FULL) is Leave.NO


def test_grows_for_those_who_are_ready_and_waits_a_moment_for_those_who_nearly_are() -> None:
    small = replace(FULL, members=2)
    assert planned_leave(small) is Leave.NO
    assert planned_leave(replace(small, ready=1)) is Leave.REGROUP
    assert planned_leave(replace(small, ready=1, arriving=1)) is Leave.NO
    assert planned_leave(replace(small, ready=1, arriving=1, waited_s=ARRIVAL_S)) is Leave.REGROUP


def test_does_not_grow_before_it_has_made_a_step() -> None:
    assert planned_leave(replace(FULL, members=2, ready=2, stepped=False)) is Leave.NO


def test_shrinks_at_once_to_what_was_asked_for() -> None:
    assert planned_leave(replace(FULL, target=3, stepped=False)) is Leave.REGROUP


def test_leaves_doomed_nodes_at_once_where_enough_others_remain() -> None:
    assert planned_leave(replace(FULL, doomed=2)) is Leave.REGROUP
    assert planned_leave(replace(FULL, doomed=3, ready=1)) is Leave.REGROUP


def test_stays_on_doomed_nodes_for_want_of_others_until_the_notice_is_over() -> None:
    doomed = replace(FULL, doomed=3, notice_s=LEAVE_BEFORE_S + 2.5)
    assert planned_leave(doomed) is Leave.NO
    assert planned_leave(replace(doomed, notice_s=LEAVE_BEFORE_S + 2.0)) is Leave.PARK
    assert planned_leave(replace(doomed, notice_s=None)) is Leave.NO


def test_who_parked_for_a_node_is_not_formed_anew_with_it_once_more() -> None:
    """Both bounds are the same: at the moment that one says to leave, the other says that nobody begins there."""
    now_s, step_s = 1000.0, 3.0
    deadline_s = now_s + leave_before_s(step_s)
    parks = planned_leave(replace(FULL, doomed=3, step_s=step_s, notice_s=deadline_s - now_s))
    assert parks is Leave.PARK
    assert going({"node": deadline_s}, now_s, step_s) == {"node"}
    assert going({"node": deadline_s + 0.1, "other": None}, now_s, step_s) == set()


@pytest.mark.parametrize(
    ("staying", "ready", "doomed", "expected"),
    [
        (4, 0, 0, Lineup(4, 0)),
        (5, 2, 0, Lineup(4, 0)),
        (1, 2, 0, Lineup(1, 2)),
        (3, 5, 0, Lineup(3, 1)),
        (1, 0, 2, Lineup(1, 0, 1)),
        (2, 0, 2, Lineup(2, 0)),
        (1, 0, 0, None),
        (0, 1, 3, Lineup(0, 1, 1)),
    ],
)
def test_lineup(staying: int, ready: int, doomed: int, expected: Lineup | None) -> None:
    assert lineup(staying, ready, doomed, minimum=2, target=4) == expected
    assert expected is None or 2 <= expected.size <= 4


def test_whoever_is_missing_is_replaced_later_where_training_goes_on_without() -> None:
    assert replaced_later(staying=3, coming=0, minimum=2, target=4)
    assert not replaced_later(staying=1, coming=0, minimum=2, target=4)
    assert not replaced_later(staying=3, coming=1, minimum=2, target=4)
    assert not replaced_later(staying=4, coming=0, minimum=2, target=4)


def test_waiting_is_told_once_and_only_where_nodes_are_what_is_missing() -> None:
    wait = Wait(have=1, need=3, starting=1, waited_s=TOLD_AFTER_S, told=False)
    assert worth_telling(wait)
    assert not worth_telling(replace(wait, told=True))
    assert not worth_telling(replace(wait, waited_s=TOLD_AFTER_S - 0.1))
    assert not worth_telling(replace(wait, starting=2))

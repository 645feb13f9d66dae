"""What the scheduler decides in cases that people would recognise."""

from dataclasses import replace

import pytest

from orchestrator.clusters.placement import NodeCapacity
from orchestrator.control.policy.decide import decide
from orchestrator.control.policy.kept_reservations import SLACK
from orchestrator.control.policy.queue_facts import Obstacle, QueueFacts, QueueShare
from tests.unit.control.policy.queue_world import QueueWorld, ask, node

pytestmark = pytest.mark.unit
HOUR_S = 3600.0


def world(nodes: int = 4, gpus: int = 4, **queues: QueueShare) -> QueueWorld:
    return QueueWorld({f"n{i}": node(i, gpus) for i in range(nodes)}, queues)


def running(it: QueueWorld, name: str) -> int:
    return sum(it.runs[name].places.values())


def test_a_small_run_fills_the_fullest_node_and_leaves_whole_ones() -> None:
    it = world(2)
    it.submit(ask(3), HOUR_S)
    it.settle()
    small = it.submit(ask(1), HOUR_S)
    wide = it.submit(ask(4, placement="strict_pack"), HOUR_S)
    it.settle()
    assert running(it, small) == 1
    assert running(it, wide) == 4


@pytest.mark.parametrize(("placement", "nodes"), [("pack", 1), ("strict_pack", 1), ("spread", 4), ("strict_spread", 4)])
def test_placement(placement: str, nodes: int) -> None:
    it = world()
    name = it.submit(ask(4, placement=placement), HOUR_S)
    it.settle()
    assert len(it.runs[name].places) == nodes


def test_a_wide_run_is_reserved_for_and_short_ones_pass_it_only_if_they_end_before() -> None:
    it = world(2)
    it.submit(ask(4), 4 * HOUR_S * 4)
    it.settle()
    wide = it.submit(ask(8), HOUR_S * 8)
    short, long, unknown = it.submit(ask(1), HOUR_S), it.submit(ask(1), 90 * HOUR_S), it.submit(ask(1))
    decision = it.tick()
    assert set(decision.grants) == {short}
    outlook = decision.outlooks[wide]
    assert outlook.obstacle is Obstacle.CAPACITY
    assert outlook.position == 1
    assert outlook.blockers == ("r1",)
    assert "needs 8 workers of 1 CPU, 1 GPU" in outlook.message
    assert "is held by r1 until about" in outlook.message
    assert outlook.may_start_s == pytest.approx(it.now_s + 4 * HOUR_S)
    assert decision.reservations[wide][0] == pytest.approx(it.now_s + SLACK * HOUR_S)
    for name in (long, unknown):
        assert decision.outlooks[name].obstacle is Obstacle.RESERVED


def test_elastic_runs_shrink_for_an_equal_and_nothing_is_suspended() -> None:
    it = world(2)
    elastic = it.submit(ask(2, 8), HOUR_S * 8)
    it.settle()
    assert running(it, elastic) == 8
    rigid = it.submit(ask(4), HOUR_S)
    decision = it.tick()
    assert decision.suspensions == {}
    assert sum(decision.grants[elastic].values()) == 4
    assert decision.outlooks[rigid].obstacle is Obstacle.MAKING_ROOM
    assert decision.outlooks[rigid].blockers == (elastic,)
    it.settle()
    assert running(it, rigid) == 4


def test_higher_priority_suspends_the_youngest_of_the_lowest_and_no_more_than_needed() -> None:
    it = world(3)
    names = []
    for priority in (5, 0, 0):
        names.append(it.submit(ask(4), 50 * HOUR_S, priority))
        it.settle()
        it.pass_time(60.0)
    urgent = it.submit(ask(4), HOUR_S, 10)
    assert it.tick().suspensions == {names[2]: urgent}
    it.answer_all()
    it.settle()
    assert running(it, urgent) == 4
    assert it.runs[names[2]].waits


def test_an_equal_priority_never_suspends() -> None:
    it = world(1)
    it.submit(ask(4), 50 * HOUR_S)
    it.settle()
    it.submit(ask(4), HOUR_S)
    assert it.tick().suspensions == {}


def test_borrowed_capacity_goes_back_to_its_owner_by_shrinking_and_then_by_suspending() -> None:
    shares = {"a": QueueShare("a", quota={"GPU": 4.0}), "b": QueueShare("b", quota={"GPU": 4.0})}
    it = world(2, **shares)
    elastic = it.submit(ask(2, 4), 90 * HOUR_S, 5, queue="b")
    rigid = it.submit(ask(4), 90 * HOUR_S, 5, queue="b")
    it.settle()
    first = it.submit(ask(2), HOUR_S, queue="a")
    decision = it.tick()
    assert decision.suspensions == {}
    assert sum(decision.grants[elastic].values()) == 2
    it.answer_all()
    it.settle()
    assert running(it, first) == 2
    second = it.submit(ask(2), HOUR_S, queue="a")
    assert list(it.tick().suspensions.values()) == [second]
    it.answer_all()
    it.settle()
    assert running(it, second) == 2
    assert running(it, elastic) + running(it, rigid) <= 4


def test_a_limit_holds_and_is_named() -> None:
    it = world(2, a=QueueShare("a", limit={"GPU": 4.0}))
    first = it.submit(ask(3), 9 * HOUR_S, queue="a")
    second, never = it.submit(ask(2), HOUR_S, queue="a"), it.submit(ask(5), HOUR_S, queue="a")
    other = it.submit(ask(2), HOUR_S, queue="b")
    decision = it.tick()
    assert set(decision.grants) == {first, other}
    assert decision.outlooks[second].obstacle is Obstacle.QUOTA
    assert "the limit of queue a" in decision.outlooks[second].message
    assert decision.outlooks[never].obstacle is Obstacle.NEVER


def test_what_never_fits_is_told_what_would() -> None:
    it = world(2)
    wide = it.submit(ask(9), HOUR_S)
    outlook = it.tick().outlooks[wide]
    assert outlook.obstacle is Obstacle.NEVER
    assert "ask for resources.workers: 8" in outlook.message
    grown = decide(replace(it.facts(), autoscales=True)).outlooks[wide]
    assert grown.obstacle is Obstacle.NODES


def test_fair_share_goes_by_weights_and_users() -> None:
    it = world(2, a=QueueShare("a", 3.0), b=QueueShare("b", 1.0))
    for _ in range(8):
        it.submit(ask(1), 50 * HOUR_S, queue="a", user="x")
    for _ in range(8):
        it.submit(ask(1), 50 * HOUR_S, queue="b", user="y")
    it.settle()
    started = [run.queue for run in it.runs.values() if not run.waits]
    assert (started.count("a"), started.count("b")) == (6, 2)
    users = world(1)
    for name in ("x", "x", "x", "x", "y", "y"):
        users.submit(ask(1), 50 * HOUR_S, user=name)
    users.settle()
    started = [run.user for run in users.runs.values() if not run.waits]
    assert (started.count("x"), started.count("y")) == (2, 2)


def test_growth_is_even_and_paused_after_a_change() -> None:
    it = world(2)
    names = [it.submit(ask(1, 8), 50 * HOUR_S) for _ in range(2)]
    it.settle()
    assert [running(it, name) for name in names] == [4, 4]
    rigid = it.submit(ask(2), HOUR_S)
    it.settle()
    del it.runs[rigid]
    assert it.tick().grants == {}
    it.pass_time(300.0)
    assert it.tick().grants != {}


def test_a_run_leaves_a_node_that_is_gone() -> None:
    it = world(3)
    name = it.submit(ask(2, placement="strict_spread"), 50 * HOUR_S)
    it.settle()
    gone = next(iter(it.runs[name].places))
    it.down = {gone}
    grant = it.tick().grants[name]
    assert len(grant) == 2
    assert gone not in grant
    it.answer_all()
    it.down = set(it.nodes) - set(list(grant)[:1])
    decision = it.tick()
    assert decision.suspensions == {name: name}


def test_resources_of_others_are_not_given() -> None:
    busy = NodeCapacity("n0", "node-0", {"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 1.0})
    it = QueueWorld({"n0": busy})
    first, second = it.submit(ask(1), HOUR_S), it.submit(ask(2), HOUR_S)
    assert set(it.tick().grants) == {first}
    assert it.runs[second].waits


def test_nothing_to_decide() -> None:
    assert decide(QueueFacts(0.0, (), (), {})).grants == {}
    it = QueueWorld({})
    name = it.submit(ask(1), HOUR_S)
    assert it.tick().outlooks[name].obstacle is Obstacle.NEVER


def test_a_run_returns_what_is_above_a_lowered_maximum() -> None:
    it = world(2)
    name = it.submit(ask(2, 8), HOUR_S * 80)
    it.settle()
    assert running(it, name) == 8
    it.runs[name] = replace(it.runs[name], ask=ask(2, 3))
    it.settle()
    assert running(it, name) == 3
    assert it.tick().grants == {}


def test_what_is_left_of_a_quota_is_not_for_less_important_runs_of_the_queue() -> None:
    """They would start on what others give up for the important one, and be suspended for it, without end."""
    shares = {"a": QueueShare("a", quota={"GPU": 6.0}), "b": QueueShare("b", quota={"GPU": 4.0}, limit={"GPU": 8.0})}
    it = QueueWorld({"n0": node(0, 3), "n1": node(1, 4)}, shares)
    first = it.submit(ask(1), queue="b")
    it.submit(ask(1, gpus=2.0), priority=10, queue="b")
    it.tick()
    small, other = it.submit(ask(1), queue="b"), it.submit(ask(2), queue="a")
    important = it.submit(ask(2), priority=10, queue="b")
    it.settle()
    assert [running(it, name) for name in (first, small, other, important)] == [1, 0, 2, 2]

"""The table of a run's states in the queue."""

from pathlib import Path

import pytest

from orchestrator.domain.queue.priorities import Priority, priority_of
from orchestrator.domain.queue.queue_states import (
    FINAL,
    HOLDING,
    QUEUE_TRANSITIONS,
    WAITING,
    QueueState,
    is_queue_transition,
    queue_transitions_markdown,
)
from orchestrator.run.state_reference import with_table

pytestmark = pytest.mark.unit

DOCUMENT = Path(__file__).parents[4] / "docs" / "architecture.md"


def reachable(start: QueueState, without: frozenset[QueueState] = frozenset()) -> set[QueueState]:
    """States that can be reached without passing through some."""
    found, todo = {start}, [start]
    while todo:
        here = todo.pop()
        for each in QUEUE_TRANSITIONS:
            if each.source is here and each.target not in found | without:
                found.add(each.target)
                todo.append(each.target)
    return found


def test_the_document_draws_the_table() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert with_table(text) == text, "run `make docs`"
    assert queue_transitions_markdown() in text


def test_no_transition_is_there_twice_and_none_leads_nowhere() -> None:
    pairs = [(each.source, each.target) for each in QUEUE_TRANSITIONS]
    assert len(pairs) == len(set(pairs))
    assert all(source is not target for source, target in pairs)
    assert all(each.when for each in QUEUE_TRANSITIONS)


@pytest.mark.parametrize("state", QueueState)
def test_every_state_is_reached_and_every_state_has_a_way_to_each_end(state: QueueState) -> None:
    assert state in reachable(QueueState.BLOCKED)
    if state is QueueState.SUCCEEDED:
        assert reachable(state) == {state}, "nothing follows success"
        return
    assert reachable(state) >= FINAL
    if state not in FINAL:
        assert reachable(state, frozenset({QueueState.ACTIVE})) & FINAL, "also if no driver ever starts"


@pytest.mark.parametrize("state", set(QueueState) - FINAL)
def test_a_person_can_cancel_and_pause_in_every_state(state: QueueState) -> None:
    ending = {QueueState.CANCELLED, QueueState.CANCELLING}
    assert state in ending or any(is_queue_transition(state, target) for target in ending)
    resting = {QueueState.PAUSED, QueueState.PAUSING}
    assert state in resting | {QueueState.CANCELLING} or any(is_queue_transition(state, target) for target in resting)


def test_states_are_sorted_into_kinds() -> None:
    others = {QueueState.BLOCKED, QueueState.PAUSED, QueueState.BACKOFF}
    kinds = [FINAL, WAITING, HOLDING, others]
    assert set().union(*kinds) == set(QueueState)
    assert sum(len(kind) for kind in kinds) == len(QueueState)
    for source in WAITING:
        assert is_queue_transition(source, QueueState.STARTING)


def test_priorities_are_ordered_and_read_back() -> None:
    ranks = [each.rank for each in Priority]
    assert ranks == sorted(set(ranks))
    assert [priority_of(each.rank) for each in Priority] == list(Priority)
    assert priority_of(Priority.HIGH.rank + 1) is Priority.HIGH
    assert priority_of(-5) is Priority.LOW

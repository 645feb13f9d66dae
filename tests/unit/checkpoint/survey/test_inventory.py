"""Which step the vaults hold whole, and who keeps whose copies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.checkpoint.survey.inventory import (
    Holding,
    NodePlace,
    choose_peers,
    newest_whole,
    unrecoverable_nodes,
    whole_steps,
)

pytestmark = pytest.mark.unit


def holding(vault: str, rank: int, step: int, generation: int = 1, world_size: int = 2) -> Holding:
    return Holding(vault, generation, rank, world_size, step, own=True)


def test_steps_and_generations_are_never_mixed() -> None:
    found = [holding("a", 0, 5), holding("b", 1, 4), holding("a", 0, 4), holding("b", 1, 5, generation=2)]
    whole = newest_whole(found)
    assert whole is not None
    assert (whole.generation, whole.step, whole.places) == (1, 4, (("a",), ("b",)))
    assert newest_whole([holding("a", 0, 5), holding("b", 1, 5, world_size=3)]) is None
    assert newest_whole([]) is None


def test_a_later_generation_wins_even_at_an_earlier_step() -> None:
    found = [holding(v, r, 9) for v, r in (("a", 0), ("b", 1))]
    found += [holding(v, r, 8, generation=2) for v, r in (("a", 0), ("b", 1))]
    assert [(whole.generation, whole.step) for whole in whole_steps(found)] == [(2, 8), (1, 9)]


def test_a_step_without_a_record_is_made_again_where_that_can_be() -> None:
    found = [holding(v, r, step) for v, r in (("a", 0), ("b", 1)) for step in (8, 9)]
    assert [getattr(newest_whole(found, recorded), "step", None) for recorded in (None, 9, 8, 7)] == [9, 9, 8, 9]


def test_what_the_loss_of_a_node_would_leave() -> None:
    found = [holding("a", 0, 3), holding("b", 1, 3), holding("b", 0, 3), holding("a", 0, 4), holding("b", 1, 4)]
    assert unrecoverable_nodes(found) == {"a": 3, "b": None}
    assert whole_steps(found)[1].copies == 1


@given(st.integers(1, 12), st.integers(0, 3))
def test_copies_lie_on_other_nodes_evenly(count: int, replicas: int) -> None:
    nodes = [NodePlace(f"n{i}", {}) for i in range(count)]
    chosen = choose_peers(nodes, replicas)
    kept = [sum(node.name in others for others in chosen.values()) for node in nodes]
    assert all(name not in others and len(set(others)) == len(others) for name, others in chosen.items())
    assert all(len(others) == min(replicas, count - 1) for others in chosen.values())
    assert max(kept) - min(kept) <= 1


def test_copies_go_to_another_rack() -> None:
    nodes = [NodePlace(f"n{i}", {"rack": "left" if i < 2 else "right"}) for i in range(4)]
    chosen = choose_peers(nodes, 1)
    assert all((name in ("n0", "n1")) != (others[0] in ("n0", "n1")) for name, others in chosen.items())
    assert sorted(others[0] for others in chosen.values()) == ["n0", "n1", "n2", "n3"]

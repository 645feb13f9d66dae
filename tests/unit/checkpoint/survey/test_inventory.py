"""Which step the vaults hold whole, and who keeps whose copies."""

import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.checkpoint.survey.inventory import (
    MOST_COPIES,
    Holding,
    NodePlace,
    choose_peers,
    domain_warning,
    failure_domains,
    newest_whole,
    steps_without,
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


def test_what_the_loss_of_a_node_would_leave() -> None:
    found = [holding("a", 0, 3), holding("b", 1, 3), holding("b", 0, 3), holding("a", 0, 4), holding("b", 1, 4)]
    assert steps_without(["a", "b", "c"], whole_steps(found)) == {"a": 3, "b": None, "c": 4}
    assert whole_steps(found)[1].copies == 1


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 2), st.integers(1, 3), st.integers(1, 2))))
def test_what_is_left_without_a_node_is_what_the_others_hold(held: list[tuple[str, int, int, int]]) -> None:
    found = [holding(vault, rank, step, generation, world_size=3) for vault, rank, step, generation in held]
    expected = {v: newest_whole([each for each in found if each.vault != v]) for v in "abcd"}
    assert steps_without("abcd", whole_steps(found)) == {v: getattr(expected[v], "step", None) for v in "abcd"}


@given(st.integers(1, 12), st.integers(0, 3))
def test_copies_lie_on_other_nodes_evenly(count: int, replicas: int) -> None:
    nodes = [NodePlace(f"n{i}", None) for i in range(count)]
    chosen = choose_peers(nodes, replicas)
    kept = [sum(node.name in others for others in chosen.values()) for node in nodes]
    assert all(name not in others and len(set(others)) == len(others) for name, others in chosen.items())
    assert all(len(others) == min(replicas, count - 1) for others in chosen.values())
    assert max(kept) - min(kept) <= 1


@pytest.mark.parametrize("racks", ["aabb", "abab", "abba", "abcd", "aabbcc", "aaabbbccc"])
def test_copies_go_to_another_rack_evenly(racks: str) -> None:
    chosen = choose_peers([NodePlace(f"n{i}", rack) for i, rack in enumerate(racks)], 1)
    rack_of = {f"n{i}": rack for i, rack in enumerate(racks)}
    assert all(rack_of[name] != rack_of[peer] for name, (peer,) in chosen.items())
    assert sorted(peer for (peer,) in chosen.values()) == sorted(rack_of)


def test_each_copy_goes_to_another_rack_as_long_as_there_are_racks() -> None:
    racks = {f"n{i}": rack for i, rack in enumerate("aabbccdd")}
    chosen = choose_peers([NodePlace(name, rack) for name, rack in racks.items()], 2)
    assert all(len({racks[name], *(racks[peer] for peer in peers)}) == 3 for name, peers in chosen.items())
    two = {f"n{i}": rack for i, rack in enumerate("aabb")}
    chosen = choose_peers([NodePlace(name, rack) for name, rack in two.items()], 2)
    assert all(any(two[name] != two[peer] for peer in peers) for name, peers in chosen.items())


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=12))
def test_a_copy_stays_in_its_rack_only_if_the_other_nodes_keep_enough(racks: list[str]) -> None:
    rack_of = {f"n{i}": rack for i, rack in enumerate(racks)}
    chosen = choose_peers([NodePlace(name, rack) for name, rack in rack_of.items()], 1)
    kept = Counter(peer for peers in chosen.values() for peer in peers)
    assert max(kept.values()) <= MOST_COPIES
    for name, (peer,) in chosen.items():
        elsewhere = [other for other, rack in rack_of.items() if rack != rack_of[name]]
        assert rack_of[peer] != rack_of[name] or all(kept[other] == MOST_COPIES for other in elsewhere)


def test_nodes_whose_rack_is_not_known_are_the_second_choice() -> None:
    nodes = [NodePlace("n0", "a"), NodePlace("n1", None), NodePlace("n2", "b"), NodePlace("n3", None)]
    assert choose_peers(nodes, 1)["n0"] == ("n2",)


def test_nodes_that_are_about_to_go_keep_copies_only_if_there_is_no_other() -> None:
    nodes = [NodePlace(f"n{i}", rack) for i, rack in enumerate("aabb")]
    chosen = choose_peers(nodes, 1, doomed={"n2", "n3"})
    assert (chosen["n0"], chosen["n1"]) == (("n1",), ("n0",))
    assert all(peers[0] in ("n0", "n1") for peers in chosen.values())


def test_the_choice_is_fast_for_a_thousand_nodes() -> None:
    nodes = [NodePlace(f"n{i}", f"rack-{i // 16}") for i in range(1024)]
    started = time.process_time()
    chosen = choose_peers(nodes, 1)
    assert time.process_time() - started < 1.0
    assert Counter(peer for peers in chosen.values() for peer in peers).most_common(1)[0][1] == 1


def labels(**each: dict[str, str]) -> dict[str, dict[str, str]]:
    return each


def test_the_failure_domain_is_the_rack_else_the_zone_else_what_is_asked_for() -> None:
    both = labels(n0={"rack": "1", "zone": "x"}, n1={"rack": "2", "zone": "x"}, n2={"zone": "x"})
    assert failure_domains(both, None) == {"n0": "x/1", "n1": "x/2"}
    same = labels(n0={"rack": "1", "zone": "x"}, n1={"rack": "1", "zone": "y"})
    assert failure_domains(same, None) == {"n0": "x/1", "n1": "y/1"}  # two racks of the same name
    zones = labels(n0={"zone": "x", "row": "7"}, n1={"zone": "y", "row": "8"}, n2={"zone": "y", "row": "8"})
    assert failure_domains(zones, None) == {"n0": "x", "n1": "y", "n2": "y"}
    assert failure_domains(zones, "row") == {"n0": "7", "n1": "8", "n2": "8"}
    assert failure_domains(labels(n0={"zone": "x"}, n1={"zone": "x"}), None) == {}
    assert failure_domains(labels(n0={}, n1={}), None) == {}


def test_a_failure_domain_that_cannot_be_used_is_warned_about() -> None:
    racks = labels(n0={"rack": "1"}, n1={"rack": "2"})
    assert domain_warning(racks, None) is None
    assert domain_warning(racks, "rack") is None
    assert "no node has the label; the nodes have rack" in (domain_warning(racks, "rak") or "")
    alone = labels(n0={"rack": "1"}, n1={"rack": "1"})
    assert "have the value '1'" in (domain_warning(alone, "rack") or "")
    assert domain_warning(alone, None) is None

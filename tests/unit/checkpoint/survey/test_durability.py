"""What the loss of a node would leave, from what vaults answered."""

import time

import pytest

from orchestrator.checkpoint.survey.durability import Durability, Surroundings, VaultReport, assess
from orchestrator.checkpoint.survey.inventory import Holding

pytestmark = pytest.mark.unit


def report(node: str, *held: tuple[int, int, bool], generation: int = 1, world_size: int = 2) -> VaultReport:
    """Of (rank, step, own)."""
    address = f"10.0.0.{ord(node) - ord('a') + 1}:7000"
    found = tuple(Holding(address, generation, rank, world_size, step, own) for rank, step, own in held)
    return VaultReport(node, address, True, found, memory_bytes=100 * len(held))


def silent(node: str) -> VaultReport:
    return VaultReport(node, f"10.0.0.{ord(node) - ord('a') + 1}:7000", answers=False, problem="no answer")


def judged(*reports: VaultReport, step: int = 10, stored: int | None = None) -> Durability:
    return assess(reports, Surroundings(5.0, step, stored, 1000, 900.0))


OWN, COPY = True, False
WHOLE = (
    report("a", (0, 9, OWN), (0, 10, OWN), (1, 9, COPY)),
    report("b", (1, 9, OWN), (1, 10, OWN), (0, 9, COPY)),
)
"""Step 10 is in the vaults of the ranks' own nodes, its copies are on their way."""


def test_copies_on_their_way_put_a_step_at_risk() -> None:
    found = judged(*WHOLE)
    assert (found.own_step, found.peers_step, found.storage_step) == (10, 9, None)
    assert (found.safe_step, found.steps_at_risk) == (9, 1)
    assert (found.copies_step, found.copies_min) == (9, 2)
    assert [(shard.own, shard.peers) for shard in found.shards] == [(("a",), ("b",)), (("b",), ("a",))]
    assert found.unrecoverable == ()
    assert [(node.host, node.ranks, node.memory_step) for node in found.nodes] == [
        ("10.0.0.1", (0,), 9),
        ("10.0.0.2", (1,), 9),
    ]


def test_without_copies_every_node_is_missed_and_storage_is_what_is_left() -> None:
    found = judged(report("a", (0, 10, OWN)), report("b", (1, 10, OWN)), stored=4)
    assert (found.copies_min, found.peers_step) == (1, None)
    assert found.unrecoverable == ("a", "b")
    assert (found.safe_step, found.steps_at_risk) == (4, 6)
    assert [(node.memory_step, node.from_step) for node in found.nodes] == [(None, 4), (None, 4)]


def test_a_silent_vault_holds_nothing() -> None:
    found = judged(WHOLE[0], silent("b"), report("c", (1, 9, COPY)))
    assert found.copies_min == 1
    assert found.unrecoverable == ("a", "c") or set(found.unrecoverable) == {"a"}
    assert [node.answers for node in found.nodes] == [True, False, True]
    assert found.safe_step == 0


def test_newer_storage_counts_for_more_than_memory() -> None:
    found = judged(*WHOLE, step=12, stored=11)
    assert (found.safe_step, found.steps_at_risk) == (11, 1)
    assert all(node.from_step == 11 and node.memory_step == 9 for node in found.nodes)


def test_nothing_yet_and_no_vaults_at_all() -> None:
    waiting = judged(report("a"), report("b"), step=0)
    assert (waiting.copies_min, waiting.shards, waiting.steps_at_risk) == (0, (), 0)
    none = judged(step=7, stored=5)
    assert (none.nodes, none.unrecoverable, none.safe_step, none.steps_at_risk) == ((), (), 5, 2)


def test_only_the_newest_generation_is_shown() -> None:
    older = report("a", (0, 9, OWN), (1, 9, COPY)), report("b", (1, 9, OWN), (0, 9, COPY))
    newer = report("a", (0, 8, OWN), generation=2, world_size=1)
    merged = VaultReport("a", older[0].address, True, older[0].held + newer.held)
    found = judged(merged, older[1])
    assert (found.copies_step, found.copies_min, len(found.shards)) == (8, 1, 1)
    assert found.nodes[0].ranks == (0,)


def test_a_thousand_nodes_are_judged_in_a_moment() -> None:
    nodes, reports = 1024, []
    for number in range(nodes):
        address, ranks = f"10.0.{number // 256}.{number % 256}:7000", ((number, OWN), ((number - 1) % nodes, COPY))
        held = tuple(Holding(address, 1, rank, nodes, step, own) for rank, own in ranks for step in (9, 10))
        reports.append(VaultReport(f"n{number}", address, True, held))
    started = time.process_time()
    found = judged(*reports)
    found.to_json()
    assert time.process_time() - started < 0.5, "it takes 0.03 s; each node against all holdings took 2 s"
    assert (found.copies_min, found.safe_step, len(found.nodes)) == (2, 10, nodes)


def test_it_is_json_that_says_the_verdict_too() -> None:
    value = judged(*WHOLE).to_json()
    assert (value["steps_at_risk"], value["unrecoverable"], value["shards"][1]["copies"]) == (1, [], 2)

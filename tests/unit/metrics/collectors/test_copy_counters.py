from dataclasses import replace

import pytest

from orchestrator.checkpoint.memory.copy_totals import REPLICATION_BOUNDS_S, CopyFigures, CopyTotals
from orchestrator.checkpoint.survey.durability import VaultReport
from orchestrator.domain.events import VaultsAdopted
from orchestrator.metrics.collectors.copy_counters import CopyCollector, CopyCounter
from tests.events import event

pytestmark = pytest.mark.unit


def totals(snapshots: int, queued_bytes: int = 0) -> CopyFigures:
    """A vault that has taken so many states of 100 bytes and sent each to two peers in 0.2 s."""
    counted = CopyTotals()
    for _ in range(snapshots):
        counted.snapshot(100)
        counted.replicated(100, 2, 0.2)
    return counted.figures(queued_bytes)


def answer(node: str, copies: CopyFigures | None) -> VaultReport:
    return VaultReport(node, f"{node}:7", copies is not None, copies=copies)


def values(counter: CopyCounter) -> dict[str, float]:
    families = CopyCollector(("run-1", "job"), counter).collect()
    return {
        sample.name + (f" {sample.labels['le']}" if "le" in sample.labels else ""): sample.value
        for family in families
        for sample in family.samples
    }


def test_vaults_are_added_up_and_one_that_ends_takes_nothing_away() -> None:
    counter = CopyCounter()
    assert values(counter) == {}
    counter.take([answer("a", totals(3, 100)), answer("b", totals(1))])
    counter.take([answer("a", totals(5)), answer("b", None)])  # one does not answer this time
    counter.take([answer("a", totals(5)), answer("b", totals(4, 300))])
    counter.take([answer("a", totals(6, 200)), answer("c", totals(2))])  # one is lost, another is new
    found = values(counter)
    assert found["convoy_snapshot_bytes_total"] == 100 * (6 + 4 + 2)
    assert found["convoy_replication_bytes_total"] == 200 * (6 + 4 + 2)
    assert found["convoy_replication_queued_bytes"] == 200
    assert found["convoy_replication_duration_seconds_count"] == 12
    assert found["convoy_replication_duration_seconds_sum"] == pytest.approx(12 * 0.2)
    assert found["convoy_replication_duration_seconds_bucket 0.1"] == 0
    assert found["convoy_replication_duration_seconds_bucket 0.25"] == 12
    assert found["convoy_replication_duration_seconds_bucket +Inf"] == 12


def test_a_new_vault_at_the_same_address_counts_from_nothing() -> None:
    counter = CopyCounter()
    counter.take([answer("a", totals(3))])
    counter.take([answer("a", totals(1))])
    assert values(counter)["convoy_snapshot_bytes_total"] == 400


def test_adopted_vaults_bring_nothing_of_the_time_before() -> None:
    counter = CopyCounter()
    counter.on_event(event(VaultsAdopted))
    counter.take([answer("a", totals(10)), answer("b", totals(10))])
    assert values(counter)["convoy_snapshot_bytes_total"] == 0
    counter.take([answer("a", totals(11)), answer("b", totals(10)), answer("c", totals(1))])
    assert values(counter)["convoy_snapshot_bytes_total"] == 200


def test_figures_travel_and_others_are_refused() -> None:
    figures = totals(2, 7)
    assert CopyFigures.from_json(figures.to_json()) == figures
    other = {**figures.to_json(), "replicated_counts": [1, 2]}
    with pytest.raises(ValueError, match="2 buckets"):
        CopyFigures.from_json(other)
    assert len(replace(figures).replicated_counts) == len(REPLICATION_BOUNDS_S) + 1


def test_without_peers_nothing_is_replicated() -> None:
    counted = CopyTotals()
    counted.replicated(100, 0, 0.1)
    assert (counted.figures(0).replicated_bytes, sum(counted.figures(0).replicated_counts)) == (0, 0)

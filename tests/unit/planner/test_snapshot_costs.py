"""Costs of snapshots at 7 B and 70 B parameters, against figures made by hand."""

import pytest

from orchestrator.planner.snapshot_costs import (
    PAGEABLE,
    PINNED,
    SnapshotCosts,
    node_loss,
    snapshot_costs,
)

pytestmark = pytest.mark.unit

GB = 1e9
SEVEN, SEVENTY = 7_000_000_000, 70_000_000_000
BUDGET = 0.02


def costs(parameters: int, nodes: int, speeds: object = PAGEABLE, replicas: int = 1) -> SnapshotCosts:
    return snapshot_costs(parameters, (8,) * nodes, replicas, speeds)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parameters", "nodes", "state_gb", "stall_s", "every_s", "pinned_s", "pinned_every_s", "own_gb", "copied_gb"),
    [
        # 12 bytes a parameter; 4 GB/s pageable, 25 GB/s pinned; 2% of the time, of which a pause is two thirds; two
        # slots of eight workers.
        (SEVEN, 1, 10.5, 2.6, 197, 0.42, 31.5, 168, 168),
        (SEVEN, 8, 1.3, 0.33, 24.6, 0.05, 3.9, 21, 42),
        (SEVENTY, 8, 13.1, 3.3, 246, 0.5, 39.4, 210, 420),
    ],
)  # fmt: skip
def test_stall_interval_and_memory(
    parameters: int, nodes: int, state_gb: float, stall_s: float, every_s: float, pinned_s: float,
    pinned_every_s: float, own_gb: float, copied_gb: float,
) -> None:  # fmt: skip
    pageable, pinned = costs(parameters, nodes), costs(parameters, nodes, PINNED)
    assert pageable.state_bytes / GB == pytest.approx(state_gb, abs=0.05)
    assert pageable.stall_s == pytest.approx(stall_s, rel=0.02)
    assert 1.5 * pageable.stall_s / BUDGET == pytest.approx(every_s, rel=0.01)
    assert pinned.stall_s == pytest.approx(pinned_s, rel=0.06)
    assert 1.5 * pinned.stall_s / BUDGET == pytest.approx(pinned_every_s, rel=0.01)
    assert pageable.node_bytes / GB == pytest.approx(own_gb, rel=0.01)
    assert pageable.copied_node_bytes / GB == pytest.approx(copied_gb, rel=0.01)
    assert pageable.recovery_bytes == 2 * pageable.copied_node_bytes


def test_bytes_on_the_wire() -> None:
    assert costs(SEVEN, 1).sent_bytes == 0
    assert costs(SEVEN, 8).sent_s == pytest.approx(4, rel=0.06)  # 10.5 GB at 2.5 GB/s
    assert costs(SEVENTY, 8).sent_s == pytest.approx(42, rel=0.01)
    assert costs(SEVENTY, 8, replicas=2).sent_s == pytest.approx(84, rel=0.01)


def test_copies_that_take_longer_than_the_budget_set_the_interval() -> None:
    pinned = costs(SEVENTY, 8, PINNED)
    assert 1.5 * pinned.stall_s / BUDGET == pytest.approx(39.4, rel=0.01)
    assert pinned.interval_s(BUDGET) == pinned.sent_s


def test_the_loss_of_a_node_repeats_an_interval_and_what_was_on_its_way() -> None:
    pageable = costs(SEVENTY, 8)
    loss = node_loss(pageable, SEVENTY, (8,) * 8, PAGEABLE, pageable.interval_s(BUDGET), step_s=10.0)
    assert loss is not None
    assert loss.repeated_s == pytest.approx(246 + 42, rel=0.01)
    assert loss.repeated_steps == 29
    # Seven nodes read 840 GB: 120 GB each at 2.5 GB/s.
    assert loss.read_s == pytest.approx(48, rel=0.01)
    alone = costs(SEVEN, 1)
    assert node_loss(alone, SEVEN, (8,), PAGEABLE, 100.0) is None

"""What the vaults take, and whether there is room."""

import pytest

from orchestrator.domain.errors import ClusterError
from orchestrator.planner.host_memory import PROCESS_BYTES
from orchestrator.planner.model_shape import ModelShape
from orchestrator.planner.vault_memory import (
    SMALL_STATE_BYTES,
    VaultNeed,
    check_room,
    least_worker_bytes,
    spread_evenly,
    vault_need,
)
from orchestrator.spec.job import JobSpec

pytestmark = pytest.mark.unit

MILLION = ModelShape(1_200_000, 2, 64, 2, 1000)
MIB = 1 << 20


def spec(**checkpoint: object) -> JobSpec:
    value: dict[str, object] = {
        "name": "m",
        "model": {"architecture": "gpt2"},
        "tokenizer": {"train": {}},
        "data": {"sources": [{"files": ["x"]}], "sequence_length": 128},
        "train": {"steps": 1, "global_batch": 8, "lr": 0.1},
        "checkpoint": checkpoint,
    }
    return JobSpec.model_validate(value)


def needed(workers_by_node: tuple[int, ...], **checkpoint: object) -> VaultNeed:
    need = vault_need(spec(**checkpoint), MILLION, workers_by_node)
    assert need is not None
    return need


def test_two_slots_of_masters_and_moments_and_as_much_for_each_copy() -> None:
    need = needed((1, 1, 1, 1))
    assert need.cell_bytes == 2 * (12 * 300_000 + SMALL_STATE_BYTES)
    assert (need.copies, need.node_bytes) == (1, 2 * need.cell_bytes)
    assert needed((1, 1, 1, 1), replicas=3).node_bytes == 4 * need.cell_bytes
    assert needed((1, 1, 1, 1), replicas=0).node_bytes == need.cell_bytes
    assert vault_need(spec(memory=False), MILLION, (1, 1)) is None


def test_there_are_no_more_copies_than_other_nodes() -> None:
    need = needed((4,), replicas=2)
    assert (need.copies, need.node_bytes) == (0, 4 * need.cell_bytes)


def test_a_node_that_keeps_copies_of_a_larger_rack_needs_more() -> None:
    need = vault_need(spec(), MILLION, (1, 1, 1), most_copies=2)
    assert need is not None
    assert (need.copies, need.node_bytes) == (1, 3 * need.cell_bytes)


def test_the_fullest_nodes_are_what_counts() -> None:
    need = needed((3, 1))
    assert need.node_bytes == 4 * need.cell_bytes
    assert sum(spread_evenly(5, 3)) == 5
    assert spread_evenly(2, 4) == (1, 1)


def test_a_recovery_holds_the_old_and_the_new_for_a_moment() -> None:
    need, three = needed((1, 1, 1, 1)), 2 * (12 * 400_000 + SMALL_STATE_BYTES)
    assert need.recovery_bytes == need.node_bytes + 2 * three
    alone = needed((2,))
    assert alone.recovery_bytes == 2 * alone.node_bytes


def test_what_does_not_fit_is_refused_with_a_way_out() -> None:
    need = needed((1, 1))
    room_bytes = need.node_bytes - MIB
    with pytest.raises(
        ClusterError, match="state and 1 copy take 28 MiB there, 27 MiB of its 127 MiB are left"
    ) as error:
        check_room(need, 100 * MIB + room_bytes, 100 * MIB)
    assert "checkpoint.replicas: 0" in str(error.value.hint)
    assert "checkpoint.memory: false" in str(error.value.hint)
    with pytest.raises(ClusterError) as error:
        check_room(needed((2,), replicas=0), 100 * MIB, 100 * MIB)
    assert "replicas" not in str(error.value.hint)


def test_room_for_training_but_not_for_a_recovery_is_a_warning() -> None:
    need = needed((1, 1))
    warning = check_room(need, 100 * MIB + need.recovery_bytes - 1, 100 * MIB)
    assert warning is not None
    assert "during a recovery" in warning
    assert check_room(need, 100 * MIB + need.recovery_bytes, 100 * MIB) is None


def on_gpus(stage: int, offload: str = "none") -> JobSpec:
    value = spec().model_dump(mode="json") | {
        "resources": {"gpus_per_worker": 1},
        "zero": {"stage": stage, "offload_optimizer": {"device": offload}},
    }
    value["train"]["precision"] = "bf16"
    return JobSpec.model_validate(value)


def test_on_gpus_the_host_holds_the_process_and_what_is_offloaded() -> None:
    assert least_worker_bytes(on_gpus(2), MILLION, 4) == PROCESS_BYTES
    # Masters and moments 12, fp32 gradients 4, and weights in bf16 2, of a quarter.
    assert least_worker_bytes(on_gpus(2, "cpu"), MILLION, 4) == PROCESS_BYTES + 18 * 300_000

"""Snapshots that are copied while the next step is computed hold the state of the step they were taken after."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.checkpoint.memory.vault import Vault
from orchestrator.checkpoint.memory.wire import Channel
from orchestrator.domain.session import Leave, PeerState, ShardPlace, VaultAccess
from orchestrator.spec.job import JobSpec
from tests.cluster.snapshot_gang import LATE_S, late_snapshot_differs
from tests.cluster.train_processes import TrainProcesses, train_plan
from tests.cluster.zero_gang import Gang, Setup

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

TOKEN = "a token"
PIECE_S = 0.02
STEPS, STORED, LEFT = 8, 4, 6
BF16 = {"precision": "bf16", "config": {"data_types": {"grad_accum_dtype": "fp32"}}}
OFFLOADED = {"offload_optimizer": {"device": "cpu"}}
SETUPS = {
    "torch's AdamW, fp32: the parameters are the masters": Setup(0, accumulation=2),
    "FP16_UnfusedOptimizer": Setup(0, "bf16"),
    "stage 1, fp32": Setup(1, accumulation=2),
    "BF16_Optimizer": Setup(1, accumulation=2, **BF16),
    "stage 2, bf16": Setup(2, accumulation=2, **BF16),
    "stage 2, offloaded": Setup(2, zero=OFFLOADED),
    "stage 3, fp32: one flat for parameters and masters": Setup(3, accumulation=2, frozen=True),
    "stage 3, bf16, offloaded": Setup(3, zero=OFFLOADED, **BF16),
}


@pytest.fixture
def vault() -> Iterator[Vault]:
    made = Vault("127.0.0.1", TOKEN, lambda: 1 << 30)
    with closing(made), closing(Channel.connect(made.address, TOKEN, 5.0)) as driver:
        for generation in range(1, 1 + len(SETUPS)):
            driver.ask({"do": "peers", "generation": generation, "addresses": []})
        yield made


def access(vault: Vault, generation: int) -> VaultAccess:
    return VaultAccess(vault.address, os.getpid(), TOKEN, generation)


def held_steps(vault: Vault, generation: int) -> list[int]:
    """What both ranks have there."""
    with closing(Channel.connect(vault.address, TOKEN, 5.0)) as channel:
        items = channel.ask({"do": "inventory"})[0]["held"]
    of = [{item["step"] for item in items if (item["generation"], item["rank"]) == (generation, r)} for r in (0, 1)]
    return sorted(of[0] & of[1])


def test_no_state_changes_before_the_update(gang: Gang, vault: Vault) -> None:
    """For every optimizer of DeepSpeed's that is in use. The fence before the update is what it depends on."""
    for generation, (name, setup) in enumerate(SETUPS.items(), 1):
        for differing, waited_s in gang.run(2, late_snapshot_differs, setup, access(vault, generation)):
            assert differing == [], name
            assert waited_s > LATE_S / 2, name
    torn = gang.run(2, late_snapshot_differs, Setup(1), access(vault, len(SETUPS)), False)
    assert all(differing for differing, _ in torn), "without the fence the snapshot holds a later state"


def test_training_goes_on_from_a_state_that_was_copied_during_the_next_step(
    train_processes: TrainProcesses,
    make_spec: Callable[..., JobSpec],
    prepared_lines: Path,
    tmp_path: Path,
    vault: Vault,
) -> None:
    """The loop waits before each update. A checkpoint by the vaults, and leaving, wait until they have the state."""
    checkpoint = {"memory_interval_steps": 1, "interval_steps": STORED, "at_end": False}
    spec = make_spec(steps=STEPS, stage=1, checkpoint=checkpoint)
    plan = train_plan(spec, prepared_lines, tmp_path / "run", 2)
    whole = train_processes.run(plan, 2)
    late = train_processes.run(plan, 2, LEFT, Leave.REGROUP, (access(vault, 1),) * 2, piece_s=PIECE_S)
    assert late.losses == whole.losses[:LEFT]
    assert all(result.regroup for result in late.results)
    waits = [rank.phases.snapshot_s for step in late.steps for rank in step.ranks.every]
    assert max(waits) > PIECE_S, "no update waited for a copy: nothing is proved"
    with closing(Channel.connect(vault.address, TOKEN, 5.0)) as channel:
        shards = channel.ask({"do": "written", "generation": 1, "step": STORED})[0]["shards"]
    assert [shard["rank"] for shard in shards] == [0, 1]
    assert not [shard["error"] for shard in shards if "error" in shard]

    first, last = held_steps(vault, 1)
    assert first < last == LEFT
    places = tuple(ShardPlace(rank, (vault.address,)) for rank in (0, 1))
    restored = replace(plan, peer_state=PeerState(1, first, places))
    rest = train_processes.run(restored, 2, vaults=(access(vault, 2),) * 2)
    assert rest.losses == whole.losses[first:]

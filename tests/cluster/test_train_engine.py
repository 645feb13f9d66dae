"""The training engine in real processes: what must not change the losses does not, and every architecture learns."""

import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.events import MemoryMeasured, WorkerPhase
from orchestrator.spec.job import JobSpec
from tests.cluster.train_processes import GangFailedError, Outcome, TrainProcesses, train_plan
from tests.selection import every_day

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

STAGES = [0, 1, 2, 3]


@pytest.fixture
def train(
    train_processes: TrainProcesses, make_spec: Callable[..., JobSpec], prepared_lines: Path, tmp_path: Path
) -> Callable[..., Outcome]:
    """Train a spec made from the arguments; `workers` of them."""
    runs = 0

    def run(workers: int = 1, **arguments: Any) -> Outcome:
        nonlocal runs
        runs += 1
        plan = train_plan(make_spec(**arguments), prepared_lines, tmp_path / str(runs), workers)
        return train_processes.run(plan, workers)

    return run


def close(found: list[float], expected: list[float], tolerance: float) -> None:
    assert found == pytest.approx(expected, rel=tolerance)


def test_stage_3_starts_from_the_same_weights(train: Callable[..., Outcome]) -> None:
    """`zero.Init` would leave transformers' initialisation undone: a first loss of hundreds instead of ln(vocab)."""
    whole = train(steps=1, stage=0)
    partitioned = train(workers=2, steps=1, stage=3)
    assert whole.losses[0] == pytest.approx(math.log(384), rel=0.02)
    close(partitioned.losses, whole.losses, 1e-6)


@pytest.mark.parametrize("stage", every_day(STAGES, 0, 3))
def test_bf16_follows_fp32(stage: int, train: Callable[..., Outcome]) -> None:
    """bf16 has 8 bits of mantissa: the curve follows to about a percent, masters in fp32 keep it from drifting."""
    exact = train(steps=20, stage=0)
    rounded = train(workers=2, steps=20, stage=stage, precision="bf16")
    close(rounded.losses, exact.losses, 1e-2)
    assert rounded.losses != exact.losses
    assert [n for n in rounded.grad_norms if n is not None] == pytest.approx(exact.grad_norms, rel=0.05)
    for outcome in (exact, rounded):
        (memory,) = [fields for kind, fields in outcome.events if kind is MemoryMeasured]
        for part, measured in memory["measured"].items():
            # Beside the formula are the counters of steps, and padding.
            assert measured == pytest.approx(memory["predicted"][part], rel=0.01, abs=256), part
        assert set(memory["measured"]) == {"parameters", "gradients", "optimizer"}, "no allocator knows activations"


@pytest.mark.parametrize(
    ("stage", "micro_batch"), every_day(product(STAGES, [1, 2, 5]), (0, 5), (1, 2), (2, 1), (3, 5))
)
def test_accumulation_changes_nothing(stage: int, micro_batch: int, train: Callable[..., Outcome]) -> None:
    """12 samples over 2 workers: 6, 3 and 2 micro steps, the last of them with an uneven rest."""
    at_once = train(steps=6, stage=0, micro_batch=12)
    in_pieces = train(workers=2, steps=6, stage=stage, micro_batch=micro_batch)
    assert in_pieces.steps[0].accumulation == -(-6 // micro_batch)
    close(in_pieces.losses, at_once.losses, 1e-5)


ACTIVATIONS = every_day([("gpt2", 1), ("gpt2", 3), ("llama", 2), ("bert", 3)], ("gpt2", 3), ("llama", 2))


@pytest.mark.parametrize(("architecture", "stage"), ACTIVATIONS)
def test_activation_checkpointing_changes_nothing(architecture: str, stage: int, train: Callable[..., Outcome]) -> None:
    arguments = {"architecture": architecture, "steps": 6, "stage": stage, "workers": 2}
    kept = train(**arguments)
    recomputed = train(**arguments, activation_checkpointing=True)
    close(recomputed.losses, kept.losses, 1e-6)


OPTIMIZER: dict[str, Any] = {"offload_optimizer": {"device": "cpu"}}
BOTH = {**OPTIMIZER, "offload_params": {"device": "cpu"}}
OFFLOADED = [(1, OPTIMIZER), (2, OPTIMIZER), (3, OPTIMIZER), (3, BOTH)]


@pytest.mark.parametrize(("stage", "zero"), every_day(OFFLOADED, (2, OPTIMIZER), (3, BOTH)))
def test_offload_changes_nothing(stage: int, zero: dict[str, Any], train: Callable[..., Outcome]) -> None:
    kept = train(steps=8, stage=0)
    offloaded = train(workers=2, steps=8, stage=stage, zero=zero)
    close(offloaded.losses, kept.losses, 1e-5)
    assert offloaded.grad_norms == pytest.approx(kept.grad_norms, rel=1e-4)


@pytest.mark.parametrize("stage", every_day(STAGES, 1, 3))
def test_clipping_acts_at_every_stage(stage: int, train: Callable[..., Outcome]) -> None:
    """AdamW all but cancels the scale of gradients; with a large epsilon it does not, and clipping shows."""
    arguments = {"steps": 6, "optimizer": {"eps": 1.0}, "lr": 0.5}
    free = train(stage=0, clip_grad_norm=None, **arguments)
    clipped = train(stage=0, clip_grad_norm=0.1, **arguments)
    found = train(workers=2, stage=stage, clip_grad_norm=0.1, **arguments)
    unclipped = train(workers=2, stage=stage, clip_grad_norm=None, **arguments)
    assert abs(free.losses[-1] - clipped.losses[-1]) > 1e-2
    close(found.losses, clipped.losses, 1e-5)
    close(unclipped.losses, free.losses, 1e-5)
    # What is reported is the norm before clipping.
    assert found.grad_norms == pytest.approx(clipped.grad_norms, rel=1e-4)
    assert all(n is not None and n > 0.1 for n in found.grad_norms)


ARCHITECTURES = ["gpt_neo", "llama", "mistral", "qwen2", "qwen3", "bert", "rwkv", "mamba"]


@pytest.mark.parametrize("architecture", every_day(ARCHITECTURES, "llama", "bert", "rwkv", "mamba"))
def test_architecture_learns(architecture: str, train: Callable[..., Outcome]) -> None:
    outcome = train(workers=2, architecture=architecture, steps=25, stage=2, lr=5e-3)
    start, end = outcome.evaluations[0], outcome.evaluations[25]
    assert start == pytest.approx(math.log(384), rel=0.15)
    assert end < 0.92 * start


@pytest.mark.parametrize("architecture", every_day(["llama", "bert"], "bert"))
def test_stage_3_trains_other_architectures(architecture: str, train: Callable[..., Outcome]) -> None:
    whole = train(architecture=architecture, steps=6, stage=0)
    partitioned = train(workers=3, architecture=architecture, steps=6, stage=3)
    close(partitioned.losses, whole.losses, 1e-5)


def test_dropout_is_drawn_from_the_step(train: Callable[..., Outcome]) -> None:
    """Same seed, same losses; dropout is on in training and off in evaluation."""
    arguments = {"steps": 4, "config": {"resid_pdrop": 0.3, "embd_pdrop": 0.3}}
    first, second, without = train(**arguments), train(**arguments), train(steps=4)
    assert first.losses == second.losses
    assert first.losses[0] != pytest.approx(without.losses[0], rel=1e-5)
    assert first.evaluations[0] == pytest.approx(without.evaluations[0], rel=1e-7)


def test_a_diverging_run_says_where(train: Callable[..., Outcome]) -> None:
    with pytest.raises(
        GangFailedError, match=r"TrainingDivergedError: the (loss|gradient norm) is (nan|inf) at step \d+"
    ):
        train(workers=2, steps=30, lr=1e30, clip_grad_norm=None, optimizer={"eps": 1e-30})


def test_processes_survive_a_failed_gang(train: Callable[..., Outcome]) -> None:
    """After a failure the same processes form a gang again, at any stage."""
    before = train(workers=2, steps=3, stage=3)
    with pytest.raises(GangFailedError):
        train(workers=2, steps=30, stage=3, lr=1e30, clip_grad_norm=None, optimizer={"eps": 1e-30})
    after = train(workers=2, steps=3, stage=3)
    assert after.losses == before.losses


def test_reports_are_complete(train: Callable[..., Outcome]) -> None:
    outcome = train(workers=3, steps=3, global_batch=10, micro_batch=2, stage=2)
    for index, report in enumerate(outcome.steps):
        assert report.first_position == 10 * index
        assert report.world_size == 3
        assert [rank.rank for rank in report.ranks.every] == [0, 1, 2]
        assert [rank.samples for rank in report.ranks.every] == [4, 3, 3]
        assert sum(rank.tokens for rank in report.ranks.every) == report.tokens
        assert report.target_tokens == report.tokens - report.samples
        assert report.tflops_per_s is not None
        assert report.mfu is None
        for rank in report.ranks.every:
            phases = rank.phases
            spent = phases.data_wait_s + phases.forward_s + phases.backward_s + phases.optimizer_s
            assert 0 < spent <= report.step_time_s * 1.5
            assert 0 < rank.memory.rss_bytes <= rank.memory.peak_rss_bytes
            assert rank.memory.allocated_bytes is None
    assert outcome.steps[-1].epoch > outcome.steps[0].epoch > 0
    phases_seen = [fields["phase"] for kind, fields in outcome.events if kind is WorkerPhase]
    assert phases_seen == ["import", "rendezvous", "build", "train"]

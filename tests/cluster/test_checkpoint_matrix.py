"""Training state saved at one world size and ZeRO stage and restored at another continues the same loss curve.

Every restore starts from another seed, so what it continues with provably came from the checkpoint.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from orchestrator.checkpoint.storage.checkpoint_catalog import verify_checkpoint
from tests.cluster.zero_gang import (
    Gang,
    Setup,
    engines_left,
    restore_and_train,
    states_after_training_on,
    train_and_save,
)
from tests.selection import every_day

pytestmark = pytest.mark.cluster

BEFORE, AFTER = 3, 3
SHAPES = [(workers, stage) for workers in (1, 2, 3, 4) for stage in (0, 1, 2, 3)]
# Every pair of worker numbers and every pair of stages occurs: each of these is restored at half of SHAPES.
SAVED_AT = [(1, 3), (2, 1), (3, 0), (4, 2)]
OTHER_SEED = 77


@pytest.fixture(scope="module")
def gang(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gang]:
    gang = Gang(4, tmp_path_factory.mktemp("groups"))
    yield gang
    gang.close()


@pytest.fixture(scope="module")
def reference(gang: Gang, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of one worker at stage 0 that nothing interrupted."""
    return gang.run(1, train_and_save, Setup(), str(tmp_path_factory.mktemp("reference")), BEFORE, AFTER)[0]


def save(gang: Gang, workers: int, setup: Setup, run_dir: Path) -> tuple[str, list[float]]:
    run_dir.mkdir(parents=True, exist_ok=True)
    losses = gang.run(workers, train_and_save, setup, str(run_dir), BEFORE, AFTER)[0]
    checkpoint = run_dir / "checkpoints" / f"step-{BEFORE:08d}"
    verify_checkpoint(checkpoint)
    return str(checkpoint), losses


def restore(gang: Gang, workers: int, setup: Setup, checkpoint: str) -> list[float]:
    """Losses after the restore, the same on every rank."""
    answers = gang.run(workers, restore_and_train, setup.but(seed=OTHER_SEED), checkpoint, AFTER)
    progress, losses, seen = answers[0]
    assert (progress.step, progress.position, progress.extra) == (BEFORE, BEFORE * 12, {"note": "kept"})
    assert seen == [BEFORE] * 3, "the buffer is restored on rank 0"
    for other in answers[1:]:
        assert other[1] == losses
        assert other[2] == seen, "the buffer is restored on every rank"
    return losses  # type: ignore[no-any-return]


@pytest.mark.parametrize(("workers", "stage"), every_day(SAVED_AT, (4, 2)))
def test_state_restores_at_other_shapes(
    gang: Gang, reference: list[float], tmp_path: Path, workers: int, stage: int
) -> None:
    checkpoint, uninterrupted = save(gang, workers, Setup(stage), tmp_path)
    assert uninterrupted == pytest.approx(reference, rel=1e-5)
    assert reference[-1] < reference[0] - 0.05, "the model learns, so a restart from scratch would show"
    for other_workers, other_stage in SHAPES:
        if (other_workers + other_stage + workers) % 2:
            continue
        losses = restore(gang, other_workers, Setup(other_stage), checkpoint)
        where = f"{workers} workers at stage {stage} -> {other_workers} at {other_stage}"
        assert losses == pytest.approx(uninterrupted[BEFORE:], rel=1e-5), where


@pytest.mark.parametrize(("workers", "stage"), every_day(SHAPES, (2, 1), (3, 2), (4, 3)))
def test_at_the_same_shape_it_is_bitwise(gang: Gang, tmp_path: Path, workers: int, stage: int) -> None:
    checkpoint, uninterrupted = save(gang, workers, Setup(stage), tmp_path)
    assert restore(gang, workers, Setup(stage), checkpoint) == uninterrupted[BEFORE:]


CASES = {
    "accumulation": Setup(stage=2, accumulation=2),
    "several sub-groups": Setup(stage=3, zero={"sub_group_size": 3000}),
    "nothing persistent": Setup(stage=3, zero={"stage3_param_persistence_threshold": 0}),
    "torch Adam on the host": Setup(stage=2, zero={"offload_optimizer": {"device": "cpu"}}),
    "parameters on the host": Setup(
        stage=3, zero={"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    ),
    "fused torch Adam": Setup(stage=1, optimizer={"torch_adam": True, "fused": True}),
    "untied": Setup(stage=1, model={"tie_word_embeddings": False}),
    "frozen, stage 0": Setup(stage=0, frozen=True),
    "frozen, stage 2": Setup(stage=2, frozen=True),
    "frozen, stage 3": Setup(stage=3, frozen=True),
}


def on_host(setup: Setup) -> Setup:
    """DeepSpeed insists on its own CPU Adam beside offload unless it is told not to."""
    return setup.but(config={"zero_force_ds_cpu_optimizer": False})


OFTEN = ("several sub-groups", "torch Adam on the host", "frozen, stage 3")


@pytest.mark.parametrize("name", every_day(CASES, *OFTEN))
def test_special_state_is_restored(gang: Gang, tmp_path: Path, name: str) -> None:
    setup = on_host(CASES[name])
    checkpoint, uninterrupted = save(gang, 2, setup, tmp_path)
    assert restore(gang, 2, setup, checkpoint) == uninterrupted[BEFORE:], "bitwise at the same shape"
    plain = Setup(frozen=setup.frozen, model=setup.model)
    assert restore(gang, 1, plain, checkpoint) == pytest.approx(uninterrupted[BEFORE:], rel=1e-5)
    wide = setup.but(accumulation=1)
    assert restore(gang, 3, wide, checkpoint) == pytest.approx(uninterrupted[BEFORE:], rel=1e-5)


@pytest.mark.soak  # the operator is compiled for each environment, which takes minutes
@pytest.mark.needs("cpu_adam")
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeeds_own_cpu_adam_is_restored(gang: Gang, tmp_path: Path, stage: int) -> None:
    setup = Setup(stage, zero={"offload_optimizer": {"device": "cpu"}}, optimizer={})
    checkpoint, uninterrupted = save(gang, 2, setup, tmp_path)
    assert restore(gang, 2, setup, checkpoint) == uninterrupted[BEFORE:], "bitwise at the same shape"
    for workers, other in ((1, Setup(0)), (3, setup.but(stage=5 - stage))):  # to torch's Adam, and to itself
        assert restore(gang, workers, other, checkpoint) == pytest.approx(uninterrupted[BEFORE:], rel=1e-5)


BF16 = Setup(precision="bf16")
BF16_CASES = {
    "unfused wrapper": BF16.but(stage=0),
    "stage 1": BF16.but(stage=1),
    "BF16_Optimizer": BF16.but(stage=1, config={"data_types": {"grad_accum_dtype": "fp32"}}),
    "stage 2": BF16.but(stage=2),
    "stage 3": BF16.but(stage=3, frozen=False),
    "stage 3, frozen": BF16.but(stage=3, frozen=True),
    "stage 1, frozen": BF16.but(stage=1, frozen=True),
}


@pytest.mark.parametrize("name", every_day(BF16_CASES, "BF16_Optimizer", "stage 3, frozen"))
def test_bf16_keeps_its_fp32_masters(gang: Gang, tmp_path: Path, name: str) -> None:
    setup = BF16_CASES[name]
    checkpoint, uninterrupted = save(gang, 2, setup, tmp_path)
    assert restore(gang, 2, setup, checkpoint) == uninterrupted[BEFORE:], "bitwise at the same shape"
    for workers, stage in ((4, 0), (3, 1), (1, 2), (4, 3)):
        losses = restore(gang, workers, BF16.but(stage=stage, frozen=setup.frozen), checkpoint)
        # The first loss comes from the restored weights alone; later ones carry bf16's gradient noise (2**-8).
        assert losses[0] == pytest.approx(uninterrupted[BEFORE], rel=1e-4)
        assert losses == pytest.approx(uninterrupted[BEFORE:], rel=2e-3)


def test_before_the_first_step_there_are_no_moments(gang: Gang, reference: list[float], tmp_path: Path) -> None:
    losses = gang.run(3, train_and_save, Setup(stage=2), str(tmp_path), 0, 3)[0]
    checkpoint = tmp_path / "checkpoints" / "step-00000000"
    assert not verify_checkpoint(checkpoint).moments
    for workers, stage in ((3, 2), (2, 3), (1, 0)):
        setup = Setup(stage, seed=OTHER_SEED)
        restored = gang.run(workers, restore_and_train, setup, str(checkpoint), 3)[0][1]
        assert restored == pytest.approx(losses, rel=1e-5)
    assert losses == pytest.approx(reference[:3], rel=1e-5)


@pytest.mark.parametrize(
    ("stage", "precision"), every_day(product([0, 1, 2, 3], ["fp32", "bf16"]), (1, "fp32"), (3, "bf16"))
)
def test_what_is_known_of_an_engine_holds_while_it_trains(gang: Gang, stage: int, precision: str) -> None:
    setup = Setup(stage, precision, frozen=stage == 1)
    for known, anew in gang.run(2, states_after_training_on, setup):
        assert known == anew


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_an_engine_that_was_destroyed_is_gone(gang: Gang, stage: int) -> None:
    """Else each recovery leaves a model, its optimizer and the process group in memory, whose threads go on."""
    assert gang.run(2, engines_left, Setup(stage)) == [0, 0]

"""Checkpoints go to plain DeepSpeed scripts and come from them, and the loss curve does not show it.

Every load starts from another seed. Losses are compared at a tolerance that shows a weight decay or a step counter
of one group that went to another (2e-6 and 1e-5 in these losses).
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.domain.errors import UsageError
from orchestrator.train.convert.from_deepspeed import from_deepspeed
from orchestrator.train.convert.to_deepspeed import Adam, to_deepspeed
from tests.cluster.universal_gang import deepspeed_load, deepspeed_save, make_universal
from tests.cluster.zero_gang import Gang, Setup, restore_and_train, train_and_save
from tests.selection import every_day

pytestmark = pytest.mark.cluster

BEFORE, AFTER = 3, 3
OTHER_SEED = 77
EXACT = 1e-6
BF16 = Setup(precision="bf16")
FP32_GRADIENTS = {"data_types": {"grad_accum_dtype": "fp32"}}
"""With it stage 1 in bf16 has an optimizer class of its own."""


@pytest.fixture(scope="module")
def gang(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gang]:
    gang = Gang(3, tmp_path_factory.mktemp("groups"))
    yield gang
    gang.close()


def give(gang: Gang, setup: Setup, directory: Path, adam: Adam = "torch") -> tuple[Path, list[float]]:
    """A universal checkpoint made of one that two workers of Convoy saved, and the losses after it."""
    losses = gang.run(2, train_and_save, setup, str(directory), BEFORE, AFTER)[0]
    converted = to_deepspeed(directory / "checkpoints" / f"step-{BEFORE:08d}", directory / "given", adam)
    assert converted.path == directory / "given" / f"global_step{BEFORE}_universal"
    return directory / "given", losses[BEFORE:]


def take(gang: Gang, setup: Setup, directory: Path, workers: int = 2) -> tuple[Path, list[float]]:
    """A checkpoint of Convoy made of one that a plain DeepSpeed script saved, and that script's losses after it."""
    losses = gang.run(workers, deepspeed_save, setup, str(directory), BEFORE, AFTER)[0]
    gang.run(1, make_universal, str(directory))
    return from_deepspeed(directory, directory / "taken", position=BEFORE * 12).path, losses[BEFORE:]


# Convoy -> DeepSpeed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("saved_stage", every_day([0, 2, 3], 3))
def test_deepspeed_goes_on_at_every_stage_and_other_world_sizes(gang: Gang, tmp_path: Path, saved_stage: int) -> None:
    directory, expected = give(gang, Setup(saved_stage), tmp_path)
    shapes = [(1, 1), (3, 2), (3, 3), (1, 3)]
    for workers, stage in shapes if saved_stage == 3 else shapes[1:3]:
        setup = Setup(stage, seed=OTHER_SEED)
        for got in gang.run(workers, deepspeed_load, setup, str(directory), BEFORE, AFTER, True):
            where = f"stage {saved_stage} -> {workers} ranks at stage {stage}"
            assert got["losses"] == pytest.approx(expected, rel=EXACT), where
            assert got["decays"] == [0.1, 0.0], where
            assert got["counted"] == {BEFORE + AFTER}, where
            assert got["global_steps"] == BEFORE + AFTER
            assert got["convoy"]["position"] == BEFORE * 12


def test_stages_1_and_2_need_no_help_from_the_script(gang: Gang, tmp_path: Path) -> None:
    directory, expected = give(gang, Setup(1), tmp_path)
    for stage in (1, 2):
        got = gang.run(2, deepspeed_load, Setup(stage, seed=OTHER_SEED), str(directory), BEFORE, AFTER, False)[0]
        assert got["losses"] == expected, "bitwise at the same world size"


@pytest.mark.parametrize("stage", every_day([1, 3], 3))
def test_bf16_masters_go_on(gang: Gang, tmp_path: Path, stage: int) -> None:
    setup = BF16.but(stage=stage, config=FP32_GRADIENTS)
    directory, expected = give(gang, setup, tmp_path)
    got = gang.run(2, deepspeed_load, setup.but(seed=OTHER_SEED), str(directory), BEFORE, AFTER, True)[0]
    assert got["losses"] == expected, "bitwise at the same world size"
    other = gang.run(1, deepspeed_load, BF16.but(stage=2, seed=OTHER_SEED), str(directory), BEFORE, AFTER, True)[0]
    assert other["losses"] == pytest.approx(expected, rel=2e-5)
    assert other["decays"] == [0.1, 0.0]


@pytest.mark.parametrize(("stage", "precision"), every_day([(2, "fp32"), (3, "bf16")], (2, "fp32")))
def test_frozen_parameters_and_buffers_come_with_the_line_the_notes_give(
    gang: Gang, tmp_path: Path, stage: int, precision: str
) -> None:
    setup = Setup(stage, precision, frozen=True)
    directory, expected = give(gang, setup, tmp_path)
    got = gang.run(1, deepspeed_load, setup.but(seed=OTHER_SEED), str(directory), BEFORE, AFTER, True)[0]
    assert got["losses"] == pytest.approx(expected, rel=EXACT if precision == "fp32" else 2e-5)
    assert got["seen"] == [BEFORE + AFTER] * 3


def test_a_scheduler_of_the_script_goes_on_where_it_was(gang: Gang, tmp_path: Path) -> None:
    warmup = {"warmup_min_lr": 0.0, "warmup_max_lr": 1e-3, "warmup_num_steps": 8, "warmup_type": "linear"}
    setup = Setup(2, config={"scheduler": {"type": "WarmupLR", "params": warmup}})
    for saved in (setup, Setup(2)):  # with its state in the checkpoint, and without any
        directory, expected = give(gang, saved, tmp_path / str(bool(saved.config)))
        got = gang.run(1, deepspeed_load, setup.but(seed=OTHER_SEED), str(directory), BEFORE, AFTER, True)[0]
        assert got["rates"] == pytest.approx([1e-3 * (BEFORE + AFTER - 1) / 8] * 2)  # DeepSpeed counts from 0
        if saved is setup:
            assert got["losses"] == pytest.approx(expected, rel=EXACT)


@pytest.mark.soak  # the operator is compiled for each environment, which takes minutes
@pytest.mark.needs("cpu_adam")
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeeds_own_cpu_adam_goes_on(gang: Gang, tmp_path: Path, stage: int) -> None:
    directory, expected = give(gang, Setup(2), tmp_path, adam="deepspeed")
    setup = Setup(stage, zero={"offload_optimizer": {"device": "cpu"}}, optimizer={}, seed=OTHER_SEED)
    got = gang.run(1, deepspeed_load, setup, str(directory), BEFORE, AFTER, False)[0]
    assert got["losses"] == pytest.approx(expected, rel=EXACT)
    assert got["decays"] == [0.1, 0.0]


# DeepSpeed -> Convoy -----------------------------------------------------------------------------------------

TAKEN = {
    "stage 1": Setup(1),
    "stage 2": Setup(2),
    "stage 3": Setup(3),
    "stage 3, several sub-groups": Setup(3, zero={"sub_group_size": 3000}),
    "stage 2, aligned": Setup(2, zero={"parameter_alignment": True}),
    "stage 1, frozen": Setup(1, frozen=True),
    "stage 3, frozen": Setup(3, frozen=True),
    "stage 1, bf16 optimizer": BF16.but(stage=1, config=FP32_GRADIENTS),
    "stage 3, bf16": BF16.but(stage=3),
}


OFTEN = ("stage 3, several sub-groups", "stage 1, bf16 optimizer", "stage 3, frozen")


@pytest.mark.parametrize("name", every_day(TAKEN, *OFTEN))
def test_what_deepspeed_saved_goes_on_here(gang: Gang, tmp_path: Path, name: str) -> None:
    setup = TAKEN[name]
    checkpoint, expected = take(gang, setup, tmp_path)
    exact = setup.precision == "fp32"
    shapes = [(2, setup.stage), (3, setup.stage % 3 + 1), (1, 0)]
    for workers, stage in shapes if setup == Setup(setup.stage) else shapes[:2]:
        other = setup.but(seed=OTHER_SEED, stage=stage, zero=setup.zero if stage == setup.stage else {})
        if stage != setup.stage:
            other = other.but(config={})
        progress, losses, seen = gang.run(workers, restore_and_train, other, str(checkpoint), AFTER)[0]
        assert (progress.step, progress.position) == (BEFORE, BEFORE * 12)
        assert seen == [BEFORE] * 3
        if (workers, stage) == (2, setup.stage):
            assert losses == expected, "bitwise at the same shape"
        assert losses == pytest.approx(expected, rel=EXACT if exact else 2e-5), f"{workers} workers at stage {stage}"


def test_what_deepspeed_writes_wrongly_or_not_universally_is_refused(gang: Gang, tmp_path: Path) -> None:
    gang.run(2, deepspeed_save, Setup(2, zero={"round_robin_gradients": True}), str(tmp_path), 1, 0)
    for source in (tmp_path, tmp_path / "plain"):
        with pytest.raises(UsageError, match="plain ZeRO checkpoint") as caught:
            from_deepspeed(source, tmp_path / "taken")
        assert f"--input_folder {tmp_path / 'plain'} --output_folder" in (caught.value.hint or "")
    gang.run(1, make_universal, str(tmp_path))
    with pytest.raises(UsageError, match="round_robin_gradients"):
        from_deepspeed(tmp_path, tmp_path / "taken")
    unsharded = tmp_path / "stage0"
    gang.run(1, deepspeed_save, Setup(0), str(unsharded), 1, 0)
    with pytest.raises(UsageError, match="stage 0"):
        from_deepspeed(unsharded, tmp_path / "taken")
    assert not (tmp_path / "taken").exists()


def test_one_rank_keeps_its_order_under_round_robin(gang: Gang, tmp_path: Path) -> None:
    setup = Setup(2, zero={"round_robin_gradients": True})
    checkpoint, expected = take(gang, setup, tmp_path, workers=1)
    losses = gang.run(2, restore_and_train, Setup(2, seed=OTHER_SEED), str(checkpoint), AFTER)[0][1]
    assert losses == pytest.approx(expected, rel=EXACT)

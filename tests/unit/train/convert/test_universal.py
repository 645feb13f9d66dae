"""DeepSpeed's universal format: what is written, what comes back, and what is refused with which words."""

import datetime
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.atomic_files import write_bytes
from orchestrator.checkpoint.format.checkpoint_manifest import MANIFEST, GroupEntry, Manifest, read_manifest
from orchestrator.checkpoint.format.intervals import Kind
from orchestrator.checkpoint.format.reader import CheckpointReader
from orchestrator.checkpoint.storage.checkpoint_catalog import verify_checkpoint
from orchestrator.domain.errors import CheckpointError, UsageError
from orchestrator.train.convert.from_deepspeed import from_deepspeed
from orchestrator.train.convert.to_deepspeed import loading_notes, to_deepspeed
from orchestrator.train.convert.universal import load_file
from tests.unit.checkpoint.written import flip_byte, write_checkpoint

pytestmark = pytest.mark.unit

WEIGHTS = {"layer.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "layer.bias": np.ones(3, dtype=np.float32)}
BUFFERS = {"seen": np.array([7, 2**60], dtype=np.int64)}
DECAYS = tuple(
    GroupEntry({"lr": 0.5, "betas": [0.9, 0.95], "weight_decay": decay, "fused": True}, 5.0) for decay in (0.1, 0.0)
)


def rewrite(directory: Path, manifest: Manifest) -> None:
    write_bytes(directory / MANIFEST, manifest.to_bytes())


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Two optimizer groups, a buffer, at step 5."""
    directory = write_checkpoint(tmp_path / "own", 5, WEIGHTS, BUFFERS, moments=True)
    manifest = read_manifest(directory)
    bias = replace(manifest.tensors["layer.bias"], group=1)
    tied = {"head.weight": "layer.weight"}
    rewrite(directory, replace(manifest, groups=DECAYS, tensors=manifest.tensors | {"layer.bias": bias}, tied=tied))
    return directory


@pytest.fixture
def given(checkpoint: Path, tmp_path: Path) -> Path:
    """The same as a universal checkpoint; the directory of its tag."""
    return to_deepspeed(checkpoint, tmp_path / "given").path


def optimizer_state(directory: Path) -> dict[str, Any]:
    value = load_file(directory / "zero" / "optimizer_state.pt")
    assert isinstance(value, dict)
    return value


def change(file: Path, **changes: Any) -> None:
    """Save a file of a universal checkpoint again with some keys changed."""
    saved = torch.load(file, weights_only=False)
    torch.save(saved | changes, file)


def test_there_and_back_nothing_is_lost(checkpoint: Path, given: Path, tmp_path: Path) -> None:
    back = from_deepspeed(given.parent, tmp_path / "back")
    assert verify_checkpoint(back.path)
    before, after = read_manifest(checkpoint), read_manifest(back.path)
    for name in ("step", "position", "world_size", "stage", "tied", "moments", "counters", "extra"):
        assert getattr(after, name) == getattr(before, name), name
    assert {n: replace(t) for n, t in after.tensors.items()} == before.tensors
    assert [g.hyperparameters["weight_decay"] for g in after.groups] == [0.1, 0.0]
    assert [g.step for g in after.groups] == [5.0, 5.0]
    with CheckpointReader(checkpoint) as one, CheckpointReader(back.path) as other:
        for name, entry in before.tensors.items():
            for kind in before.kinds(name):
                dtype = np.int64 if entry.kind is Kind.BUFFER else np.float32
                arrays = [np.empty(entry.elements, dtype) for _ in range(2)]
                for reader, array in zip((one, other), arrays, strict=True):
                    reader.read(name, kind, 0, entry.elements, array)
                assert (arrays[0] == arrays[1]).all(), (name, kind)
    assert not list((tmp_path / "back").glob(".*")), "nothing is left beside it"


def test_stage_3_is_not_told_what_differs_between_groups(given: Path) -> None:
    state = optimizer_state(given)
    # DeepSpeed gives this one to every group at stage 3.
    assert state["optimizer_state_dict"]["param_groups"] == [{"params": [0], "lr": 0.5, "betas": (0.9, 0.95)}]
    assert [group["weight_decay"] for group in state["param_groups"]] == [0.1, 0.0]
    assert not any("fused" in group for group in state["param_groups"]), "how it computes is the script's business"
    assert (given.parent / "latest_universal").read_text() == given.name == "global_step5_universal"


@pytest.mark.parametrize(("adam", "kind"), [("torch", torch.Tensor), ("deepspeed", int)])
def test_the_counter_is_of_the_type_that_adam_counts_in(
    checkpoint: Path, tmp_path: Path, adam: Any, kind: type
) -> None:
    path = to_deepspeed(checkpoint, tmp_path / "other", adam).path
    steps = load_file(path / "zero" / "layer.bias" / "step.pt"), optimizer_state(path)["optimizer_state_dict"]
    for step in (steps[0], steps[1]["state"][0]["step"]):
        assert isinstance(step, kind)
        assert step == 5


def test_notes_name_what_deepspeed_gets_wrong(checkpoint: Path, tmp_path: Path) -> None:
    manifest = read_manifest(checkpoint)
    text = "\n".join(loading_notes(manifest, "torch", tmp_path))
    for word in ("round_robin_gradients", "copy=True", "differ in weight_decay", "buffers", "first seen"):
        assert word in text
    plain = replace(manifest, groups=DECAYS[:1], tensors={"w": manifest.tensors["layer.weight"]})
    assert len(loading_notes(plain, "deepspeed", tmp_path)) == 1


def test_a_checkpoint_before_the_first_update_has_zero_moments(tmp_path: Path) -> None:
    own = write_checkpoint(tmp_path / "own", 0, WEIGHTS, moments=False)
    given = to_deepspeed(own, tmp_path / "given").path
    assert not load_file(given / "zero" / "layer.weight" / "exp_avg.pt")["param"].any()
    assert torch.equal(load_file(given / "zero" / "layer.weight" / "fp32.pt")["param"], torch.arange(12.0).view(3, 4))


def test_the_loss_scale_goes_there_and_back(checkpoint: Path, tmp_path: Path) -> None:
    learned = {"cur_scale": 4096.0, "cur_iter": 5, "last_overflow_iter": 3, "cur_hysteresis": 1}
    rewrite(checkpoint, replace(read_manifest(checkpoint), loss_scaler=learned))
    given = to_deepspeed(checkpoint, tmp_path / "given").path
    assert optimizer_state(given)["loss_scaler"].cur_scale == 4096.0
    assert read_manifest(from_deepspeed(given, tmp_path / "back").path).loss_scaler == learned


def test_a_damaged_checkpoint_is_not_given(checkpoint: Path, tmp_path: Path) -> None:
    flip_byte(checkpoint / "shard-00001.bin", 9)
    with pytest.raises(CheckpointError, match="corrupt"):
        to_deepspeed(checkpoint, tmp_path / "given")
    assert not list((tmp_path / "given").iterdir()), "nothing half written is left"


def test_a_name_that_leads_elsewhere_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    manifest = read_manifest(checkpoint)
    rewrite(checkpoint, replace(manifest, tensors={"../../out": manifest.tensors["layer.bias"]}))
    with pytest.raises(UsageError, match="cannot be the name of a directory"):
        to_deepspeed(checkpoint, tmp_path / "given")


def test_nothing_is_overwritten(checkpoint: Path, given: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists already"):
        to_deepspeed(checkpoint, tmp_path / "given")
    from_deepspeed(given, tmp_path / "back")
    with pytest.raises(UsageError, match="exists already"):
        from_deepspeed(given, tmp_path / "back")


def test_a_position_deepspeed_does_not_know_is_stated(given: Path, tmp_path: Path) -> None:
    saved = torch.load(given / "mp_rank_00_model_states.pt", weights_only=True)
    del saved["convoy"]  # as DeepSpeed writes it
    torch.save(saved, given / "mp_rank_00_model_states.pt")
    taken = from_deepspeed(given, tmp_path / "zero")
    assert read_manifest(taken.path).position == 0
    assert any("position is 0" in note and "counted 60 samples" in note for note in taken.notes)
    taken = from_deepspeed(given, tmp_path / "set", position=60)
    assert read_manifest(taken.path).position == 60
    assert not any("position is 0" in note for note in taken.notes)


def test_a_parameter_that_never_had_a_gradient_gets_zero_moments(given: Path, tmp_path: Path) -> None:
    for name in ("exp_avg.pt", "exp_avg_sq.pt", "step.pt"):
        (given / "zero" / "layer.weight" / name).unlink()
    taken = from_deepspeed(given, tmp_path / "back")
    assert any("1 parameters never had a gradient" in note for note in taken.notes)
    assert verify_checkpoint(taken.path).groups[0].step == 5.0, "the other place it is written"


# Refusals ------------------------------------------------------------------------------------------------------


def refused(given: Path, tmp_path: Path) -> UsageError:
    with pytest.raises(UsageError) as caught:
        from_deepspeed(given, tmp_path / "back")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "back").exists() or not list((tmp_path / "back").iterdir())
    return caught.value


def test_a_pickle_with_code_is_refused_by_the_name_of_what_it_would_run(given: Path, tmp_path: Path) -> None:
    file = given / "mp_rank_00_model_states.pt"
    change(file, since=datetime.timedelta(1))
    error = refused(given, tmp_path)
    assert str(file) in error.message
    assert "datetime.timedelta" in error.message
    assert "client_state" in (error.hint or "")


@pytest.mark.parametrize("content", [b"", b"not a zip file at all", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_named(given: Path, tmp_path: Path, content: bytes) -> None:
    file = given / "zero" / "layer.bias" / "exp_avg.pt"
    file.write_bytes(content)
    assert f"{file} cannot be read" in refused(given, tmp_path).message


def test_a_file_cut_short_is_named(given: Path, tmp_path: Path) -> None:
    file = given / "zero" / "layer.weight" / "fp32.pt"
    file.write_bytes(file.read_bytes()[:-40])
    assert f"{file} cannot be read" in refused(given, tmp_path).message


def test_a_missing_master_is_named(given: Path, tmp_path: Path) -> None:
    (given / "zero" / "layer.bias" / "fp32.pt").unlink()
    assert "layer.bias/fp32.pt is missing" in refused(given, tmp_path).message


def test_a_tensor_of_another_size_is_refused(given: Path, tmp_path: Path) -> None:
    torch.save({"param": torch.ones(4)}, given / "zero" / "layer.bias" / "fp32.pt")
    assert "expected 3 floating-point numbers" in refused(given, tmp_path).message


REFUSED = {
    "round robin": ({"ds_config": {"zero_optimization": {"stage": 2, "round_robin_gradients": True}}}, "round_robin"),
    "tensor parallel": ({"mp_world_size": 2}, "parallelism"),
    "experts": ({"ds_autoep_layers": [{"expert_key_prefix": "x"}]}, "parallelism"),
    "no shapes": ({"param_shapes": None}, "no usable param_shapes"),
    "no counter": ({"global_steps": None}, "no usable global_steps"),
    "a group too many": ({"param_shapes": [OrderedDict(a=torch.Size([1]))] * 3}, "no optimizer group"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_refused(given: Path, tmp_path: Path, name: str) -> None:
    changes, word = REFUSED[name]
    change(given / "mp_rank_00_model_states.pt", **changes)
    assert word in refused(given, tmp_path).message


def test_other_directories_are_told_apart(checkpoint: Path, given: Path, tmp_path: Path) -> None:
    assert "a checkpoint of Convoy already" in refused(checkpoint, tmp_path).message
    assert "not a directory" in refused(tmp_path / "none", tmp_path).message
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "neither latest_universal nor" in refused(empty, tmp_path).message
    (empty / "latest_universal").write_text("gone")
    assert "names 'gone'" in refused(empty, tmp_path).message
    torch.save({}, given / "mp_rank_01_model_states.pt")
    assert "parallelism" in refused(given, tmp_path).message


def test_missing_ranks_of_stage_3_are_noticed(given: Path, tmp_path: Path) -> None:
    (given / "mp_rank_00_model_states.pt").unlink()
    (given / "zero_pp_rank_0_mp_rank_00_model_states.pt").rename(given / "zero_pp_rank_1_mp_rank_00_model_states.pt")
    assert "lacks model states" in refused(given, tmp_path).message

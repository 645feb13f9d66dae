"""Models of which a process keeps a share: their numbers are those of the whole model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.train.models import shares
from orchestrator.train.models.architectures import ARCHITECTURES, build_model
from orchestrator.train.models.shares import Keep, construct_bare, construct_kept, is_sharded, keep_for, take_share
from orchestrator.train.models.sizing import model_size
from tests.selection import every_day
from tests.unit.train.bases import base_spec, write_base
from tests.unit.train.builders import manifest_with, spec_with
from tests.unit.train.models.test_architectures import same_but_for_weights, spec

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models would fit into what may stay in memory: each parameter is put away when another one is used."""
    monkeypatch.setattr(shares, "RESIDENT_BYTES", 0)


def joined(build: Callable[[Keep], Any], world_size: int) -> dict[str, torch.Tensor]:
    """Every parameter, put together again from the shares of all ranks."""
    ranks = [dict(build(Keep(rank, world_size, sharded=True)).named_parameters()) for rank in range(world_size)]
    shapes = {name: parameter.shape for name, parameter in ranks[0].items()}
    return {name: torch.cat([take_share(rank[name]) for rank in ranks]).view(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("architecture", every_day(sorted(ARCHITECTURES), "bert", "gpt2", "llama", "mamba"))
def test_shares_are_those_of_the_whole_model(architecture: str) -> None:
    """Whatever a parameter's size and the number of ranks, and the random state is left alone."""
    value = spec(architecture)
    whole = build_model(value, manifest_with())
    torch.manual_seed(1)
    following = torch.rand(1)
    torch.manual_seed(1)
    found = joined(lambda keep: build_model(value, manifest_with(), keep=keep), 3)
    assert torch.equal(following, torch.rand(1))
    assert found.keys() == dict(whole.named_parameters()).keys()
    for name, parameter in whole.named_parameters():
        assert torch.equal(found[name], parameter), name


@pytest.mark.parametrize("architecture", every_day(sorted(ARCHITECTURES), "bert", "gpt2", "llama", "mamba"))
def test_all_else_is_that_of_the_whole_model(architecture: str) -> None:
    """Shapes, names, ties, buffers: before the parameters are partitioned they look whole."""
    value = spec(architecture)
    whole = build_model(value, manifest_with())
    kept = build_model(value, manifest_with(), keep=Keep(1, 2, sharded=True))
    assert is_sharded(kept)
    assert not is_sharded(whole)
    assert str(kept) == str(whole)
    assert model_size(kept) == model_size(whole)
    every = [dict(model.named_parameters(remove_duplicate=False)) for model in (whole, kept)]
    assert [(name, p.shape, p.dtype, p.requires_grad) for name, p in every[0].items()] == [
        (name, p.shape, p.dtype, p.requires_grad) for name, p in every[1].items()
    ]
    assert len(set(every[0].values())) == len(set(every[1].values()))
    assert [vars(p) for p in every[0].values()] == [
        {key: value for key, value in vars(p).items() if key != shares._SHARE} for p in every[1].values()
    ]
    for (name, buffer), (other, found) in zip(whole.named_buffers(), kept.named_buffers(), strict=True):
        assert name == other
        assert torch.equal(buffer, found), name
    for parameter in every[1].values():
        assert parameter.untyped_storage().nbytes() == 4
        assert parameter.isnan().all()  # whoever uses it before it is partitioned


@pytest.mark.parametrize("architecture", ["gpt2", "mamba"])
def test_a_device_gets_the_whole_model_in_its_precision(architecture: str) -> None:
    """At stages 0 to 2: bit for bit what casting the whole model gives."""
    value = spec(architecture)
    whole = build_model(value, manifest_with()).to(torch.bfloat16)
    kept = build_model(value, manifest_with(), keep=Keep(dtype=torch.bfloat16))
    for (name, parameter), (_, found) in zip(whole.named_parameters(), kept.named_parameters(), strict=True):
        assert (found.dtype, found.requires_grad) == (torch.bfloat16, parameter.requires_grad)
        assert torch.equal(parameter, found), name
    bare = build_model(value, manifest_with(), restored=True, keep=Keep(dtype=torch.bfloat16))
    assert all(p.isnan().all() and p.dtype is torch.bfloat16 for p in bare.parameters())


def test_a_restore_gets_nothing_but_nan() -> None:
    drawn = build_model(spec("llama"), manifest_with())
    bare = build_model(spec("llama"), manifest_with(), restored=True, keep=Keep())
    same_but_for_weights(drawn, bare)
    found = joined(lambda keep: build_model(spec("llama"), manifest_with(), restored=True, keep=keep), 4)
    assert all(value.isnan().all() for value in found.values())


def test_a_restored_pretrained_model_is_set_up_as_a_loaded_one(tmp_path: Path) -> None:
    write_base(tmp_path)
    value = base_spec(tmp_path)
    loaded = build_model(value, manifest_with(), keep=Keep())
    same_but_for_weights(loaded, build_model(value, manifest_with(), restored=True))
    same_but_for_weights(loaded, build_model(value, manifest_with(), restored=True, keep=Keep()))


class Counting(nn.Module):
    """Parameters that are only allocated, and how many of them have memory afterwards."""

    def __init__(self) -> None:
        super().__init__()
        for number in range(10):
            self.register_parameter(f"part{number}", nn.Parameter(torch.empty(8, 8)))
        self.resident = sum(part.untyped_storage().nbytes() > 0 for part in self.parameters())


def test_parameters_that_nothing_initialises_are_put_away_too() -> None:
    assert Counting().resident == 10
    bare: Any = construct_bare(Counting)
    assert bare.resident <= 2


class Careless(nn.Module):
    """Changes a part of a parameter that it wrote long ago."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        with torch.no_grad():
            self.first.weight[0].zero_()


def test_a_value_that_is_gone_is_not_replaced_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    whole = Careless()
    with pytest.raises(RuntimeError, match=r"first\.weight needs values that are no longer in memory"):
        construct_kept(Careless, Keep())
    monkeypatch.setattr(shares, "RESIDENT_BYTES", 1 << 20)
    torch.manual_seed(3)
    found = construct_kept(Careless, Keep())
    assert torch.equal(whole.first.weight, found.first.weight)  # type: ignore[union-attr, arg-type]


def test_hooks_are_gone_afterwards_whatever_happens() -> None:
    def fail() -> nn.Module:
        nn.Linear(2, 2)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        construct_kept(fail, Keep())
    assert nn.Linear(2, 2).weight.untyped_storage().nbytes() == 16
    assert torch.nn.modules.module._global_parameter_registration_hooks == {}


def test_what_is_kept_follows_from_stage_and_device() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)

    def keep(device: torch.device, zero: dict[str, Any], precision: str = "bf16") -> Keep | None:
        return keep_for(spec_with(train={"precision": precision}, zero=zero), 1, 4, device)

    assert keep(cpu, {"stage": 3}) == keep(cuda, {"stage": 3}) == Keep(1, 4, torch.bfloat16, sharded=True)
    assert keep(cpu, {"stage": 2}, "fp32") is None
    assert keep(cpu, {"stage": 2}) == Keep(0, 1, torch.bfloat16, cpu)
    assert keep(cuda, {"stage": 2}) == Keep(0, 1, torch.bfloat16, cuda)
    assert keep(cuda, {"stage": 0}, "fp32") == Keep(0, 1, torch.float32, cuda)
    for key, value in {"zero_hpz_partition_size": 2, "zero_quantized_weights": True}.items():
        passed = {"stage": 3, "deepspeed": {"zero_optimization": {key: value}}}
        assert keep(cpu, passed, "fp32") is None
        assert keep(cuda, passed) == Keep(0, 1, torch.bfloat16, cuda)


@pytest.mark.parametrize("elements", [0, 1, 5, 12, 13])
def test_parts_cover_every_element_once(elements: int) -> None:
    parts = [Keep(rank, 4).part(elements) for rank in range(4)]
    assert [index for part in parts for index in range(part.start, part.end)] == list(range(elements))

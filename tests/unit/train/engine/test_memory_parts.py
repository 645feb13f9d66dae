"""Sizes of the tensors of an engine, by what they are for."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.train.engine import memory_parts
from orchestrator.train.engine.memory_parts import MemoryProbe

pytestmark = pytest.mark.unit


def context(module: nn.Module, optimizer: object) -> Any:
    engine = SimpleNamespace(module=module, optimizer=optimizer, device=torch.device("cpu"))
    return SimpleNamespace(engine=engine, device=engine.device, check_interrupted=lambda: None)


def measured(monkeypatch: pytest.MonkeyPatch, of: Any, other_rank: dict[str, int] | None = None) -> dict[str, int]:
    monkeypatch.setattr(memory_parts, "exchange_json", lambda own: [own, *([other_rank] if other_rank else [])])
    monkeypatch.setattr(memory_parts, "predicted_parts", lambda context, workers: {"workers": workers})
    probe = MemoryProbe(of)
    probe.begin()
    probe.at_update()
    found = probe.finish()
    assert found.predicted == {"workers": 2 if other_rank else 1}
    return found.measured


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A layer of 12 weights and 3 biases after an update: in fp32, moments and gradients have as many."""
    layer = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return layer, optimizer


def test_stage_0_has_no_masters_and_two_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, optimizer = trained()
    found = measured(monkeypatch, context(layer, optimizer))
    steps = 2 * 4
    assert found == {"parameters": 60, "gradients": 60, "optimizer": 120 + steps}


def test_masters_count_once_and_views_not_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As DeepSpeed's stages 1 and 2: parameters are views of one flat tensor, masters are another, and what is added
    up lies in lists."""
    layer, _ = trained()
    layer.zero_grad()
    flat = torch.zeros(16, dtype=torch.float32)  # padded
    layer.weight.data, layer.bias.data = flat[:12].view(3, 4), flat[12:15]
    master = nn.Parameter(torch.zeros(8))
    inner = torch.optim.AdamW([master])
    master.grad = torch.zeros(8)
    inner.step()
    added_up = torch.zeros(10)
    wrapper = SimpleNamespace(optimizer=inner, averaged_gradients={0: [added_up[:5], added_up[5:]], 1: None})
    found = measured(monkeypatch, context(layer, wrapper))
    assert found == {"parameters": 64, "gradients": 40, "optimizer": 32 + 2 * 32 + 4}


def test_a_partition_of_stage_3_is_what_a_rank_has(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, optimizer = trained()
    for parameter in layer.parameters():
        share = SimpleNamespace(data=torch.zeros(4), ds_numel=4)
        for name, value in {"ds_id": 0, "ds_numel": 15, "ds_tensor": share}.items():
            setattr(parameter, name, value)
    found = measured(monkeypatch, context(layer, optimizer))
    assert found["parameters"] == 2 * 16


def test_the_rank_that_has_most_counts_and_what_one_does_not_know_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, optimizer = trained()
    other = {"parameters": 10, "gradients": 1000, "optimizer": 10, "activations": 5}
    found = measured(monkeypatch, context(layer, optimizer), other)
    assert found == {"parameters": 60, "gradients": 1000, "optimizer": 128}


def test_what_is_elsewhere_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, optimizer = trained()
    of = context(layer, SimpleNamespace(optimizer=optimizer, averaged_gradients=[torch.zeros(9, device="meta")]))
    assert measured(monkeypatch, of)["gradients"] == 60

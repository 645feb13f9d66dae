"""Tiny pretrained models on disk, in the shapes that people have them in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from orchestrator.spec.job import JobSpec
from orchestrator.train.models.architectures import build_model
from tests.unit.train.builders import manifest_with, spec_with

ROPE = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 2, "n_embd": 8, "n_head": 2},
    "gpt_neo": {"num_layers": 2, "hidden_size": 8, "num_heads": 2, "window_size": 4},
    "llama": ROPE,
    "mistral": ROPE,
    "qwen2": ROPE,
    "qwen3": ROPE | {"head_dim": 4},
    "bert": {k: v for k, v in ROPE.items() if k != "num_key_value_heads"},
    "rwkv": {"hidden_size": 8, "num_hidden_layers": 2},
    "mamba": {"hidden_size": 8, "num_hidden_layers": 2, "state_size": 4},
}
FILE = "model.safetensors"
Tensors = dict[str, torch.Tensor]
Rewrite = Callable[[Tensors], Tensors]


def fresh_spec(architecture: str, **config: Any) -> JobSpec:
    return spec_with({"architecture": architecture, "config": CONFIGS[architecture] | config})


def base_spec(directory: Path) -> JobSpec:
    value = fresh_spec("gpt2")
    model = value.model.model_copy(update={"architecture": None, "config": {}, "pretrained": str(directory)})
    return value.model_copy(update={"model": model})


def write_base(directory: Path, architecture: str = "llama", dtype: torch.dtype | None = None, **config: Any) -> Any:
    """A model whose weights all differ from what would be drawn; `save_pretrained` as transformers has it."""
    model: Any = build_model(fresh_spec(architecture, **config), manifest_with()).eval()
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws) * 0.02)
    if dtype is not None:
        model.to(dtype)
    model.save_pretrained(directory)
    return model


def rewrite(directory: Path, change: Rewrite) -> None:
    """Other tensors in the file."""
    save_file(
        {name: tensor.contiguous() for name, tensor in change(load_file(directory / FILE)).items()}, directory / FILE
    )


def set_config(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def as_torch_file(directory: Path) -> None:
    torch.save(load_file(directory / FILE), directory / "pytorch_model.bin")
    (directory / FILE).unlink()


def as_torch_shards(directory: Path, lost: str = "") -> None:
    """Two files of torch.save with an index that also lists the tensor `lost`."""
    tensors = load_file(directory / FILE)
    (directory / FILE).unlink()
    names, listed = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: tensors[name] for name in part if name != lost}, directory / file)
        listed |= dict.fromkeys(part, file)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))

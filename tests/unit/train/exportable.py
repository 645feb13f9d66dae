"""What an export needs: a job, prepared data, and a checkpoint of a model whose weights are all off their start."""

import json
from pathlib import Path
from typing import Any

import torch

from orchestrator.data.data_manifest import FORMAT_VERSION, MANIFEST_FILE, DataManifest
from orchestrator.data.tokens import tokenizer as tokenizers
from orchestrator.spec.job import JobSpec
from orchestrator.spec.model import TokenizerTrainSpec
from orchestrator.train.models.architectures import build_model
from tests.unit.checkpoint.written import write_checkpoint

TEXT = "def add(a, b):\n    return a + b\n\n\nfor i in range(10):\n    print(add(i, i))\n"
ROPE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 2, "n_embd": 16, "n_head": 2},
    "gpt_neo": {"num_layers": 2, "hidden_size": 16, "num_heads": 2, "window_size": 8},
    "llama": ROPE,
    "mistral": ROPE,
    "qwen2": {**ROPE, "tie_word_embeddings": True},
    "qwen3": {**ROPE, "head_dim": 8},
    "bert": {k: v for k, v in ROPE.items() if k != "num_key_value_heads"},
    "rwkv": {"hidden_size": 16, "num_hidden_layers": 2, "attention_hidden_size": 16},
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
}


def job(architecture: str, **config: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "export",
            "model": {"architecture": architecture, "config": {**CONFIGS[architecture], **config}},
            "tokenizer": {"train": {"vocab_size": 300}},
            "data": {"sources": [{"files": ["*.txt"]}], "sequence_length": 32},
            "train": {"steps": 1, "global_batch": 4, "lr": 1e-3},
        }
    )


def prepared_data(directory: Path) -> Path:
    """Prepared data as far as an export needs it: tokenizer and manifest."""
    trained = tokenizers.train([TEXT * 20], TokenizerTrainSpec(vocab_size=300))
    trained.save(directory / "tokenizer")
    numbers = dict.fromkeys(
        ("train_samples", "validation_samples", "validation_samples_total", "train_tokens", "validation_tokens"), 1
    )
    manifest = DataManifest(
        format_version=FORMAT_VERSION,
        fingerprint="f",
        tokens_fingerprint="t",
        sequence_length=32,
        packing=True,
        seed=0,
        dtype=trained.dtype,
        vocab_size=trained.vocab_size,
        eos_id=trained.eos_id,
        pad_id=trained.pad_id,
        mask_id=trained.mask_id,
        documents=1,
        bad_records=0,
        sources=(),
        **numbers,
    )
    (directory / MANIFEST_FILE).write_text(json.dumps(manifest.to_json()))
    return directory


def checkpoint(spec: JobSpec, data_dir: Path, parent: Path, step: int = 7) -> tuple[Any, Path]:
    """A model whose every weight was moved off its start, and a checkpoint of it by three ranks."""
    model = build_model(spec, DataManifest.read(data_dir)).eval()
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws) * 0.02)
    masters = {name: p.detach().numpy() for name, p in model.named_parameters()}
    persistent = model.state_dict(keep_vars=True)
    buffers = {name: b.numpy() for name, b in model.named_buffers() if name in persistent}
    return model, write_checkpoint(parent, step, masters, buffers, world_size=3, moments=True)

"""Specs, manifests and samples for tests of the engine's pure parts."""

import json
from typing import Any

import numpy as np

from orchestrator.data.data_manifest import FORMAT_VERSION, DataManifest
from orchestrator.data.samples.dataset import Samples
from orchestrator.spec.job import JobSpec


def spec_with(
    model: dict[str, Any] | None = None, train: dict[str, Any] | None = None, zero: dict[str, Any] | None = None
) -> JobSpec:
    value = {
        "name": "test",
        "model": model or {"architecture": "gpt2", "config": {"n_layer": 2, "n_embd": 32, "n_head": 2}},
        "tokenizer": {"train": {"vocab_size": 300}},
        "data": {"sources": [{"files": ["*.txt"]}], "sequence_length": 16},
        "train": {"steps": 10, "global_batch": 12, "lr": 1e-3, **(train or {})},
        "zero": zero or {},
    }
    return JobSpec.model_validate_json(json.dumps(value))


def manifest_with(**fields: Any) -> DataManifest:
    defaults: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "fingerprint": "f",
        "tokens_fingerprint": "t",
        "sequence_length": 16,
        "packing": False,
        "seed": 0,
        "dtype": "uint16",
        "vocab_size": 300,
        "eos_id": 0,
        "pad_id": 1,
        "mask_id": 2,
        "train_samples": 100,
        "validation_samples": 10,
        "validation_samples_total": 10,
        "train_tokens": 1600,
        "validation_tokens": 160,
        "documents": 100,
        "bad_records": 0,
        "sources": (),
    }
    return DataManifest(**(defaults | fields))


def samples_of(*rows: list[int], width: int = 16, pad_id: int = 1, epoch: int = 0, first_id: int = 0) -> Samples:
    """Samples with these tokens, padded to `width`."""
    tokens = np.full((len(rows), width), pad_id, dtype=np.int32)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
    return Samples(
        ids=np.arange(first_id, first_id + len(rows), dtype=np.int64),
        epochs=np.full(len(rows), epoch, dtype=np.int64),
        tokens=tokens,
        lengths=np.array([len(row) for row in rows], dtype=np.int64),
    )

"""Model directories written by hand: no torch, no transformers."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAMES = ("model.embed_tokens.weight", "model.layers.0.mlp.weight", "model.layers.1.mlp.weight", "lm_head.weight")
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"7" * 64 + b"\nsize 139264\n"


def header_of(shapes: Mapping[str, tuple[int, ...]], dtype: str = "F32", item_bytes: int = 4) -> dict[str, Any]:
    """A header of tensors one after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        size = item_bytes
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    return header


def file_of(header: dict[str, Any] | bytes, data_bytes: int | None = None) -> bytes:
    """A safetensors file; as much data as the header says, unless told otherwise."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    if data_bytes is None:
        assert isinstance(header, dict)
        data_bytes = max((e["data_offsets"][1] for n, e in header.items() if n != "__metadata__"), default=0)
    return struct.pack("<Q", len(text)) + text + b"\1" * data_bytes


def tensors(*names: str) -> bytes:
    """A file with small tensors of these names."""
    return file_of(header_of(dict.fromkeys(names, (2, 2))))


def write_model(directory: Path, names: tuple[str, ...] = NAMES) -> Path:
    """A directory with `config.json` and one file."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 300}))
    (directory / "model.safetensors").write_bytes(tensors(*names))
    return directory


def write_sharded(directory: Path) -> Path:
    """The same in two shards with an index."""
    write_model(directory)
    (directory / "model.safetensors").unlink()
    listed = {}
    for number, names in enumerate((NAMES[:2], NAMES[2:]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        (directory / file).write_bytes(tensors(*names))
        listed |= dict.fromkeys(names, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    return directory

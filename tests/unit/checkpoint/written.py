"""Checkpoints for tests, in the real format, cut over any number of ranks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.atomic_files import write_bytes
from orchestrator.checkpoint.format.checkpoint_manifest import MANIFEST, GroupEntry, Manifest, ShardEntry, TensorEntry
from orchestrator.checkpoint.format.intervals import MOMENTS, Kind, even_slice
from orchestrator.checkpoint.format.shard import CHUNK_BYTES, ShardIndex, ShardPiece, ShardWriter, digest
from orchestrator.checkpoint.storage.checkpoint_catalog import directory_name

Arrays = Mapping[str, NDArray[Any]]


def write_checkpoint(
    parent: Path,
    step: int,
    masters: Arrays,
    buffers: Arrays | None = None,
    world_size: int = 2,
    moments: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
) -> Path:
    """Masters are cut evenly over the ranks; moments are 10 and 100 times them. Buffers are rank 0's."""
    directory = parent / directory_name(step)
    directory.mkdir(parents=True)
    kinds = (Kind.MASTER, *MOMENTS) if moments else (Kind.MASTER,)
    factors = dict(zip(kinds, (1, 10, 100), strict=False))
    shards = []
    for rank in range(world_size):
        with ShardWriter(directory / f"shard-{rank:05d}.bin", rank, chunk_bytes) as writer:
            for kind in kinds:
                for name, values in masters.items():
                    part = even_slice(values.size, rank, world_size)
                    data = values.reshape(-1)[part.start : part.end] * np.float32(factors[kind])
                    writer.write(ShardPiece(name, kind, part.start, "float32", data))
            for name, values in (buffers or {}).items() if rank == 0 else ():
                writer.write(ShardPiece(name, Kind.BUFFER, 0, str(values.dtype), values.reshape(-1)))
            index = writer.finish({})
        shards.append(_entry(directory, rank, index))
    tensors = {n: TensorEntry(v.shape, "float32", Kind.MASTER, 0) for n, v in masters.items()}
    tensors |= {n: TensorEntry(v.shape, str(v.dtype), Kind.BUFFER) for n, v in (buffers or {}).items()}
    manifest = Manifest(
        step=step,
        position=step * 12,
        world_size=world_size,
        stage=1,
        optimizer="DeepSpeedZeroOptimizer",
        tensors=tensors,
        tied={},
        moments=moments,
        groups=(GroupEntry({"lr": 1e-3, "betas": [0.9, 0.95]}, float(step)),),
        shards=tuple(shards),
        counters={"global_steps": step, "global_samples": step * 12, "skipped_steps": 0},
    )
    write_bytes(directory / MANIFEST, manifest.to_bytes())
    return directory


def _entry(directory: Path, rank: int, index: ShardIndex) -> ShardEntry:
    name = f"shard-{rank:05d}.json"
    write_bytes(directory / name, index.to_bytes())
    return ShardEntry(f"shard-{rank:05d}.bin", name, index.size_bytes, digest(index.to_bytes()))


def flip_byte(path: Path, offset: int) -> None:
    """Damage one byte of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))

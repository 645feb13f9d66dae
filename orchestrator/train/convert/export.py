"""A trained model as Hugging Face files, straight from a checkpoint's intervals: no engine, no process group.

Weights are read and written a file at a time, so memory holds one output file's worth of them, whatever number of
workers wrote the checkpoint.
"""

import json
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from safetensors.torch import save_file

from orchestrator.atomic_files import replace_directory
from orchestrator.checkpoint.format.checkpoint_manifest import Manifest
from orchestrator.checkpoint.format.exported import PROVENANCE, exported_step, provenance
from orchestrator.checkpoint.format.intervals import Kind
from orchestrator.checkpoint.format.reader import CheckpointReader
from orchestrator.data.data_manifest import TOKENIZER_DIRECTORY, DataManifest
from orchestrator.domain.errors import CheckpointError, DataError, UsageError
from orchestrator.domain.tick import Tick, no_tick
from orchestrator.spec.job import JobSpec
from orchestrator.train.models.architectures import model_config, objective_of, skeleton

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Exported", "check_destination", "export_model", "exported_step"]
Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

WEIGHTS = "model.safetensors"
MAX_FILE_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Exported:
    """What was written. `size_bytes` is that of the weights; tied weights count once in `parameters`."""

    path: Path
    step: int
    parameters: int
    size_bytes: int
    seconds: float


def export_model(
    checkpoint: Path | str,
    spec: JobSpec,
    data_dir: Path,
    dest: Path,
    dtype: Precision = "fp32",
    force: bool = False,
    max_file_bytes: int = MAX_FILE_BYTES,
    tick: Tick = no_tick,
) -> Exported:
    """Write weights, config, generation config and tokenizer to `dest`, which appears only when it is complete.
    `checkpoint` is a directory or URL. `tick`: called after each chunk that is read and each file that is written.

    `transformers` loads it with `AutoModelForCausalLM` (`AutoModelForMaskedLM` for BERT). Masters are exported in
    `dtype`, frozen parameters too. Raises UsageError if `dest` holds something (`force` replaces an earlier export,
    never anything else), CheckpointError if the checkpoint is damaged or of another model, DataError if the prepared
    data is gone.
    """
    started = time.perf_counter()
    check_destination(dest, force)
    data = DataManifest.read(data_dir)
    config = model_config(spec, data)
    work = dest.absolute().parent / f".{dest.name}.{secrets.token_hex(4)}.tmp"
    work.mkdir(parents=True)
    try:
        with CheckpointReader(checkpoint, tick=tick) as reader:
            manifest = reader.manifest
            model = skeleton(config)
            names = _names_to_write(model, manifest)
            files = _files(manifest, names, DTYPES[dtype], max_file_bytes)
            size_bytes = _write_weights(work, files, reader, dtype, tick)
        _write_config(work, model, data, DTYPES[dtype])
        _copy_tokenizer(data_dir, work)
        parameters = sum(manifest.tensors[n].elements for n in names if manifest.tensors[n].kind is not Kind.BUFFER)
        facts = {"step": manifest.step, "dtype": dtype, "parameters": parameters, "versions": manifest.versions}
        (work / PROVENANCE).write_text(provenance(work, facts))
        replace_directory(work, dest.absolute())
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Exported(dest, manifest.step, parameters, size_bytes, time.perf_counter() - started)


def check_destination(dest: Path, force: bool) -> None:
    """Raise UsageError unless an export may be written to `dest`."""
    if not dest.exists():
        return
    if not dest.is_dir():
        raise UsageError(f"{dest} is a file", hint="name a directory that does not exist yet")
    if not any(dest.iterdir()):
        return
    is_export = (dest / PROVENANCE).is_file()
    if not force:
        hint = "--force replaces the existing export" if is_export else "name a directory that does not exist yet"
        raise UsageError(f"{dest} is not empty", hint=hint)
    if not is_export:
        raise UsageError(
            f"{dest} contains something other than an export of Convoy (no {PROVENANCE}), so it is not replaced",
            hint="name a directory that does not exist yet",
        )


def _names_to_write(model: "PreTrainedModel", manifest: Manifest) -> list[str]:
    """Parameters and persistent buffers, tied ones once, in the model's order.

    Raises CheckpointError if the model and the checkpoint do not have the same tensors of the same shapes.
    """
    first_names: dict[int, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if first_names.setdefault(id(tensor), name) == name:
            shapes[name] = tuple(tensor.shape)
    saved = {name: entry.shape for name, entry in manifest.tensors.items()}
    differences = [
        f"{name}: saved {saved.get(name, 'nothing')}, expected {shapes.get(name, 'nothing')}"
        for name in [*shapes, *(n for n in saved if n not in shapes)]
        if saved.get(name) != shapes.get(name)
    ]
    if differences:
        raise CheckpointError(
            f"the checkpoint is not of the model that the spec describes; {len(differences)} tensors differ, first "
            + "; ".join(differences[:3]),
            hint="the job file or the prepared data changed after the checkpoint was written",
        )
    return list(shapes)


def _files(manifest: Manifest, names: list[str], dtype: torch.dtype, max_file_bytes: int) -> list[list[str]]:
    """The tensors of each output file, in order; a file exceeds the limit only if one tensor does."""
    files: list[list[str]] = [[]]
    filled = 0
    for name in names:
        size = manifest.tensors[name].elements * dtype.itemsize
        if files[-1] and filled + size > max_file_bytes:
            files.append([])
            filled = 0
        files[-1].append(name)
        filled += size
    return files


def _write_weights(work: Path, files: list[list[str]], reader: CheckpointReader, dtype: Precision, tick: Tick) -> int:
    """Bytes of all tensors. One file's tensors are in memory at a time."""
    weight_map: dict[str, str] = {}
    total = 0
    for number, names in enumerate(files, start=1):
        file = WEIGHTS if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors = dict(_read_tensors(reader, names, DTYPES[dtype]))
        save_file(tensors, work / file, metadata={"format": "pt"})
        tick()
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        weight_map |= dict.fromkeys(names, file)
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (work / f"{WEIGHTS}.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return total


def _read_tensors(reader: CheckpointReader, names: list[str], dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    for name in names:
        entry = reader.manifest.tensors[name]
        floating = entry.dtype.startswith(("float", "bfloat"))
        array = np.empty(entry.elements, dtype=np.float32 if floating else np.dtype(entry.dtype))
        reader.read(name, entry.kind, 0, entry.elements, array)
        tensor = torch.from_numpy(array).view(entry.shape)
        yield name, tensor.to(dtype) if floating else tensor


def _write_config(work: Path, model: "PreTrainedModel", data: DataManifest, dtype: torch.dtype) -> None:
    config = model.config
    config.architectures = [type(model).__name__]
    config.dtype = dtype
    if hasattr(config, "use_cache"):
        config.use_cache = True  # off while training
    config.save_pretrained(work)
    if objective_of(config) == "causal":
        from transformers import GenerationConfig

        GenerationConfig(
            bos_token_id=data.eos_id, eos_token_id=data.eos_id, pad_token_id=data.pad_id, do_sample=True
        ).save_pretrained(work)


def _copy_tokenizer(data_dir: Path, work: Path) -> None:
    source = data_dir / TOKENIZER_DIRECTORY
    if not source.is_dir():
        raise DataError(f"{source} is gone", hint="prepare the data again: convoy data prepare JOB")
    for file in sorted(source.iterdir()):
        if file.is_file():
            shutil.copyfile(file, work / file.name)

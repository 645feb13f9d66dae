"""A universal checkpoint of DeepSpeed as a checkpoint of Convoy, which restores at any number of workers and stage."""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from orchestrator.atomic_files import sync_path, write_bytes
from orchestrator.checkpoint.format.checkpoint_manifest import (
    MANIFEST,
    GroupEntry,
    Manifest,
    ShardEntry,
    TensorEntry,
)
from orchestrator.checkpoint.format.intervals import MOMENTS, Kind
from orchestrator.checkpoint.format.reader import CheckpointReader
from orchestrator.checkpoint.format.shard import ShardPiece, ShardWriter, digest, shard_stem
from orchestrator.checkpoint.storage.checkpoint_catalog import directory_name
from orchestrator.domain.errors import CheckpointError, UsageError
from orchestrator.json_values import JsonObject
from orchestrator.train.convert.universal import (
    CONVOY_KEY,
    STEP_FILE,
    TENSOR_FILES,
    Converted,
    UniversalDirectory,
    load_file,
    locate,
)
from orchestrator.train.zero.zero_layout import dtype_name
from orchestrator.train.zero.zero_restore import HYPERPARAMETERS
from orchestrator.train.zero.zero_state import LOSS_SCALE_FIELDS, plain_value, to_storage

_SHARD = shard_stem(0)


@dataclass(frozen=True)
class _Saved:
    """What is small in a universal checkpoint, checked for its form."""

    directory: UniversalDirectory
    model: Mapping[str, object]
    optimizer: Mapping[str, object]
    stage: int
    groups: tuple[Mapping[str, object], ...]
    """Hyperparameters."""
    trained: dict[str, tuple[tuple[int, ...], int]]
    """Shape and group of each parameter that is trained."""

    @property
    def convoy(self) -> Mapping[str, object]:
        """What Convoy added if it wrote the checkpoint itself."""
        return _section(self.model, CONVOY_KEY)


def from_deepspeed(source: Path, dest: Path, position: int | None = None) -> Converted:
    """Write the universal checkpoint at `source` to `dest`/step-<N>, N being its number of steps.

    `position` is the first sample of the next step in Convoy's order; DeepSpeed does not record it, and by default
    it is 0, with a note. Memory: what is small; tensors are mapped. Raises UsageError if `source` is no universal
    checkpoint that can be trusted to mean what it says, or `dest` has that step already; CheckpointError if `dest`
    cannot be written.
    """
    started_s = time.perf_counter()
    saved = _read(locate(source))
    step = _count(saved, "global_steps")
    final = dest / directory_name(step)
    if final.exists():
        raise UsageError(f"{final} exists already", hint="remove it, or name another directory")
    work = dest / f".{final.name}.tmp"  # what a kill leaves is cleared away as that of a save is
    shutil.rmtree(work, ignore_errors=True)
    notes = _notes(saved, position)
    try:
        work.mkdir(parents=True)
        tensors, filled = _write_shard(saved, work)
        manifest = _manifest(saved, step, position, tensors, _shard_entry(work))
        write_bytes(work / MANIFEST, manifest.to_bytes())
        with CheckpointReader(work) as reader:
            reader.require_whole()
        sync_path(work)
        work.rename(final)
        sync_path(dest)
    except OSError as error:
        raise CheckpointError(f"{dest} cannot be written: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if filled:
        notes.append(f"{len(filled)} parameters never had a gradient: their moments are 0 (first {filled[0]})")
    elements = sum(entry.elements for entry in tensors.values() if entry.kind is Kind.MASTER)
    seconds = time.perf_counter() - started_s
    return Converted(final, step, elements, manifest.size_bytes, seconds, tuple(notes))


def _notes(saved: _Saved, position: int | None) -> list[str]:
    decays = ", ".join(str(group.get("weight_decay")) for group in saved.groups)
    notes = [
        f"{len(saved.groups)} optimizer groups with weight decay {decays}: a job resumes from it only if it groups "
        "the same parameters (Convoy: matrices, then the rest)"
    ]
    if position is None and "position" not in saved.convoy:
        seen = saved.model.get("global_samples")
        notes.append(
            "DeepSpeed does not record where in the data training was; position is 0: a run that resumes from it "
            "begins with the first sample, and may see samples again that it was trained on. DeepSpeed counted "
            f"{seen} samples; --position sets another"
        )
    return notes


# Reading what is small ----------------------------------------------------------------------------------------


def _read(directory: UniversalDirectory) -> _Saved:
    model, optimizer = _load_dict(directory.model_files[0]), _load_dict(directory.optimizer_file)
    _refuse_unsafe(model, directory)
    stage = _whole(optimizer, "zero_stage", 1)  # BF16_Optimizer does not say; it is stage 1
    groups = _list(optimizer, "param_groups", directory.optimizer_file)
    trained: dict[str, tuple[tuple[int, ...], int]] = {}
    for index, shapes in enumerate(_list(model, "param_shapes", directory.model_files[0])):
        group = _group_of(index, groups, stage, directory.optimizer_file)
        for name, shape in shapes.items():
            trained[name] = (_shape(shape, directory.model_files[0]), group)
    return _Saved(directory, model, optimizer, stage, tuple(groups), trained)


def _load_dict(file: Path) -> Mapping[str, object]:
    value = load_file(file)
    if not isinstance(value, dict):
        raise UsageError(f"{file} holds a {type(value).__name__}, expected a dict, as DeepSpeed writes")
    return value


def _section(mapping: Mapping[str, object], key: str) -> Mapping[str, object]:
    """The dict under a key; an empty one if there is none."""
    value = mapping.get(key)
    return value if isinstance(value, dict) else {}


def _sequence(mapping: Mapping[str, object], key: str) -> Sequence[object]:
    """The list under a key; an empty one if there is none."""
    value = mapping.get(key)
    return value if isinstance(value, list | tuple) else ()


def _whole(mapping: Mapping[str, object], key: str, default: int) -> int:
    """The whole number under a key, also as a member of an enumeration; `default` if there is none, or 0."""
    value = mapping.get(key)
    return int(value) if isinstance(value, int) else default


def _shape(value: object, file: Path) -> tuple[int, ...]:
    if not isinstance(value, tuple | list):
        raise UsageError(f"{file}: the shape of a parameter is a {type(value).__name__}, expected a list of numbers")
    return tuple(int(size) for size in value)


def _refuse_unsafe(model: Mapping[str, object], directory: UniversalDirectory) -> None:
    """Refuse what cannot be converted, or what DeepSpeed itself wrote wrongly."""
    file = directory.model_files[0]
    if model.get("mp_world_size", 1) != 1 or model.get("ds_autoep_layers") or model.get("autoep_layers"):
        raise UsageError(
            f"{file}: saved under tensor, pipeline or expert parallelism",
            hint="only checkpoints of plain data parallelism, ZeRO stages 1 to 3, can be converted",
        )
    config = model.get("ds_config")
    zero = config.get("zero_optimization") if isinstance(config, dict) else None
    round_robin = isinstance(zero, dict) and bool(zero.get("round_robin_gradients")) and zero.get("stage") != 3
    # Alone, a rank keeps its parameters in order.
    if round_robin and model.get("dp_world_size") != 1:
        raise UsageError(
            f"{file}: saved with zero_optimization.round_robin_gradients: DeepSpeed then writes to each parameter's "
            "files what belongs to others",
            hint="load the plain checkpoint at the same number of ranks with it still on, save the weights from the "
            "model, and start from those; the optimizer's state cannot be told apart",
        )


def _list(mapping: Mapping[str, object], key: str, file: Path) -> list[Mapping[str, object]]:
    value = mapping.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(entry, dict) for entry in value):
        raise UsageError(
            f"{file} has no usable {key}: expected a list of dicts, as ds_to_universal.py of DeepSpeed 0.19 leaves it",
            hint="it may be of another version; convert the plain checkpoint again with DeepSpeed 0.19",
        )
    return value


def _group_of(index: int, groups: Sequence[Mapping[str, object]], stage: int, file: Path) -> int:
    """The optimizer group of the parameters listed at `index`: from stage 3 that is a sub-group."""
    if stage == 3:
        found = next((i for i, group in enumerate(groups) if index in _sequence(group, "params")), None)
    else:
        found = index if index < len(groups) else None
    if found is None:
        raise UsageError(f"{file}: no optimizer group for the parameters of group {index}")
    return found


def _count(saved: _Saved, key: str) -> int:
    value = saved.model.get(key)
    if not isinstance(value, int):
        raise UsageError(f"{saved.directory.model_files[0]} has no usable {key}: {value!r}, expected a whole number")
    return value


# Tensors ------------------------------------------------------------------------------------------------------


def _write_shard(saved: _Saved, work: Path) -> tuple[dict[str, TensorEntry], list[str]]:
    """Write all tensors as the shard of one rank; also which parameters had no moments."""
    tensors: dict[str, TensorEntry] = {}
    filled = []
    with ShardWriter(work / f"{_SHARD}.bin", 0) as writer:
        for name, (shape, group) in saved.trained.items():
            tensors[name] = TensorEntry(shape, _model_dtype(saved, name), Kind.MASTER, group)
            for kind in TENSOR_FILES:
                tensor = _state(saved, name, kind, tensors[name].elements)
                if tensor is None:
                    tensor = torch.zeros(tensors[name].elements)
                    filled.append(name)
                writer.write(ShardPiece(name, kind, 0, "float32", to_storage(tensor.float())))
        for name, entry, pieces in _kept(saved):
            tensors[name] = entry
            start = 0
            for piece in pieces:
                writer.write(ShardPiece(name, entry.kind, start, dtype_name(piece.dtype), to_storage(piece)))
                start += piece.numel()
        index = writer.finish({})
    write_bytes(work / f"{_SHARD}.json", index.to_bytes())
    return tensors, list(dict.fromkeys(filled))


def _shard_entry(work: Path) -> ShardEntry:
    index = (work / f"{_SHARD}.json").read_bytes()
    size_bytes = (work / f"{_SHARD}.bin").stat().st_size
    return ShardEntry(f"{_SHARD}.bin", f"{_SHARD}.json", size_bytes, digest(index))


def _state(saved: _Saved, name: str, kind: Kind, elements: int) -> torch.Tensor | None:
    """Master or moment of a parameter as a 1-D tensor; None for a moment DeepSpeed never made."""
    file = saved.directory.folder(name) / TENSOR_FILES[kind]
    if kind in MOMENTS and not file.is_file():
        return None
    value = load_file(file)
    if isinstance(value, dict):
        if value.get("is_expert_param") or value.get("vocab_tensor"):
            raise UsageError(f"{file}: of an expert, or a vocabulary cut for tensor parallelism; neither is converted")
        value = value.get("param")
    if not isinstance(value, torch.Tensor) or value.numel() != elements or not value.is_floating_point():
        found = f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise UsageError(f"{file} holds {found}, expected {elements} floating-point numbers")
    return value.detach().reshape(-1)


def _kept(saved: _Saved) -> Iterator[tuple[str, TensorEntry, list[torch.Tensor]]]:
    """Buffers and frozen parameters, each as the consecutive 1-D parts it was saved in."""
    module = _section(saved.model, "module")
    buffers = [str(name) for name in _sequence(saved.model, "buffer_names")]
    for name in buffers:
        tensor = module.get(name)
        if not isinstance(tensor, torch.Tensor):
            raise UsageError(f"{saved.directory.model_files[0]} lacks the buffer {name}")
        yield name, TensorEntry(tuple(tensor.shape), dtype_name(tensor.dtype), Kind.BUFFER), [tensor.reshape(-1)]
    if saved.stage == 3 and CONVOY_KEY not in saved.model:
        yield from _partitioned_frozen(saved)
        return
    tied = _section(saved.model, "shared_params")
    for name, tensor in module.items():
        if name not in saved.trained and name not in tied and name not in buffers:
            if not isinstance(tensor, torch.Tensor):
                raise UsageError(f"{saved.directory.model_files[0]}: {name} is no tensor")
            entry = TensorEntry(tuple(tensor.shape), dtype_name(tensor.dtype), Kind.FROZEN)
            yield name, entry, [tensor.reshape(-1)]


def _partitioned_frozen(saved: _Saved) -> Iterator[tuple[str, TensorEntry, list[torch.Tensor]]]:
    """Frozen parameters that stage 3 cut over the ranks, with padding at the end of the last ones."""
    shapes = _section(saved.model, "frozen_param_shapes")
    if not shapes:
        return
    ranks = [_section(_load_dict(file), "frozen_param_fragments") for file in saved.directory.model_files]
    for name, shape in shapes.items():
        found = [rank.get(name) for rank in ranks]
        fragments = [fragment.reshape(-1) for fragment in found if isinstance(fragment, torch.Tensor)]
        dtype = dtype_name(fragments[0].dtype) if fragments else "float32"
        entry = TensorEntry(_shape(shape, saved.directory.model_files[0]), dtype, Kind.FROZEN)
        pieces, left = [], entry.elements
        for fragment in fragments:
            pieces.append(fragment[: min(left, fragment.numel())])
            left -= pieces[-1].numel()
        if left:
            raise UsageError(
                f"{saved.directory.path}: {left} of the {entry.elements} elements of {name} (frozen) are missing",
                hint=f"expected the model states of all {saved.model.get('dp_world_size')} ranks",
            )
        yield name, entry, [piece for piece in pieces if piece.numel()]


def _model_dtype(saved: _Saved, name: str) -> str:
    """The parameter's type in the model. The checkpoint says it only beside the module's own tensors."""
    recorded = _section(saved.convoy, "dtypes").get(name)
    tensor = _section(saved.model, "module").get(name)
    return str(recorded) if recorded else dtype_name(tensor.dtype) if isinstance(tensor, torch.Tensor) else "float32"


# The manifest -------------------------------------------------------------------------------------------------


def _manifest(
    saved: _Saved, step: int, position: int | None, tensors: dict[str, TensorEntry], shard: ShardEntry
) -> Manifest:
    model = saved.model
    versions = {name: metadata.version(name) for name in ("convoy-train", "torch")}
    extra = saved.convoy.get("extra")
    return Manifest(
        step=step,
        position=_whole(saved.convoy, "position", 0) if position is None else position,
        world_size=_whole(model, "dp_world_size", 0) or 1,
        stage=saved.stage,
        optimizer="DeepSpeed universal checkpoint",
        tensors=tensors,
        tied={str(name): str(first) for name, first in _section(model, "shared_params").items()},
        moments=True,
        groups=tuple(GroupEntry(_hyperparameters(g), _steps(saved, i)) for i, g in enumerate(saved.groups)),
        shards=(shard,),
        counters={name: _count(saved, name) for name in ("global_steps", "global_samples", "skipped_steps")},
        loss_scaler=_loss_scale(saved),
        lr_scheduler=_plain_values(model.get("lr_scheduler")),
        extra=extra if isinstance(extra, dict) else {},
        versions={**versions, "deepspeed": str(model.get("ds_version", "unknown"))},
        saved_at_s=time.time(),
    )


def _steps(saved: _Saved, group: int) -> float:
    """Updates of an optimizer group: beside each parameter at stages 1 and 2, by sub-group at stage 3."""
    value: object = None
    for name, (_, own) in saved.trained.items():
        file = saved.directory.folder(name) / STEP_FILE
        if own == group and file.is_file():
            value = load_file(file)
            break
    if value is None:
        found = _section(saved.optimizer, "optimizer_state_dict").get("state")
        states: Mapping[object, object] = found if isinstance(found, dict) else {}
        sub_groups = [states.get(i) for i in _sequence(saved.groups[group], "params")]
        steps = (state["step"] for state in sub_groups if isinstance(state, dict) and "step" in state)
        value = next(steps, saved.groups[group].get("step"))
    if not isinstance(value, int | float | torch.Tensor):
        raise UsageError(
            f"{saved.directory.path} does not say how many updates optimizer group {group} has had",
            hint="only Adam's state can be converted, with its step counter",
        )
    return float(value)


def _hyperparameters(group: Mapping[str, object]) -> JsonObject:
    kept = {key: plain_value(group.get(key)) for key in HYPERPARAMETERS}
    return {key: value for key, value in kept.items() if value is not None}


def _loss_scale(saved: _Saved) -> dict[str, float | int | bool] | None:
    scaler = saved.optimizer.get("loss_scaler")
    if scaler is None or not saved.optimizer.get("dynamic_loss_scale"):
        return None
    return {k: v for k in LOSS_SCALE_FIELDS if isinstance(v := getattr(scaler, k, None), bool | int | float)}


def _plain_values(state: object) -> JsonObject | None:
    """The part of a scheduler's state that JSON can hold: numbers, strings and lists of them."""
    if not isinstance(state, dict):
        return None
    return {str(k): v for k, v in state.items() if all(isinstance(x, int | float | str) for x in _listed(v))}


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]

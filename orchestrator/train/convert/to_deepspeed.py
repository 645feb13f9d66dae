"""A checkpoint as a universal one of DeepSpeed, which `engine.load_checkpoint` reads with `"load_universal": true`.

What DeepSpeed 0.19.8 writes itself loads only at the kind of stage it was saved at. This is one directory for
stages 1, 2 and 3, at any number of ranks: the files both readers want, in the form both understand. It also keeps
the reader of stage 3 from giving every optimizer group the hyperparameters of the first one: whatever differs
between groups is left out there, so that the script's own groups stand.
"""

import os
import secrets
import shutil
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from orchestrator.atomic_files import write_bytes
from orchestrator.checkpoint.format.checkpoint_manifest import GroupEntry, Manifest, TensorEntry
from orchestrator.checkpoint.format.dtypes import storage_dtype
from orchestrator.checkpoint.format.intervals import MOMENTS, Kind
from orchestrator.checkpoint.format.reader import CheckpointReader
from orchestrator.domain.errors import CheckpointError, UsageError
from orchestrator.train.convert.universal import (
    CONVOY_KEY,
    LATEST,
    OPTIMIZER_FILE,
    STEP_FILE,
    TENSOR_FILES,
    ZERO_DIRECTORY,
    Converted,
    parameter_folder,
)
from orchestrator.train.engine.engine import import_deepspeed
from orchestrator.train.zero.zero_restore import HYPERPARAMETERS
from orchestrator.train.zero.zero_state import LOSS_SCALE_FIELDS

Adam = Literal["torch", "deepspeed"]
"""Whose Adam will load the state: torch's counts its steps in a tensor, DeepSpeed's own in an integer."""

SEPARATE_STEPS = 'for s in engine.optimizer.state.values(): s["step"] = s["step"].to(s["exp_avg"].device, copy=True)'
"""For a script, after `engine.load_checkpoint`."""
LOAD_KEPT = 'model.load_state_dict(torch.load(FILE, mmap=True)["module"], strict=False)'
"""For a script, before `deepspeed.initialize`."""


@dataclass(frozen=True)
class _Target:
    """Destination, and the Adam that will load it."""

    work: Path
    adam: Adam


def to_deepspeed(checkpoint: Path | str, dest: Path, adam: Adam = "torch") -> Converted:
    """Write `checkpoint` to `dest`/global_step<N>_universal and name it in `dest`/latest_universal.

    `engine.load_checkpoint(dest)` finds it. Memory: one tensor at a time. The directory appears when it is complete.
    Raises UsageError if it exists already, CheckpointError if the checkpoint is damaged or `dest` cannot be
    written.
    """
    started_s = time.perf_counter()
    with CheckpointReader(checkpoint) as reader:
        manifest = reader.manifest
        final = dest / f"global_step{manifest.step}_universal"
        if final.exists():
            raise UsageError(f"{final} exists already", hint="remove it, or name another directory")
        work = dest / f".{final.name}.{secrets.token_hex(4)}.tmp"
        try:
            (work / ZERO_DIRECTORY).mkdir(parents=True)
            _write(reader, _Target(work, adam))
            size_bytes = sum(file.stat().st_size for file in work.rglob("*") if file.is_file())
            work.rename(final)
            write_bytes(dest / LATEST, final.name.encode())
        except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError where the disk is full
            raise CheckpointError(
                f"{dest} cannot be written: {error}", hint="three times the size of the weights in fp32 is needed"
            ) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
    elements = sum(entry.elements for entry in manifest.tensors.values() if entry.kind is Kind.MASTER)
    notes = loading_notes(manifest, adam, final)
    return Converted(final, manifest.step, elements, size_bytes, time.perf_counter() - started_s, notes)


def loading_notes(manifest: Manifest, adam: Adam, path: Path) -> tuple[str, ...]:
    """What DeepSpeed 0.19.8 gets wrong or leaves out when it loads a universal checkpoint, as far as it concerns
    this one."""
    notes = [
        "load it at ZeRO stage 1, 2 or 3 and without round_robin_gradients: with it DeepSpeed puts the state of one "
        "parameter into another"
    ]
    if adam == "torch":
        notes.append(
            "after load_checkpoint give each state a step counter of its own, on its device: "
            f"{SEPARATE_STEPS} (at stage 3 DeepSpeed makes all sub-groups share one, which then counts too fast; on a "
            "GPU torch's fused Adam needs it there)"
        )
    differing = sorted(_hyperparameters(manifest.groups[0]).keys() - _shared(manifest.groups).keys())
    if differing:
        notes.append(
            f"optimizer groups differ in {', '.join(differing)}: stage 3 would give all of them those of the first, "
            "so there they are left as the script sets them"
        )
    kept = sorted(name for name, entry in manifest.tensors.items() if entry.kind is not Kind.MASTER)
    if kept:
        file = path / "mp_rank_00_model_states.pt"
        notes.append(
            f"DeepSpeed does not load frozen parameters and buffers from it ({len(kept)}, first {kept[0]}); "
            f"before deepspeed.initialize: {LOAD_KEPT.replace('FILE', repr(str(file)))}"
        )
    return tuple(notes)


def _write(reader: CheckpointReader, target: _Target) -> None:
    manifest = reader.manifest
    zero = target.work / ZERO_DIRECTORY
    for name, entry in manifest.tensors.items():
        if entry.kind is Kind.MASTER:
            _write_parameter(reader, name, parameter_folder(zero, name), target.adam)
    torch.save(_optimizer_state(manifest, target.adam), zero / OPTIMIZER_FILE)
    kept = {name: entry for name, entry in manifest.tensors.items() if entry.kind is not Kind.MASTER}
    scratch = target.work / "kept.tmp"
    stages12 = target.work / "mp_rank_00_model_states.pt"
    torch.save(_model_state(manifest, _mapped(reader, kept, scratch)), stages12)
    scratch.unlink(missing_ok=True)
    stage3 = target.work / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    try:
        os.link(stages12, stage3)
    except OSError:  # a file system without hard links
        shutil.copyfile(stages12, stage3)


def _write_parameter(reader: CheckpointReader, name: str, folder: Path, adam: Adam) -> None:
    manifest, entry = reader.manifest, reader.manifest.tensors[name]
    folder.mkdir()
    array = np.zeros(entry.elements, dtype=np.float32)
    for kind, file in TENSOR_FILES.items():
        if kind in MOMENTS and not manifest.moments:
            array.fill(0)  # before the first update
        else:
            reader.read(name, kind, 0, entry.elements, array)
        # The keys of ds_to_universal.py; stage 3 writes bare tensors, but reads these too.
        torch.save({"param": torch.from_numpy(array).view(entry.shape), "cat_dim": 0}, folder / file)
    group = manifest.groups[entry.group if entry.group is not None else 0]
    torch.save(_counter(group.step, adam), folder / STEP_FILE)


def _counter(steps: float | None, adam: Adam) -> torch.Tensor | int:
    return torch.tensor(steps or 0.0, dtype=torch.float32) if adam == "torch" else int(steps or 0)


def _hyperparameters(group: GroupEntry) -> dict[str, object]:
    """What is optimized, not how: `fused` and its like are the script's."""
    return {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in group.hyperparameters.items()
        if key in HYPERPARAMETERS
    }


def _shared(groups: tuple[GroupEntry, ...]) -> dict[str, object]:
    """The hyperparameters that are the same in every group."""
    first, *others = [_hyperparameters(group) for group in groups]
    return {k: v for k, v in first.items() if all(k in other and other[k] == v for other in others)}


def _optimizer_state(manifest: Manifest, adam: Adam) -> dict[str, object]:
    """`optimizer_state.pt`: the first three keys are read at stages 1 and 2, `optimizer_state_dict` at stage 3."""
    steps = max((group.step for group in manifest.groups if group.step is not None), default=None)
    state: dict[str, object] = {
        "param_groups": [{"params": [i], **_hyperparameters(group)} for i, group in enumerate(manifest.groups)],
        "ds_version": _deepspeed_version(),
        "zero_stage": manifest.stage,
        "optimizer_state_dict": {
            "state": {0: {"step": _counter(steps, adam)}},
            "param_groups": [{"params": [0], **_shared(manifest.groups)}],
        },
    }
    if manifest.loss_scaler is not None:
        state |= {"loss_scaler": _loss_scaler(manifest.loss_scaler), "dynamic_loss_scale": True, "overflow": False}
    return state


def _loss_scaler(learned: dict[str, float | int | bool]) -> object:
    """DeepSpeed's object, which replaces the script's own. Beside what it learned it has DeepSpeed's defaults, which
    are Convoy's settings too (see `deepspeed_config`)."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    scaler = DynamicLossScaler(
        init_scale=2.0**16, scale_window=1000, min_scale=1, delayed_shift=2, consecutive_hysteresis=False
    )
    for name in LOSS_SCALE_FIELDS:
        if name in learned:
            setattr(scaler, name, learned[name])
    return scaler


def _model_state(manifest: Manifest, kept: dict[str, torch.Tensor]) -> dict[str, object]:
    """The model states: the engine reads counters, world sizes and the scheduler; the rest is for other readers."""
    steps = manifest.counters.get("global_steps", manifest.step)
    skipped = manifest.counters.get("skipped_steps", 0)
    return {
        "module": kept,
        "buffer_names": [name for name, entry in manifest.tensors.items() if entry.kind is Kind.BUFFER],
        "param_shapes": [_shapes(manifest, Kind.MASTER, group) for group in range(len(manifest.groups))],
        "frozen_param_shapes": _shapes(manifest, Kind.FROZEN, None),
        "shared_params": manifest.tied,
        "lr_scheduler": manifest.lr_scheduler or _scheduler_at(steps - skipped),
        "data_sampler": None,
        "random_ltd": None,
        "global_steps": steps,
        "global_samples": manifest.counters.get("global_samples", manifest.position),
        "skipped_steps": skipped,
        "dp_world_size": manifest.world_size,
        "mp_world_size": 1,
        "ds_config": {"zero_optimization": {"stage": manifest.stage}},
        "ds_version": _deepspeed_version(),
        "universal_checkpoint_info": {"universal_checkpoint_version": 0.4},
        CONVOY_KEY: {
            "step": manifest.step,
            "position": manifest.position,
            "extra": manifest.extra,
            "dtypes": {name: entry.dtype for name, entry in manifest.tensors.items()},
        },
    }


def _scheduler_at(updates: int) -> dict[str, int]:
    """State of a scheduler after `updates` updates: DeepSpeed's have the first key only, torch's the others.

    Convoy has no scheduler object: its loop computes the rate. A script that has one continues at the right step.
    """
    return {"last_batch_iteration": updates - 1, "last_epoch": updates, "_step_count": updates + 1}


def _shapes(manifest: Manifest, kind: Kind, group: int | None) -> "OrderedDict[str, torch.Size]":
    found = ((name, entry) for name, entry in manifest.tensors.items() if entry.kind is kind and entry.group == group)
    return OrderedDict((name, torch.Size(entry.shape)) for name, entry in found)


def _mapped(reader: CheckpointReader, kept: dict[str, TensorEntry], scratch: Path) -> dict[str, torch.Tensor]:
    """Frozen parameters and buffers in a mapped file, since they go into one file and need not fit in memory."""
    tensors: dict[str, torch.Tensor] = {}
    sizes = {name: entry.elements * storage_dtype(entry.dtype).itemsize for name, entry in kept.items()}
    offsets = np.cumsum([0, *(-(-size // 64) * 64 for size in sizes.values())])
    if kept:
        with scratch.open("wb") as file:
            file.truncate(max(1, int(offsets[-1])))
    for (name, entry), offset in zip(kept.items(), offsets, strict=False):
        item = storage_dtype(entry.dtype)
        if entry.elements == 0:
            array = np.empty(0, dtype=item)
        else:
            array = np.memmap(scratch, dtype=item, mode="r+", offset=int(offset), shape=(entry.elements,))
        reader.read(name, entry.kind, 0, entry.elements, array)
        tensor = torch.from_numpy(array)
        tensors[name] = (tensor.view(torch.bfloat16) if entry.dtype == "bfloat16" else tensor).view(entry.shape)
    return tensors


def _deepspeed_version() -> str:
    return str(import_deepspeed("cpu").__version__)

"""Puts training state into a DeepSpeed engine of any world size and stage.

Three phases, so that a rank that cannot read does not leave the others waiting in a collective: `check_model` and
`fill` touch this rank alone; `publish` is collective. A failure in `fill` leaves the engine half restored: throw it
away.
"""

import base64

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.fused_optimizer import FP16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from orchestrator.checkpoint.format.checkpoint_manifest import Manifest, TensorEntry
from orchestrator.checkpoint.format.intervals import MOMENTS, Kind, Range
from orchestrator.checkpoint.format.reader import IntervalReader
from orchestrator.domain.errors import CheckpointError
from orchestrator.train.engine.engine_types import Engine, Stage12Optimizer
from orchestrator.train.zero.uploads import Uploads, uploads_to
from orchestrator.train.zero.zero_layout import (
    Partition,
    base_optimizer,
    describe_tensors,
    frozen_parameters,
    partition_of,
    partitions,
    persistent_buffers,
    stage0_pairs,
)
from orchestrator.train.zero.zero_state import LOSS_SCALE_FIELDS, loss_scale_holder

HYPERPARAMETERS = ("lr", "initial_lr", "betas", "eps", "weight_decay", "bias_correction", "amsgrad")
"""What is restored of an optimizer group. The rest (`fused`, `foreach`, ...) is how, not what."""

_GATHERED_ELEMENTS = 1 << 22
"""Of all ranks together, gathered at once."""
_SHOWN_DIFFERENCES = 5


def check_model(manifest: Manifest, engine: Engine) -> None:
    """Raise CheckpointError, listing the first differences, unless the checkpoint is of this very model."""
    present, saved = describe_tensors(engine), manifest.tensors
    differences = [
        f"{name}: saved {_describe(saved.get(name))}, expected {_describe(present.get(name))}"
        for name in [*present, *(n for n in saved if n not in present)]
        if _identity(saved.get(name)) != _identity(present.get(name))
    ]
    if differences:
        shown = "\n  ".join(differences[:_SHOWN_DIFFERENCES])
        more = len(differences) - _SHOWN_DIFFERENCES
        rest = f"\n  and {more} more" if more > 0 else ""
        raise CheckpointError(
            f"the checkpoint is of another model; {len(differences)} tensors differ:\n  {shown}{rest}",
            hint="`model` and `tokenizer` must be what they were when the checkpoint was saved",
        )
    expected = len(base_optimizer(engine).param_groups)
    if len(manifest.groups) != expected:
        raise CheckpointError(
            f"the checkpoint has {len(manifest.groups)} optimizer groups, the optimizer has {expected}",
            hint="weight decay must group the parameters as it did when the checkpoint was saved",
        )


@torch.no_grad()
def fill(engine: Engine, reader: IntervalReader) -> None:
    """Read this rank's share of masters, moments, frozen parameters and buffers. No collective.

    Memory beyond the state itself: the buffers of `Uploads`, and a chunk of the reader's. Raises CheckpointError if
    something is missing or damaged.
    """
    with uploads_to(engine.device) as uploads:
        for partition in partitions(engine):
            _fill_partition(partition, reader, uploads)
        for name, parameter in frozen_parameters(engine).items():
            held = partition_of(parameter)
            whole = Range(0, parameter.numel())
            tensor, part = held if held is not None else (parameter.detach().view(-1), whole)
            _read(reader, name, Kind.FROZEN, part.start, tensor, uploads)
        for name, buffer in persistent_buffers(engine.module).items():
            flat = buffer.reshape(-1)  # a copy where the buffer is not contiguous
            _read(reader, name, Kind.BUFFER, 0, flat, uploads)
            if flat.data_ptr() != buffer.data_ptr():
                buffer.copy_(flat.view(buffer.shape))


@torch.no_grad()
def publish(engine: Engine, manifest: Manifest) -> None:
    """Carry restored masters into the model's own weights, and restore what is small. Collective."""
    for group, entry in zip(base_optimizer(engine).param_groups, manifest.groups, strict=True):
        for key in HYPERPARAMETERS:
            if key in group and key in entry.hyperparameters:
                value = entry.hyperparameters[key]
                group[key] = tuple(value) if isinstance(value, list) else value
        if "step" in group and entry.step is not None:
            group["step"] = int(entry.step)
    _update_model_weights(engine, manifest.moments)
    for name in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, name, manifest.counters[name])
    # Accumulation may be another one than when the state was saved; a step boundary it is in both.
    engine.micro_steps = engine.global_steps * engine.gradient_accumulation_steps()
    holder = loss_scale_holder(engine)
    for key in LOSS_SCALE_FIELDS:
        if holder is not None and key in (manifest.loss_scaler or {}) and hasattr(holder, key):
            setattr(holder, key, (manifest.loss_scaler or {})[key])
    if manifest.lr_scheduler is not None and engine.lr_scheduler is not None:
        engine.lr_scheduler.load_state_dict(manifest.lr_scheduler)


def restore_rng(state: dict[str, str]) -> None:
    """Set the generators to what a rank saved; does nothing for a device it did not have."""
    raw = {k: torch.frombuffer(bytearray(base64.b64decode(v)), dtype=torch.uint8) for k, v in state.items()}
    if "cpu" in raw:
        torch.set_rng_state(raw["cpu"])
    if "cuda" in raw and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # this process trains on one
        torch.cuda.set_rng_state(raw["cuda"])


def _fill_partition(partition: Partition, reader: IntervalReader, uploads: Uploads) -> None:
    manifest = reader.manifest
    _fill_flat(partition, Kind.MASTER, partition.flat.detach().view(-1), reader, uploads)
    if not manifest.moments:
        return
    state = partition.optimizer.state[partition.flat]
    for kind in MOMENTS:
        if kind.value not in state:
            state[kind.value] = torch.zeros_like(partition.flat.detach())
        _fill_flat(partition, kind, state[kind.value].view(-1), reader, uploads)
    steps = manifest.groups[partition.group].step
    if partition.fragments:  # a parameter may have been in another group when it was saved
        saved_group = manifest.tensors[partition.fragments[0].name].group
        steps = manifest.groups[partition.group if saved_group is None else saved_group].step
    if steps is not None:
        state["step"] = _step_like(partition, steps)


def _step_like(partition: Partition, steps: float) -> torch.Tensor | int:
    """torch's Adam counts in a float32 tensor (on the device only if it is fused or capturable), DeepSpeed's in an
    int."""
    if not type(partition.optimizer).__module__.startswith("torch."):
        return int(steps)
    group = partition.optimizer.param_groups[partition.group]
    on_device = group.get("fused") or group.get("capturable")
    return torch.tensor(steps, dtype=torch.float32, device=partition.flat.device if on_device else "cpu")


def _fill_flat(partition: Partition, kind: Kind, flat: torch.Tensor, reader: IntervalReader, uploads: Uploads) -> None:
    for fragment in partition.fragments:
        target = flat[fragment.offset : fragment.offset + fragment.length]
        _read(reader, fragment.name, kind, fragment.start, target, uploads)


def _read(reader: IntervalReader, name: str, kind: Kind, start: int, target: torch.Tensor, uploads: Uploads) -> None:
    """Fill a 1-D tensor: in place if it lies in host memory and numpy has its type, else through `uploads`."""
    if target.device.type == "cpu" and target.dtype is not torch.bfloat16:
        reader.read(name, kind, start, start + target.numel(), target.numpy())
        return
    uploads.put(target, lambda first, last, out: reader.read(name, kind, start + first, start + last, out))


def _update_model_weights(engine: Engine, moments: bool) -> None:
    optimizer = engine.optimizer
    if isinstance(optimizer, DeepSpeedZeroOptimizer | BF16_Optimizer):
        _gather_weights(optimizer)
        optimizer._hp_optimizer_states_linked = False
        if moments:
            optimizer._lazy_init_hp_params_optimizer_state()
    elif isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        optimizer.checkpoint_event_prologue()
        flats = zip(optimizer.fp16_partitioned_groups_flat, optimizer.fp32_partitioned_groups_flat, strict=True)
        for low, master in flats:
            if low.data_ptr() != master.data_ptr():  # plain fp32 has one flat for both
                low.data.copy_(master.data)
        if optimizer.persistent_parameters:  # gathered before the restore: stale
            optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
        optimizer.checkpoint_event_epilogue()
    elif isinstance(optimizer, FP16_Optimizer):
        for low, master in zip(optimizer.fp16_groups_flat, optimizer.fp32_groups_flat, strict=True):
            low.data.copy_(master.data)
    else:
        for pairs in stage0_pairs(engine):
            for parameter, master in pairs:
                if parameter is not master:
                    parameter.data.copy_(master.data)


def _gather_weights(optimizer: Stage12Optimizer) -> None:
    """As DeepSpeed's `update_lp_params`, piece by piece: gloo holds all that one collective gathers a second time, and
    that would be the whole model."""
    if isinstance(optimizer, BF16_Optimizer):
        groups, masters = optimizer.bf16_partitioned_groups, optimizer.fp32_groups_flat_partition
    else:
        groups, masters = optimizer.parallel_partitioned_bit16_groups, optimizer.single_partition_of_fp32_groups
    for parts, master, process_group in zip(groups, masters, optimizer.real_dp_process_group, strict=True):
        rank = dist.get_rank(group=process_group)
        parts[rank].data.copy_(master.data)
        elements = max(1, _GATHERED_ELEMENTS // len(parts))
        for first in range(0, parts[rank].numel() if len(parts) > 1 else 0, elements):
            pieces = [part.detach()[first : first + elements] for part in parts]
            dist.all_gather(pieces, pieces[rank], group=process_group)


def _identity(entry: TensorEntry | None) -> tuple[tuple[int, ...], Kind] | None:
    return None if entry is None else (entry.shape, entry.kind)


def _describe(entry: TensorEntry | None) -> str:
    if entry is None:
        return "nothing"
    what = {Kind.MASTER: "trained", Kind.FROZEN: "frozen", Kind.BUFFER: "a buffer"}[entry.kind]
    return f"{list(entry.shape)} ({what})"

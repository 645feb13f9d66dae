"""Capture a rank's training state: flats as views, small state as values.

`capture` copies nothing: its tensors are views of the live state, so it is for a step boundary, before the next
backward pass. To keep the state longer, copy the flats.
"""

import base64
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from orchestrator.checkpoint.format.checkpoint_manifest import GroupEntry, TensorEntry
from orchestrator.checkpoint.format.dtypes import Elements
from orchestrator.checkpoint.format.intervals import MOMENTS, Kind, Range, even_slice, intersect
from orchestrator.domain.errors import CheckpointError
from orchestrator.json_values import JsonObject, JsonValue
from orchestrator.train.engine.engine_types import Engine
from orchestrator.train.zero.zero_layout import (
    Fragment,
    Partition,
    base_optimizer,
    buffer_places,
    describe_tensors,
    frozen_parameters,
    parameter_names,
    partition_of,
    partitions,
    replicated,
)

LOSS_SCALE_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What a dynamic loss scaler learns while training; the rest of it is configuration."""


@dataclass(frozen=True)
class Flat:
    """A 1-D tensor and the real ranges in it; what lies between them is padding."""

    kind: Kind
    tensor: torch.Tensor
    fragments: tuple[Fragment, ...]


@dataclass(frozen=True)
class CapturedState:
    """All training state of one rank: `flats` are views of live tensors, the rest is small and copied."""

    rank: int
    world_size: int
    stage: int
    optimizer: str
    flats: tuple[Flat, ...]
    moments: bool
    tensors: dict[str, TensorEntry]
    tied: dict[str, str]
    groups: tuple[GroupEntry, ...]
    counters: dict[str, int]
    loss_scaler: dict[str, float | int | bool] | None
    lr_scheduler: JsonObject | None
    rng: dict[str, str]

    @property
    def size_bytes(self) -> int:
        """Bytes of the real ranges."""
        return sum(f.length * flat.tensor.element_size() for flat in self.flats for f in flat.fragments)


def capture(engine: Engine) -> CapturedState:
    """The state of this rank at an accumulation boundary. No collective, no copy of anything large.

    Raises CheckpointError in the middle of an accumulation, and for state that lies on NVMe.
    """
    return EngineState(engine).capture()


class EngineState:
    """The location of an engine's state: looked up once, because walking through a model takes longer than copying the
    state of a small one. It is valid as long as the engine; tensors that may be replaced are looked up each time."""

    def __init__(self, engine: Engine) -> None:
        """No collective. Raises CheckpointError for state that lies on NVMe."""
        self._engine = engine
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        share = (self._rank, self._world_size) if replicated(engine) else None
        self._partitions = [(partition, _held(partition, share)) for partition in partitions(engine)]
        self._frozen = list(frozen_parameters(engine).items())
        # Buffers are replicated.
        self._buffers = buffer_places(engine.module) if self._rank == 0 else {}
        self._tensors, self._tied = describe_tensors(engine), _tied_names(engine.module)

    def capture(self) -> CapturedState:
        """See the function of that name."""
        engine = self._engine
        if engine.micro_steps % engine.gradient_accumulation_steps():
            raise CheckpointError(
                f"state can only be saved between optimizer steps; {engine.micro_steps} micro steps are not a multiple "
                f"of the accumulation of {engine.gradient_accumulation_steps()}"
            )
        moments = any(partition.tensor(Kind.EXP_AVG) is not None for partition, _ in self._partitions)
        flats = [flat for partition, held in self._partitions for flat in _flats(partition, held, moments)]
        flats += [Flat(Kind.FROZEN, tensor, (fragment,)) for tensor, fragment in self._frozen_shares()]
        for name, (part, own_name) in self._buffers.items():
            buffer = getattr(part, own_name).detach()
            flats.append(Flat(Kind.BUFFER, buffer.reshape(-1), (Fragment(name, 0, buffer.numel(), 0),)))
        return CapturedState(
            rank=self._rank,
            world_size=self._world_size,
            stage=engine.zero_optimization_stage(),
            optimizer=type(engine.optimizer).__name__,
            flats=tuple(flats),
            moments=moments,
            tensors=self._tensors,
            tied=self._tied,
            groups=_groups(engine, [partition for partition, _ in self._partitions]),
            counters={name: int(getattr(engine, name)) for name in ("global_steps", "global_samples", "skipped_steps")},
            loss_scaler=_loss_scale(engine),
            lr_scheduler=_scheduler_state(engine),
            rng=_rng_state(),
        )

    def _frozen_shares(self) -> list[tuple[torch.Tensor, Fragment]]:
        shares = []
        for name, parameter in self._frozen:
            held = partition_of(parameter)
            if held is None:
                part = even_slice(parameter.numel(), self._rank, self._world_size)
                tensor = parameter.detach().reshape(-1)[part.start : part.end]
            else:
                tensor, part = held
            if len(part):
                shares.append((tensor, Fragment(name, 0, len(part), part.start)))
        return shares


def loss_scale_holder(engine: Engine) -> object | None:
    """The object whose `LOSS_SCALE_FIELDS` change while training; None where the loss scale is fixed."""
    holders: tuple[object, ...] = (
        getattr(engine.optimizer, "loss_scaler", None),
        getattr(engine.optimizer, "loss_scale_config", None),
    )
    for holder in holders:
        if holder is not None and (getattr(holder, "dynamic", False) or getattr(holder, "dynamic_loss_scale", False)):
            return holder
    return None


def to_storage(tensor: torch.Tensor) -> Elements:
    """A 1-D tensor as the array that goes into a shard file: a view if it is in host memory already."""
    host = tensor.detach().cpu().contiguous()
    if host.dtype is torch.bfloat16:
        return host.view(torch.int16).numpy().view(np.uint16)
    array: Elements = host.numpy()
    return array


def _held(partition: Partition, share: tuple[int, int] | None) -> tuple[Fragment, ...]:
    """What a rank saves of a partition: all of it, or of one that every rank has whole its `share` (rank, world)."""
    if share is None:
        return partition.fragments
    part = even_slice(partition.flat.numel(), *share)
    return tuple(f for whole in partition.fragments if (f := _within(whole, part)) is not None)


def _flats(partition: Partition, held: tuple[Fragment, ...], moments: bool) -> list[Flat]:
    flats = []
    for kind in (Kind.MASTER, *MOMENTS) if moments else (Kind.MASTER,):
        tensor = partition.tensor(kind)
        if tensor is None:  # a parameter that never had a gradient
            tensor = torch.zeros_like(partition.flat.detach()).view(-1)
        flats.append(Flat(kind, tensor, held))
    return flats


def _within(fragment: Fragment, share: Range) -> Fragment | None:
    common = intersect(share, Range(fragment.offset, fragment.offset + fragment.length))
    if common is None:
        return None
    return Fragment(fragment.name, common.start, len(common), fragment.start + common.start - fragment.offset)


def _tied_names(module: torch.nn.Module) -> dict[str, str]:
    first = parameter_names(module)
    every = module.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in every if first[id(p)] != name}


def _groups(engine: Engine, found: list[Partition]) -> tuple[GroupEntry, ...]:
    entries = []
    for i, group in enumerate(base_optimizer(engine).param_groups):
        steps = [s for p in found if p.group == i and (s := p.steps()) is not None]
        kept = {k: plain_value(v) for k, v in group.items() if k not in ("params", "step")}
        entries.append(GroupEntry({k: v for k, v in kept.items() if v is not None}, _most(steps)))
    return tuple(entries)


def _most(counters: list[torch.Tensor | int]) -> float | None:
    """The greatest of them, read from a device at once: stage 0 has one for each parameter, and each read waits for
    the device."""
    found = [float(counter) for counter in counters if not isinstance(counter, torch.Tensor)]
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for counter in counters:
        if isinstance(counter, torch.Tensor):
            by_device.setdefault(counter.device, []).append(counter.detach().reshape(()))
    found += [float(torch.stack(tensors).max()) for tensors in by_device.values()]
    return max(found, default=None)


def plain_value(value: object) -> JsonValue:
    """A JSON value, or None for what has no place in a manifest."""
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, tuple | list):
        return [plain_value(v) for v in value]
    return value if isinstance(value, bool | int | float | str) else None


def _loss_scale(engine: Engine) -> dict[str, float | int | bool] | None:
    holder = loss_scale_holder(engine)
    if holder is None:
        return None
    return {k: v for k in LOSS_SCALE_FIELDS if isinstance(v := getattr(holder, k, None), bool | int | float)}


def _scheduler_state(engine: Engine) -> JsonObject | None:
    if engine.lr_scheduler is None or not hasattr(engine.lr_scheduler, "state_dict"):
        return None
    return {k: v for k, raw in engine.lr_scheduler.state_dict().items() if (v := plain_value(raw)) is not None}


def _rng_state() -> dict[str, str]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # this process trains on one
        state["cuda"] = torch.cuda.get_rng_state()
    return {device: base64.b64encode(raw.numpy().tobytes()).decode() for device, raw in state.items()}

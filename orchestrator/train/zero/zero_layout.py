"""The location of a DeepSpeed engine's training state, as intervals of flattened parameters.

Checked against DeepSpeed 0.19.8. Every rank owns, per optimizer group, one flat fp32 partition and two moments of the
same shape; stages differ in which elements of which parameters are at which place in it. Padding (at a group's tail in
stages 1 and 2, per parameter in stage 3) is in no fragment.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.fused_optimizer import FP16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from orchestrator.checkpoint.format.checkpoint_manifest import TensorEntry
from orchestrator.checkpoint.format.intervals import Kind, Range, intersect
from orchestrator.domain.errors import CheckpointError
from orchestrator.train.engine.engine_types import Engine, PartitionedGroups, PartitionedParameter, Stage3Optimizer


@dataclass(frozen=True, slots=True)
class Fragment:
    """Elements [start, start + length) of parameter `name` lie from element `offset` of a flat on."""

    name: str
    offset: int
    length: int
    start: int


@dataclass(frozen=True)
class Partition:
    """A flat fp32 partition this rank updates. `flat` is also its key in the optimizer's state."""

    flat: torch.Tensor
    optimizer: torch.optim.Optimizer
    group: int
    fragments: tuple[Fragment, ...]

    def tensor(self, kind: Kind) -> torch.Tensor | None:
        """Master or moment as a 1-D view; None for a moment that does not exist yet."""
        if kind is Kind.MASTER:
            return self.flat.detach().view(-1)
        moment = self.optimizer.state.get(self.flat, {}).get(kind.value)
        return None if moment is None else moment.detach().view(-1)

    def steps(self) -> torch.Tensor | int | None:
        """Updates made so far: a tensor in torch's Adam (on the device if it is fused), an int in DeepSpeed's, in the
        group for the oldest."""
        value: torch.Tensor | int | None = self.optimizer.state.get(self.flat, {}).get("step")
        return self.optimizer.param_groups[self.group].get("step") if value is None else value


def base_optimizer(engine: Engine) -> torch.optim.Optimizer:
    """The optimizer that does the arithmetic, inside DeepSpeed's wrapper if there is one."""
    inner: torch.optim.Optimizer | None = getattr(engine.optimizer, "optimizer", None)
    if inner is not None:
        return inner
    assert isinstance(engine.optimizer, torch.optim.Optimizer), "an engine has a wrapper or torch's own"
    return engine.optimizer


def replicated(engine: Engine) -> bool:
    """Whether every rank holds all masters (stage 0), so that each writes a slice of them."""
    sharded = (DeepSpeedZeroOptimizer, DeepSpeedZeroOptimizer_Stage3, BF16_Optimizer)
    return not isinstance(engine.optimizer, sharded)


def partitions(engine: Engine) -> list[Partition]:
    """The flat partitions of this rank, in an order that is the same every time.

    Raises CheckpointError if masters or parameters are swapped to NVMe.
    """
    optimizer, names = engine.optimizer, parameter_names(engine.module)
    inner = base_optimizer(engine)
    if isinstance(optimizer, DeepSpeedZeroOptimizer):
        return [
            Partition(flat, inner, i, _cut(_placed(params, offsets), names, _span(flat, optimizer, i)))
            for i, (flat, params, offsets) in enumerate(
                zip(
                    optimizer.single_partition_of_fp32_groups,
                    # The true order in the flat: equal to bit16_groups only without alignment and round robin.
                    optimizer.round_robin_bit16_groups,
                    optimizer.round_robin_bit16_offsets,
                    strict=True,
                )
            )
        ]
    if isinstance(optimizer, BF16_Optimizer):
        return [
            Partition(flat, inner, i, _cut(_consecutive(params), names, _span(flat, optimizer, i)))
            for i, (flat, params) in enumerate(
                zip(optimizer.fp32_groups_flat_partition, optimizer.bf16_groups, strict=True)
            )
        ]
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        return _stage3_partitions(optimizer, names)
    return _stage0_partitions(engine, names)


def stage0_pairs(engine: Engine) -> list[list[tuple[torch.nn.Parameter, torch.Tensor]]]:
    """Per group, (model parameter, fp32 master) of an optimizer that keeps masters per parameter. In plain fp32
    the two are one tensor."""
    optimizer = engine.optimizer
    if isinstance(optimizer, FP16_UnfusedOptimizer):
        groups = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
        return [list(zip(low, high, strict=True)) for low, high in groups]
    return [[(p, p) for p in g["params"] if p.requires_grad] for g in base_optimizer(engine).param_groups]


def persistent_buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that belong to the model's state, by full name; the others are computed when it is built."""
    return {name: getattr(part, own_name).detach() for name, (part, own_name) in buffer_places(module).items()}


def buffer_places(module: torch.nn.Module) -> dict[str, tuple[torch.nn.Module, str]]:
    """By full name, whose those buffers are and what they are called there: the tensor may become another one."""
    found: dict[str, tuple[torch.nn.Module, str]] = {}
    for prefix, part in module.named_modules(remove_duplicate=False):
        for name, _ in part.named_buffers(recurse=False):
            if name not in part._non_persistent_buffers_set:
                found[f"{prefix}.{name}" if prefix else name] = (part, name)
    return found


def frozen_parameters(engine: Engine) -> dict[str, torch.nn.Parameter]:
    """Parameters that no optimizer group updates, empty ones included, by name."""
    trained = {id(p) for group in _trained(engine) for p in group}
    return {name: p for name, p in engine.module.named_parameters() if id(p) not in trained}


def partition_of(parameter: torch.nn.Parameter) -> tuple[torch.Tensor, Range] | None:
    """What this rank holds of a parameter that stage 3 has partitioned, as (1-D tensor, range of the parameter);
    None for a parameter that is whole on every rank."""
    if not isinstance(parameter, PartitionedParameter):
        return None
    share = parameter.ds_tensor
    rank = dist.get_rank(group=getattr(parameter, "ds_process_group", None))
    start = min(rank * share.ds_numel, parameter.ds_numel)
    end = min(start + share.ds_numel, parameter.ds_numel)
    return share.data.view(-1)[: end - start], Range(start, end)


def describe_tensors(engine: Engine) -> dict[str, TensorEntry]:
    """Every parameter and persistent buffer of the model, with its full shape and its optimizer group."""
    group_of = {id(p): i for i, group in enumerate(_trained(engine)) for p in group}
    tensors = {
        name: TensorEntry(
            shape=tuple(getattr(p, "ds_shape", p.shape)),
            dtype=dtype_name(p.dtype),
            kind=Kind.MASTER if id(p) in group_of else Kind.FROZEN,
            group=group_of.get(id(p)),
        )
        for name, p in engine.module.named_parameters()
    }
    for name, buffer in persistent_buffers(engine.module).items():
        tensors[name] = TensorEntry(tuple(buffer.shape), dtype_name(buffer.dtype), Kind.BUFFER)
    return tensors


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.bfloat16` -> `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def parameter_names(module: torch.nn.Module) -> dict[int, str]:
    """Name of each parameter by its id(); a tied one has its first name."""
    return {id(p): name for name, p in module.named_parameters()}


def _stage3_partitions(optimizer: Stage3Optimizer, names: dict[int, str]) -> list[Partition]:
    if getattr(optimizer, "swap_optimizer", False) or any(f is None for f in optimizer.fp16_partitioned_groups_flat):
        raise CheckpointError("state offloaded to NVMe cannot be saved or restored", hint="offload to cpu instead")
    result = []
    for i, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
        fragments = []
        for parameter in optimizer.fp16_groups[i]:
            _, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = optimizer._get_param_partition_rank(parameter) * size
            length = min(start + size, parameter.ds_numel) - start
            if length > 0:
                fragments.append(Fragment(names[id(parameter)], offset, length, start))
        # Several sub-groups share one optimizer group.
        group = optimizer.sub_group_to_group_id[i]
        result.append(Partition(flat, optimizer.optimizer, group, tuple(fragments)))
    return result


def _stage0_partitions(engine: Engine, names: dict[int, str]) -> list[Partition]:
    optimizer, inner = engine.optimizer, base_optimizer(engine)
    if isinstance(optimizer, FP16_Optimizer):
        return [
            Partition(flat, inner, i, _cut(_consecutive(params), names, Range(0, flat.numel())))
            for i, (flat, params) in enumerate(zip(optimizer.fp32_groups_flat, optimizer.fp16_groups, strict=True))
        ]
    return [
        Partition(master, inner, i, (Fragment(names[id(parameter)], 0, master.numel(), 0),))
        for i, pairs in enumerate(stage0_pairs(engine))
        for parameter, master in pairs
    ]


def _span(flat: torch.Tensor, optimizer: PartitionedGroups, group: int) -> Range:
    """The range of the group's whole flat that this rank's partition is."""
    rank = dist.get_rank(group=optimizer.real_dp_process_group[group])
    return Range(rank * flat.numel(), (rank + 1) * flat.numel())


def _placed(params: Sequence[torch.nn.Parameter], offsets: Sequence[int]) -> list[tuple[torch.nn.Parameter, int]]:
    return list(zip(params, offsets, strict=True))


def _consecutive(params: Iterable[torch.nn.Parameter]) -> list[tuple[torch.nn.Parameter, int]]:
    placed, offset = [], 0
    for parameter in params:
        placed.append((parameter, offset))
        offset += parameter.numel()
    return placed


def _cut(placed: list[tuple[torch.nn.Parameter, int]], names: dict[int, str], span: Range) -> tuple[Fragment, ...]:
    """Fragments of the parameters (each with its offset in the whole flat) that fall into `span` of it."""
    fragments = []
    for parameter, offset in placed:
        common = intersect(span, Range(offset, offset + parameter.numel()))
        if common is not None:
            name = names[id(parameter)]
            fragments.append(Fragment(name, common.start - span.start, len(common), common.start - offset))
    return tuple(fragments)


def _trained(engine: Engine) -> list[list[torch.nn.Parameter]]:
    """Per optimizer group, the model's parameters that it updates."""
    optimizer = engine.optimizer
    if isinstance(optimizer, DeepSpeedZeroOptimizer):
        return [list(group) for group in optimizer.round_robin_bit16_groups]
    if isinstance(optimizer, BF16_Optimizer):
        return [list(group) for group in optimizer.bf16_groups]
    if isinstance(optimizer, FP16_Optimizer):
        return [list(group) for group in optimizer.fp16_groups]
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        groups: list[list[torch.nn.Parameter]] = [[] for _ in optimizer.optimizer.param_groups]
        for i, sub_group in enumerate(optimizer.fp16_groups):
            groups[optimizer.sub_group_to_group_id[i]].extend(sub_group)
        return groups
    return [[p for p, _ in pairs] for pairs in stage0_pairs(engine)]

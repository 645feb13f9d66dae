"""What Convoy uses of a DeepSpeed engine, its optimizers and a language model. DeepSpeed itself has no types."""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypedDict, runtime_checkable

import torch
import torch.distributed as dist
from torch import nn


class ModelOutput(Protocol):
    """What a language model of transformers returns."""

    @property
    def logits(self) -> torch.Tensor:
        """[n, width, vocabulary]; of a chunked head a scalar, see `ChunkedHead`."""


class LanguageModel(Protocol):
    """A model of transformers, or an engine around one."""

    def __call__(self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor = ...) -> ModelOutput:
        """int64 [n, width] each."""


class LearningRateScheduler(Protocol):
    """The scheduler that a script gives an engine. Convoy gives it none, but converted checkpoints may have one."""

    def state_dict(self) -> dict[str, object]: ...

    def load_state_dict(self, state_dict: Mapping[str, object]) -> object: ...


class LossScale(Protocol):
    """The dynamic loss scale of DeepSpeed's optimizers for fp16."""

    cur_scale: float


class EngineOptimizer(Protocol):
    """The optimizer of an engine: torch's own, or one of DeepSpeed's wrappers. Its class depends on stage and
    precision, and what only one class has is looked up after a check of the class."""

    param_groups: list[dict[str, object]]
    found_inf: torch.Tensor
    """Read by torch's fused optimizers: 1.0 leaves the update out."""
    loss_scale_config: LossScale
    """Of the class for bf16 and fp16 at stage 0 only."""


class Engine(LanguageModel, Protocol):
    """A `deepspeed.DeepSpeedEngine`."""

    module: nn.Module
    optimizer: EngineOptimizer
    lr_scheduler: LearningRateScheduler | None
    micro_steps: int
    global_steps: int
    global_samples: int
    skipped_steps: int

    @property
    def device(self) -> torch.device: ...

    def gradient_accumulation_steps(self) -> int: ...

    def zero_optimization_stage(self) -> int: ...

    def is_gradient_accumulation_boundary(self) -> bool: ...

    def backward(self, loss: torch.Tensor, *, scale_wrt_gas: bool) -> object: ...

    def step(self) -> object: ...

    def get_global_grad_norm(self) -> float | torch.Tensor | None: ...

    def train(self) -> object: ...

    def eval(self) -> object: ...

    def destroy(self) -> None: ...


class ParameterGroup(TypedDict):
    """Parameters that an optimizer treats alike."""

    params: list[nn.Parameter]
    weight_decay: float


class ParameterShare(Protocol):
    """A rank's part of a parameter, padded to the same size on every rank."""

    data: torch.Tensor
    ds_numel: int


@runtime_checkable
class PartitionedParameter(Protocol):
    """A parameter that stage 3 has partitioned."""

    ds_id: int
    ds_numel: int
    """Elements of the whole."""
    ds_tensor: ParameterShare


class PartitionedGroups(Protocol):
    """What the optimizers of stages 1 and 2 and of bf16 have in common."""

    real_dp_process_group: Sequence[dist.ProcessGroup]
    """By optimizer group."""


class Stage12Optimizer(PartitionedGroups, Protocol):
    """`DeepSpeedZeroOptimizer`."""

    parallel_partitioned_bit16_groups: Sequence[Sequence[torch.Tensor]]
    """By optimizer group and rank."""
    single_partition_of_fp32_groups: Sequence[torch.Tensor]


class Stage3Optimizer(Protocol):
    """`DeepSpeedZeroOptimizer_Stage3`; lists are by sub-group."""

    optimizer: torch.optim.Optimizer
    fp16_groups: Sequence[Sequence[PartitionedParameter]]
    fp16_partitioned_groups_flat: Sequence[torch.Tensor | None]
    """None: swapped to NVMe."""
    fp32_partitioned_groups_flat: Sequence[torch.Tensor]
    grad_position: Mapping[int, tuple[int, int, int]]
    """By parameter id: sub-group, first element in its flat, elements."""
    sub_group_to_group_id: Mapping[int, int]

    def get_param_id(self, param: PartitionedParameter) -> int: ...

    def _get_param_partition_rank(self, param: PartitionedParameter) -> int: ...

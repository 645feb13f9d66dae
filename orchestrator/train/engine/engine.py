"""The DeepSpeed engine of a run: built, stepped, measured and torn down."""

import contextlib
import gc
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType

import torch
import torch.distributed as dist
from torch import nn

from orchestrator.domain.devices.device import ACCELERATOR_VARIABLE, CUDA
from orchestrator.domain.errors import DeviceError
from orchestrator.spec.job import JobSpec
from orchestrator.train.engine.deepspeed_config import EngineShape, clips_outside_engine, deepspeed_config
from orchestrator.train.engine.engine_types import Engine, EngineOptimizer, LossScale, ParameterGroup
from orchestrator.train.models.shares import is_sharded

WRAPPERS = 4
"""Decorators around a method of DeepSpeed, at most."""


def build_engine(spec: JobSpec, model: nn.Module, shape: EngineShape, restored: bool = False) -> Engine:
    """A `DeepSpeedEngine` around a model of `build_model`. Collective: needs the process group.

    `restored`: a saved state replaces all of its weights, optimizer state and buffers before they are used.
    """
    deepspeed = import_deepspeed(shape.device)
    config, groups = deepspeed_config(spec, shape), parameter_groups(spec, model)
    sending = _nothing_sent(deepspeed) if restored else contextlib.nullcontext()
    # BF16_Optimizer prints the memory it uses, whatever the log level.
    with _no_operator_probe(deepspeed), sending, _short_parameters(), contextlib.redirect_stdout(io.StringIO()):
        if is_sharded(model):
            from orchestrator.train.zero.zero_partition import partition_shares

            partition_shares(model, config, dist.get_rank(), dist.get_world_size())
        built, *_ = deepspeed.initialize(model=model, config=config, model_parameters=groups)
    if _is_unfused(built.optimizer):
        # Its allocating update also counted as step 1, which would spoil Adam's bias correction.
        built.optimizer.optimizer.state.clear()
    engine: Engine = built
    return engine


def _is_unfused(optimizer: object) -> bool:
    """Whether this is DeepSpeed's optimizer for bf16 and fp16 at stage 0."""
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer

    return isinstance(optimizer, FP16_UnfusedOptimizer)


def import_deepspeed(device: str) -> ModuleType:
    """Import DeepSpeed with a given accelerator (it would use any GPU that it finds) and log only warnings.

    It reads the accelerator's name once, when it is imported. Raises DeviceError if it was imported for another one.
    """
    if "deepspeed" not in sys.modules:
        os.environ[ACCELERATOR_VARIABLE] = device
    import deepspeed

    accelerator = deepspeed.accelerator.get_accelerator()
    if accelerator.device_name() != device:
        raise DeviceError(
            f"training is on {device}, but DeepSpeed was imported in this process for {accelerator.device_name()}",
            hint=f"set {ACCELERATOR_VARIABLE}={device} before DeepSpeed is imported",
        )
    if device == CUDA:
        # Its own, where pynvml is installed, takes CUDA_VISIBLE_DEVICES for a list of numbers: UUIDs raise ValueError.
        accelerator.available_memory = free_device_bytes
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls torch functions under their old names, thousands of times a run.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    library: ModuleType = deepspeed
    return library


def free_device_bytes(device_index: int | None = None) -> int:
    """Free memory of a GPU; default: of the current one."""
    return int(torch.cuda.mem_get_info(device_index)[0])


def parameter_groups(spec: JobSpec, model: nn.Module) -> list[ParameterGroup]:
    """Two groups: matrices, which decay, and the rest (biases, norms, per-channel vectors), which do not.

    A shape like [1, 1, n] is a vector. `_no_weight_decay` is how state-space models mark their exceptions.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        matrix = sum(size > 1 for size in parameter.shape) >= 2 and not getattr(parameter, "_no_weight_decay", False)
        (decayed if matrix else plain).append(parameter)
    groups: list[ParameterGroup] = [
        {"params": decayed, "weight_decay": spec.train.optimizer.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def set_learning_rate(engine: Engine, lr: float) -> None:
    """For the coming update, on every parameter group."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr


class Stepper:
    """Backward and update of one micro step at any stage, with the gradient norm that DeepSpeed may not keep."""

    def __init__(self, spec: JobSpec, engine: Engine, world_size: int) -> None:
        self._engine = engine
        self._clips = clips_outside_engine(spec)
        self._limit = spec.train.clip_grad_norm
        self._world_size = world_size
        self._norm: float | torch.Tensor | None = None
        unfused = _is_unfused(engine.optimizer)
        self._scale: LossScale | None = engine.optimizer.loss_scale_config if unfused else None
        self._scaler = _loss_scale(engine.optimizer) if spec.train.precision == "fp16" else None
        self.loss_scale: float | None = None
        """Factor of the loss in the last update; None unless the precision is fp16."""
        self.skipped = False
        """DeepSpeed has left the last update out, because gradients were not finite."""

    def backward(self, loss_sum: torch.Tensor, global_targets: int) -> None:
        """Gradients of the mean over `global_targets`. DeepSpeed averages over ranks, hence the factor; its average
        over micro steps is turned off.

        Under fp16 DeepSpeed scales the loss itself, except at stage 0, at which it only divides by the scale.
        """
        scale = self._world_size / max(global_targets, 1)
        if self._scale is not None:
            scale *= self._scale.cur_scale
        self._engine.backward(loss_sum * scale, scale_wrt_gas=False)

    def step(self, before_update: Callable[[], None] = lambda: None) -> None:
        """Count the micro step; at the accumulation boundary clip, call `before_update`, and update.

        Gradients that are not finite change neither weights nor moments. DeepSpeed skips such an update itself
        (`check_grad_overflow` is on by default for bf16), except at stage 0 in fp32: there the optimizer gets a flag.
        """
        boundary = self._engine.is_gradient_accumulation_boundary()
        if boundary and self._clips:
            limit = float("inf") if self._limit is None else self._limit
            norm = nn.utils.clip_grad_norm_(self._engine.module.parameters(), limit)
            # torch's fused optimizers read this on the device (it is how GradScaler has them leave an update out), so
            # that nobody waits for the norm here.
            self._engine.optimizer.found_inf = torch.isfinite(norm).logical_not().float()
            self._norm = norm
        loss_scale = 1.0 if self._scale is None else self._scale.cur_scale
        skipped_before = self._engine.skipped_steps
        if boundary:
            self.loss_scale = None if self._scaler is None else float(self._scaler.cur_scale)
            before_update()
        self._engine.step()
        if boundary:
            self.skipped = self._engine.skipped_steps > skipped_before
        if boundary and not self._clips:
            found = self._engine.get_global_grad_norm()
            self._norm = None if found is None else found / loss_scale

    def grad_norm(self) -> float | torch.Tensor:
        """Global L2 norm of the last update's gradients before clipping; not finite if they overflowed. A tensor if the
        norm may not have been computed yet."""
        if self._norm is None:
            raise RuntimeError("DeepSpeed reported no gradient norm for this step")
        return self._norm


def _loss_scale(optimizer: EngineOptimizer) -> LossScale | None:
    """The scale of the loss under fp16, dynamic or fixed: at stage 0 it is a part of the settings, else an object of
    its own."""
    found: LossScale | None = getattr(optimizer, "loss_scale_config", None) or getattr(optimizer, "loss_scaler", None)
    return found


def destroy_engine(engine: Engine) -> None:
    """Free the engine so that another can be built in this process. The caller drops its own references.

    DeepSpeed keeps stage 3 engines alive through a cache on a method and numbers modules and parameters for the
    whole process; ranks whose processes lived through different numbers of engines would disagree on them.
    """
    engine.destroy()
    del engine
    _reset_stage3_state()
    gc.collect()


def _cache_clears(function: object, depth: int) -> Iterator[Callable[[], object]]:
    """`cache_clear` of each functools cache in a function, or below at most `depth` decorators: DeepSpeed's set no
    `__wrapped__`."""
    if hasattr(function, "cache_clear"):
        yield function.cache_clear
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    for inner in [getattr(function, "__wrapped__", None), *cells]:
        if callable(inner) and depth > 0:
            yield from _cache_clears(inner, depth - 1)


def _reset_stage3_state() -> None:
    from deepspeed.runtime.zero import parameter_offload, partition_parameters, partitioned_param_coordinator

    coordinator = partitioned_param_coordinator.PartitionedParameterCoordinator
    for value in vars(coordinator).values():
        for clear in _cache_clears(value, WRAPPERS):
            clear()
    partition_parameters.Init.param_id = 0
    parameter_offload.FWD_MODULE_STACK.clear()
    # The module counter is a mutable default argument.
    parameter_offload.DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__[0][0] = 0


@contextlib.contextmanager
def _nothing_sent(deepspeed: ModuleType) -> Iterator[None]:
    """Keep DeepSpeed from sending weights around that are about to be replaced: rank 0's to all others, at stage 3
    twice; and at stage 3 from gathering every parameter to hang a hook on it, which does not depend on its numbers.

    Of the collectives in `deepspeed.initialize` these two carry nothing but weights, and what waits for others is not
    among them; it is a good half of the time that a recovery takes to build an engine.
    """
    names = ("broadcast", "all_gather_into_tensor")
    before = {name: getattr(deepspeed.comm, name) for name in names}
    for name in names:
        setattr(deepspeed.comm, name, _send_nothing)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(deepspeed.comm, name, function)


def _send_nothing(*_: object, group: object = None, async_op: bool = False) -> None:
    """In place of a collective."""


@contextlib.contextmanager
def _short_parameters() -> Iterator[None]:
    """Stage 3 formats all that it is given, every parameter's numbers too, for a message that it does not print."""
    before = nn.Parameter.__repr__
    nn.Parameter.__repr__ = object.__repr__  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        nn.Parameter.__repr__ = before  # type: ignore[assignment, method-assign]


@contextlib.contextmanager
def _no_operator_probe(deepspeed: ModuleType) -> Iterator[None]:
    """Keep DeepSpeed from compiling `deepspeed_shm_comm`, an operator of its inference engine, when it first meets a
    process group (about 20 s), and from running compilers to see which operators could be built.

    Until it is asked, `deepspeed.ops` works the table out lazily; for the time of the call it finds this one.
    """
    table = vars(deepspeed.ops)
    if "__compatible_ops__" in table:
        before = dict(table["__compatible_ops__"])
        table["__compatible_ops__"]["deepspeed_shm_comm"] = False
        try:
            yield
        finally:
            table["__compatible_ops__"].update(before)
        return
    table["__compatible_ops__"] = {"deepspeed_shm_comm": False}
    try:
        yield
    finally:
        del table["__compatible_ops__"]

"""Sizes of the tensors that an engine itself holds on its device, by ZeRO's parts: parameters, gradients, optimizer
state (Rajbhandari et al., arXiv:1910.02054, section 3). Shared memory counts once."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from orchestrator.domain.events import MemoryMeasured
from orchestrator.domain.loss_chunks import loss_chunk_tokens
from orchestrator.json_values import integer, optional
from orchestrator.planner.activation_memory import activations
from orchestrator.planner.device_memory import assumed_of
from orchestrator.planner.zero_memory import zero_memory
from orchestrator.train.collectives.exchange import exchange_json
from orchestrator.train.engine.build_memory import shape_of
from orchestrator.train.engine.engine_types import Engine, PartitionedParameter
from orchestrator.train.train_context import TrainContext
from orchestrator.train.zero.zero_layout import base_optimizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PARAMETERS, GRADIENTS, OPTIMIZER, ACTIVATIONS = "parameters", "gradients", "optimizer", "activations"
"""Parts."""

_GRADIENT_HOLDERS = ("averaged_gradients", "fp32_groups_gradients_flat", "grad_partitions_flat_buffer")
"""Attributes of DeepSpeed's optimizers in which gradients are added up: of stages 1 to 3, of bf16, of stage 3."""
_MASTER_HOLDERS = ("single_partition_of_fp32_groups", "fp32_groups_flat_partition", "fp32_partitioned_groups_flat")
"""Attributes with masters: of stages 1 and 2, of bf16, of stage 3, which gives the inner optimizer one sub-group at a
time."""


@dataclass
class MemoryProbe:
    """Measures one step of a generation: `begin` before it, `at_update` when its gradients are complete, `finish` after
    it. All ranks measure the same step."""

    context: TrainContext
    _gradients: Mapping[int, int] | None = None

    def begin(self) -> None:
        """The step begins: the device's peak counts from here."""
        if self.context.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.context.device)

    def at_update(self) -> None:
        """Gradients are complete, and not used yet."""
        engine = self.context.engine
        self._gradients = _storages(_gradient_tensors(engine), engine.device)

    def finish(self) -> MemoryMeasured:
        """Of the ranks with the most, and what was predicted. Collective."""
        context, own = self.context, self._own()
        ranks = exchange_json(own)
        context.check_interrupted()
        names = [name for name in own if all(name in each for each in ranks)]
        measured = {name: max(optional(integer, each, name) or 0 for each in ranks) for name in names}
        return MemoryMeasured(measured, predicted_parts(context, len(ranks)))

    def _own(self) -> dict[str, int]:
        """Bytes of this rank. Activations are what the allocator's peak has beside the rest: a CPU has no allocator
        that could tell."""
        engine, device = self.context.engine, self.context.device
        parameters = _storages(_parameter_tensors(engine), device)
        state = _storages(_optimizer_tensors(engine), device)
        gradients = {place: size for place, size in (self._gradients or {}).items() if place not in parameters}
        optimizer = {place: size for place, size in state.items() if place not in parameters}
        parts = {
            PARAMETERS: sum(parameters.values()),
            GRADIENTS: sum(gradients.values()),
            OPTIMIZER: sum(optimizer.values()),
        }
        if device.type == "cuda":
            parts[ACTIVATIONS] = max(0, torch.cuda.max_memory_allocated(device) - sum(parts.values()))
        return parts


def predicted_parts(context: TrainContext, workers: int) -> dict[str, int]:
    """The planner's bytes on a worker's device, by the same parts."""
    spec = context.spec
    shape = shape_of(cast("PreTrainedModel", context.engine.module), context.size.parameters)
    zero = zero_memory(spec, shape, workers)
    tokens = context.plan.micro_batch * spec.data.sequence_length
    chunk = loss_chunk_tokens(spec.train.loss_chunk_tokens, tokens, shape.vocab_size)
    sample = activations(spec, shape, assumed_of(spec, shape).attention, chunk)
    return {
        PARAMETERS: zero.weights_bytes,
        GRADIENTS: zero.gradients_bytes + zero.accumulators_bytes,
        OPTIMIZER: zero.optimizer_bytes,
        ACTIVATIONS: context.plan.micro_batch * (sample.kept_bytes + sample.logits_bytes) + sample.loss_bytes,
    }


def _parameter_tensors(engine: Engine) -> Iterator[torch.Tensor]:
    for parameter in engine.module.parameters():
        yield parameter.ds_tensor.data if isinstance(parameter, PartitionedParameter) else parameter.data


def _gradient_tensors(engine: Engine) -> Iterator[torch.Tensor]:
    for parameter in engine.module.parameters():
        yield from _tensors(parameter.grad)
        yield from _tensors(getattr(parameter, "grad_accum", None))
    for name in _GRADIENT_HOLDERS:
        yield from _tensors(getattr(engine.optimizer, name, None))


def _optimizer_tensors(engine: Engine) -> Iterator[torch.Tensor]:
    optimizer = base_optimizer(engine)
    for group in optimizer.param_groups:
        yield from _tensors(group["params"])
    for name in _MASTER_HOLDERS:
        yield from _tensors(getattr(engine.optimizer, name, None))
    for state in optimizer.state.values():
        yield from _tensors(state)


def _tensors(found: object) -> Iterator[torch.Tensor]:
    """The tensors in nested dictionaries and lists."""
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, Mapping):
        yield from _tensors(list(found.values()))
    elif isinstance(found, list | tuple):
        for each in found:
            yield from _tensors(each)


def _storages(tensors: Iterable[torch.Tensor], device: torch.device) -> dict[int, int]:
    """Bytes of what these tensors are views of, by address; only what is on the kind of device."""
    storages = (each.untyped_storage() for each in tensors if each.device.type == device.type)
    return {storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}

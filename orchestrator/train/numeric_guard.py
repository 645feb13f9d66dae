"""The watch over a run's numbers: finds numeric faults on every rank alike, and answers them as the spec says."""

import math
from collections import deque

import torch

from orchestrator.data.samples.skipping_order import BatchOrder
from orchestrator.domain.errors import CheckpointError
from orchestrator.domain.events import FaultInjected, FaultKind, WarningIssued
from orchestrator.domain.policy.numeric import (
    Injection,
    NumericFault,
    SpikeBound,
    StepNumbers,
    TrainingDivergedError,
    find_fault,
)
from orchestrator.json_values import JsonObject, integer_rows, numbers, optional
from orchestrator.train.snapshot.checkpointing import SaveProgress
from orchestrator.train.step_reporting import StepOutcome
from orchestrator.train.train_context import TrainContext

SKIPS, LOSSES = "skips", "losses"
"""Keys of `SaveProgress.extra`."""


class NumericGuard:
    """Judges every step as soon as it is made: before a checkpoint, a snapshot or a report can be made of it.

    What it judges comes from the exchange between the ranks, so all come to the same answer without asking.
    """

    def __init__(self, context: TrainContext, start: SaveProgress, order: BatchOrder) -> None:
        spec = context.spec.recovery
        spike = spec.loss_spike
        self._context = context
        self._skips = [[first, end - first] for first, end in order.left_out]
        self._bound = SpikeBound(spike.deviations, spike.window) if spike is not None else None
        kept = optional(numbers, start.extra, LOSSES) if self._bound is not None else None
        self._losses: deque[float] = deque(kept or (), maxlen=spike.window if spike is not None else 0)
        mine = [each for each in context.plan.injections if each.rank == context.session.rank]
        self._injections = [each for each in mine if each.kind != "oom"]  # see `oom_injection`

    def check(self, outcome: StepOutcome) -> None:
        """Raises TrainingDivergedError at a fault, the same on every rank, unless `recovery.on_nan` is `continue`."""
        context = self._context
        numbers = StepNumbers(
            step=outcome.step,
            first_position=outcome.first_position,
            count=sum(facts.samples for facts in outcome.ranks),
            rank_losses=tuple(facts.loss_sum for facts in outcome.ranks),
            rank_targets=tuple(facts.targets for facts in outcome.ranks),
            loss=outcome.loss,
            grad_norm=outcome.grad_norm,
        )
        fault = find_fault(numbers, list(self._losses), self._bound, context.spec.train.precision == "fp16")
        if fault is not None and context.spec.recovery.on_nan != "continue":
            raise TrainingDivergedError(fault)
        if fault is not None and context.session.rank == 0:
            self._tell(fault)
        if math.isfinite(outcome.loss):  # one that is no number would poison every median after it
            self._losses.append(outcome.loss)

    def disturbed(self, step: int, micro_step: int, loss: torch.Tensor) -> torch.Tensor:
        """The loss, changed if a drill injects a fault into this rank at this step."""
        for injection in self._injections:
            if injection.step == step:
                if micro_step == 0:
                    self._own_up(injection)
                loss = loss * injection.factor
        return loss

    def extra(self) -> JsonObject:
        """What a later restore needs: JSON values, for `SaveProgress.extra`."""
        kept: JsonObject = {}
        if self._skips:
            kept[SKIPS] = self._skips
        if self._bound is not None:
            kept[LOSSES] = list(self._losses)
        return kept

    def _tell(self, fault: NumericFault) -> None:
        self._context.session.report_event(fault.event("continue"))
        done = "training continues" if fault.kind is FaultKind.SPIKE else "the update was left out, training continues"
        self._context.session.report_event(WarningIssued(f"{fault.text}: {done}"))

    def _own_up(self, injection: Injection) -> None:
        self._context.session.report_event(FaultInjected(injection.kind, injection.step, injection.rank))


def order_from(context: TrainContext, start: SaveProgress) -> BatchOrder:
    """The order of the batches, without what the plan leaves out and what the restored state knew to be left out.

    Raises CheckpointError if that state has seen samples that are left out.
    """
    known = [(first, count) for first, count in optional(integer_rows, start.extra, SKIPS) or ()]
    try:
        order = BatchOrder.of(context.global_batch, [*context.plan.skips, *known])
    except ValueError as error:
        raise CheckpointError(
            f"the skipped samples were recorded with another train.global_batch: {error}",
            hint="keep the global batch that the run had then",
        ) from error
    if order.left_out and not order.follows(start.step, start.position):
        raise CheckpointError(
            f"the state of step {start.step} continues at position {start.position} of the samples, but the run's "
            f"order at {order.first_position(start.step + 1)}: it was saved before samples were left out, and has "
            "seen them",
            hint="resume from an older checkpoint",
        )
    return order

"""Validation loss: the exact mean over the target tokens of the validation samples, whatever the number of workers."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from orchestrator.domain.events import EvalFinished
from orchestrator.domain.policy.hang import Phase
from orchestrator.train.models.tasks import Batch
from orchestrator.train.train_context import TrainContext


@dataclass(frozen=True)
class Evaluation:
    """One measurement. `loss` in nats per target token."""

    loss: float
    targets: int
    seconds: float

    def event(self, step: int) -> EvalFinished:
        """The event that reports it. Perplexity is None if it is too large for a double."""
        perplexity = math.exp(self.loss) if self.loss < 700 else None
        return EvalFinished(step, self.loss, perplexity, self.targets, self.seconds)


def evaluate(context: TrainContext, step: int) -> Evaluation | None:
    """Measure, after `step`; None if the data has no validation samples. Collective. Leaves the model in training
    mode."""
    validation = context.spec.data.validation
    samples = context.dataset.manifest.validation_samples
    if validation is None or samples == 0:
        return None
    started = time.perf_counter()
    total = torch.zeros(2, dtype=torch.float64, device=context.device)
    context.session.beat(step, Phase.EVAL)  # before the first samples are read
    context.engine.eval()
    try:
        with torch.no_grad():
            for batch in _batches(context, min(samples, validation.max_samples)):
                context.session.beat(step, Phase.EVAL)
                total[0] += context.task.loss(context.engine, batch.to(context.device)).double()
                total[1] += batch.targets
    finally:
        context.engine.train()
    if dist.get_world_size() > 1:
        dist.all_reduce(total)
    loss_sum, targets = total.tolist()
    context.check_interrupted()
    return Evaluation(loss_sum / max(targets, 1.0), int(targets), time.perf_counter() - started)


def _batches(context: TrainContext, samples: int) -> Iterator[Batch]:
    """This rank's micro batches; the same number on every rank, since forward passes are collective at stage 3."""
    world_size, rank, micro = context.session.world_size, context.session.rank, context.plan.micro_batch
    base, extra = divmod(samples, world_size)
    share = base + (1 if rank < extra else 0)
    first = rank * base + min(rank, extra)
    rounds = -(-(base + (1 if extra else 0)) // micro)
    for index in range(rounds):
        count = min(micro, share - index * micro)
        if count > 0:
            yield context.task.batch(context.dataset.validation(first + index * micro, count))
        else:
            yield context.task.empty()

"""From the ranks' facts of a step to its `StepReport`."""

import math
from dataclasses import dataclass

import torch

from orchestrator.data.samples.dataset import DIGEST_MODULUS
from orchestrator.domain.ranks.rank_summary import every_rank_due, summarise
from orchestrator.domain.session import Leave
from orchestrator.domain.step_report import StepReport
from orchestrator.train.collectives.exchange import RankStep
from orchestrator.train.models.flops import flops_per_token, peak_flops, utilisation
from orchestrator.train.train_context import TrainContext


@dataclass(frozen=True)
class StepOutcome:
    """One optimizer step, known alike on every rank."""

    step: int
    first_position: int
    lr: float
    grad_norm: float
    ranks: tuple[RankStep, ...]
    loss_scale: float | None = None
    """See `StepReport`."""
    skipped: bool = False
    """See `StepReport`."""

    @property
    def targets(self) -> int:
        return sum(r.targets for r in self.ranks)

    @property
    def loss(self) -> float:
        """Mean over the target tokens of the global batch, in nats."""
        return math.fsum(r.loss_sum for r in self.ranks) / max(self.targets, 1)

    @property
    def leave(self) -> Leave:
        """What some rank was asked."""
        return max(r.leave for r in self.ranks)

    @property
    def save(self) -> bool:
        """Some rank was asked to have a checkpoint written."""
        return any(r.save for r in self.ranks)

    @property
    def targets_ahead(self) -> int | None:
        """Targets of the next step's global batch; None: some rank has not prepared its part yet."""
        ahead = [r.targets_ahead for r in self.ranks]
        return sum(ahead) if min(ahead) >= 0 else None

    @property
    def replicated_step(self) -> int:
        """The newest step that all ranks' vaults hold all copies of; -1: none; -2: some rank has no vault yet."""
        return min(r.replicated_step for r in self.ranks)


def step_report(
    context: TrainContext, outcome: StepOutcome, step_time_s: float, checkpoint_s: float, now_s: float, first: bool
) -> StepReport:
    """The report of a finished step. `first`: of this gang's first one."""
    plan, world_size = context.plan, len(outcome.ranks)
    tokens = sum(r.tokens for r in outcome.ranks)
    samples = sum(r.samples for r in outcome.ranks)
    per_second = tokens / step_time_s
    flops = flops_per_token(context.size, context.dataset.manifest.sequence_length) * per_second
    ranks = [r.report(rank, checkpoint_s) for rank, r in enumerate(outcome.ranks)]
    peak = None
    if context.device.type == "cuda":
        peak = peak_flops(torch.cuda.get_device_name(context.device), context.spec.train.precision)
    return StepReport(
        step=outcome.step,
        time_s=now_s,
        epoch=context.dataset.epoch_at(outcome.first_position + samples),
        loss=outcome.loss,
        grad_norm=outcome.grad_norm if math.isfinite(outcome.grad_norm) else None,
        lr=outcome.lr,
        tokens=tokens,
        target_tokens=outcome.targets,
        samples=samples,
        first_position=outcome.first_position,
        data_digest=sum(r.digest for r in outcome.ranks) % DIGEST_MODULUS,
        step_time_s=step_time_s,
        tokens_per_s=per_second,
        tokens_per_s_per_worker=per_second / world_size,
        tflops_per_s=flops / 1e12,
        mfu=utilisation(flops, peak, world_size),
        world_size=world_size,
        micro_batch=plan.micro_batch,
        accumulation=plan.accumulation,
        protected_step=outcome.replicated_step if outcome.replicated_step >= 0 else None,
        positions=sum(r.positions for r in outcome.ranks),
        ranks=summarise(ranks, every_rank_due(outcome.step, world_size, first)),
        loss_scale=outcome.loss_scale,
        skipped=outcome.skipped,
    )

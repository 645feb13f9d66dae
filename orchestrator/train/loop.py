"""The step loop: data, micro steps, update, exchange, report; evaluation and checkpoints where they are due."""

import time
from dataclasses import dataclass

import torch

from orchestrator.domain.events import EventKind
from orchestrator.domain.report import PhaseTimes
from orchestrator.domain.session import Leave
from orchestrator.train.checkpointing import Progress, save_checkpoint
from orchestrator.train.context import TrainContext
from orchestrator.train.engine import Stepper, set_learning_rate
from orchestrator.train.evaluation import Evaluation, evaluate
from orchestrator.train.exchange import RankStep, exchange, global_sum
from orchestrator.train.feed import Feed, StepBatch
from orchestrator.train.memory import rank_memory
from orchestrator.train.protection import Protection
from orchestrator.train.reporting import StepOutcome, check_finite, step_report
from orchestrator.train.schedule import learning_rate
from orchestrator.train.timing import phase_clock


@dataclass(frozen=True)
class LoopResult:
    """How training ended."""

    step: int
    finished: bool
    loss: float | None
    """Training loss of the last step made here; None where there was none left to make."""
    evaluation: Evaluation | None
    """Of the last step, where the run has validation data."""
    checkpoint: str | None
    """Path of the newest checkpoint written here, as the driver sees it."""
    regroup: bool = False
    """Left for the gang to be formed anew; the state of `step` is kept."""


class TrainLoop:
    """Trains from `start` to the plan's last step, or until a rank is asked to stop."""

    def __init__(self, context: TrainContext, start: Progress) -> None:
        self._context = context
        self._start = start
        self._stepper = Stepper(context.spec, context.engine, context.session.world_size)
        self._clock = phase_clock(context.device)
        self._checkpoint: str | None = None
        self._evaluation: Evaluation | None = None
        self._protection = Protection(context)

    def run(self) -> LoopResult:
        """Collective: every rank runs it, and every rank leaves it after the same step."""
        context, start = self._context, self._start
        if start.step == 0:
            self._evaluate(0)
        steps = range(start.step + 1, context.plan.total_steps + 1)
        pin = context.device.type == "cuda"
        feed = Feed(context.dataset, context.task, context.shape, context.session.rank, steps, start.position, pin)
        outcome: StepOutcome | None = None
        try:
            for step in steps:
                outcome = self._step(step, feed)
                if outcome.leave is not Leave.NO:
                    break
        finally:
            feed.close()
            self._protection.close()
        step = outcome.step if outcome is not None else start.step
        loss = outcome.loss if outcome is not None else None
        finished = step >= context.plan.total_steps
        regroup = not finished and outcome is not None and outcome.leave is Leave.REGROUP
        return LoopResult(step, finished, loss, self._evaluation, self._checkpoint, regroup)

    def _step(self, step: int, feed: Feed) -> StepOutcome:
        """One optimizer step and what is due after it."""
        context, started = self._context, time.perf_counter()
        batch = feed.take()
        wait_s = time.perf_counter() - started
        outcome = self._update(batch, wait_s, started)
        step_time_s = time.perf_counter() - started
        check_finite(outcome, context.spec.train.precision)
        checkpoint_s = 0.0
        kept = self._protection.after_step(outcome)
        if self._checkpoint_due(outcome) or (outcome.leave is Leave.REGROUP and not kept):
            checkpoint_s = self._save(outcome)
        if context.session.rank == 0:
            total_s = step_time_s + checkpoint_s
            report = step_report(context, outcome, total_s, checkpoint_s, time.time())
            context.session.report_step(report)
            self._protection.keep_report(report)
        if self._evaluation_due(step):
            self._evaluate(step)
        return outcome

    def _update(self, batch: StepBatch, wait_s: float, started: float) -> StepOutcome:
        """Forward, backward and update; then every rank learns of every other."""
        context, engine, clock = self._context, self._context.engine, self._clock
        global_targets = global_sum(batch.targets, context.device)
        lr = learning_rate(context.spec.train, context.plan.total_steps, batch.step)
        set_learning_rate(engine, lr)
        loss_sum = torch.zeros((), dtype=torch.float64, device=context.device)
        for micro_step, micro_batch in enumerate(batch.micro_batches):
            self._seed(batch.step, micro_step)
            on_device = micro_batch.to(context.device)
            with clock.phase("forward"):
                loss = context.task.loss(engine, on_device)
            loss_sum += loss.detach()
            with clock.phase("backward"):
                self._stepper.backward(loss, global_targets)
            del loss
            with clock.phase("optimizer"):
                self._stepper.step()
        ranks = exchange(self._facts(batch, wait_s, float(loss_sum), started), context.device)
        return StepOutcome(batch.step, batch.first_position, lr, self._stepper.grad_norm(), tuple(ranks))

    def _facts(self, batch: StepBatch, wait_s: float, loss_sum: float, started: float) -> RankStep:
        seconds = self._clock.seconds()
        snapshot_s = self._protection.spent_s()
        phases = PhaseTimes(wait_s, seconds["forward"], seconds["backward"], seconds["optimizer"], 0.0, snapshot_s)
        return RankStep(
            loss_sum=loss_sum,
            targets=batch.targets,
            tokens=batch.tokens,
            samples=batch.samples,
            digest=batch.digest,
            phases=phases,
            memory=rank_memory(self._context.device),
            leave=self._context.session.leave(),
            replicated_step=self._protection.replicated_step,
            step_s=time.perf_counter() - started,
        )

    def _seed(self, step: int, micro_step: int) -> None:
        """Dropout is a function of (seed, step, micro step, rank): resuming needs no saved random state."""
        value = self._context.spec.train.seed
        for part in (step, micro_step, self._context.session.rank):
            # Multiplier of SplitMix64's stream; keeps neighbours apart.
            value = (value * 0x9E3779B97F4A7C15 + part + 1) % 2**63
        # `torch.manual_seed` also queues a seed, with a stack trace, for every kind of device that was never used.
        torch.default_generator.manual_seed(value)
        if self._context.device.type == "cuda":
            torch.cuda.manual_seed(value)

    def _evaluation_due(self, step: int) -> bool:
        interval = self._context.spec.train.eval_interval_steps
        return step == self._context.plan.total_steps or (interval is not None and step % interval == 0)

    def _evaluate(self, step: int) -> None:
        evaluation = evaluate(self._context)
        self._evaluation = evaluation
        if evaluation is not None and self._context.session.rank == 0:
            self._context.session.report_event(EventKind.EVAL, evaluation.fields(step))

    def _checkpoint_due(self, outcome: StepOutcome) -> bool:
        checkpoint, last = self._context.spec.checkpoint, self._context.plan.total_steps
        on_interval = checkpoint.interval_steps is not None and outcome.step % checkpoint.interval_steps == 0
        # An export is made from a checkpoint.
        at_end = outcome.step == last and (checkpoint.at_end or self._context.plan.export)
        return on_interval or at_end or outcome.leave is Leave.STOP

    def _save(self, outcome: StepOutcome) -> float:
        """Write a checkpoint; the seconds it took. Collective."""
        context = self._context
        started = time.perf_counter()
        progress = Progress(step=outcome.step, position=outcome.first_position + context.global_batch)
        saved = save_checkpoint(
            context.engine,
            context.session,
            context.plan.run_dir,
            outcome.step,
            progress,
            context.spec.checkpoint.keep_last,
            context.spec.checkpoint.keep_every,
        )
        self._checkpoint = saved.path
        if context.session.rank == 0:
            context.session.report_event(
                EventKind.CHECKPOINT_SAVED,
                {
                    "step": outcome.step,
                    "path": saved.path,
                    "bytes": saved.size_bytes,
                    "seconds": saved.seconds,
                    "world_size": context.session.world_size,
                    "stage": context.spec.zero.stage,
                },
            )
        return time.perf_counter() - started

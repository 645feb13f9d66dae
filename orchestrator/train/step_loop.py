"""The step loop: data, micro steps, update, exchange, report; evaluation and checkpoints when they are due."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from orchestrator.checkpoint.storage.retention import TRAINING_LOSS, VALIDATION_LOSS, Rule
from orchestrator.checkpoint.storage.storage import Storage, StorageError, open_storage
from orchestrator.domain.events import CheckpointFailed, CheckpointSaved, CheckpointStarted, WarningIssued
from orchestrator.domain.policy.hang import Phase
from orchestrator.domain.policy.replay import check_replay
from orchestrator.domain.ranks.rank_report import CollectiveTimes, PhaseTimes
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.session import Leave
from orchestrator.json_values import JsonObject
from orchestrator.train.batch_feed import Feed, StepBatch
from orchestrator.train.collectives.collective_timer import CollectiveTimer
from orchestrator.train.collectives.exchange import RankStep, exchange, global_sum, read_numbers
from orchestrator.train.engine.engine import Stepper, set_learning_rate
from orchestrator.train.engine.memory_parts import MemoryProbe
from orchestrator.train.engine.oom_injection import OomInjection
from orchestrator.train.engine.process_memory import rank_memory
from orchestrator.train.evaluation import Evaluation, evaluate
from orchestrator.train.lr_schedule import learning_rate
from orchestrator.train.micro_step_cost import MEASURED_STEP, measure_micro_step
from orchestrator.train.numeric_guard import NumericGuard, order_from
from orchestrator.train.snapshot.checkpointing import SaveProgress, save_checkpoint
from orchestrator.train.snapshot.snapshot_policy import SnapshotPolicy
from orchestrator.train.step_reporting import StepOutcome, step_report
from orchestrator.train.step_timing import PHASES, phase_clock
from orchestrator.train.train_context import TrainContext

LAST_SAVE_PAUSE_S = 0.5
LAST_SAVE_PAUSES = (2, 8, 30)
"""Pauses between attempts to save the last step: without it the run has no result."""


@dataclass(frozen=True)
class LoopResult:
    """How training ended."""

    step: int
    finished: bool
    loss: float | None
    """Training loss of the last step made here; None if there was none left to make."""
    evaluation: Evaluation | None
    """Of the last step, if the run has validation data."""
    checkpoint: str | None
    """Path or URL of the newest checkpoint written here, as the driver sees it."""
    regroup: bool = False
    """Left so that the gang can be formed again; the state of `step` is kept."""
    unsaved: str | None = None
    """Why there is no checkpoint of the plan's last step, which was to have one."""


class TrainLoop:
    """Trains from `start` to the plan's last step, or until a rank is asked to stop."""

    def __init__(self, context: TrainContext, start: SaveProgress) -> None:
        self._context = context
        self._start = start
        self._stepper = Stepper(context.spec, context.engine, context.session.world_size)
        self._clock = phase_clock(context.device, CollectiveTimer())
        self._order = order_from(context, start)
        self._watch = NumericGuard(context, start, self._order)
        self._scarcity = OomInjection(context)
        self._protection = SnapshotPolicy(context, self._order, self._watch.extra)
        self._memory = MemoryProbe(context)
        self._targets_ahead: int | None = None
        """Targets of the coming step's global batch, if the last exchange contained them."""
        self._checkpoint: str | None = None
        self._evaluation: Evaluation | None = None
        self._unsaved: str | None = None
        storage = context.spec.checkpoint.storage
        place = RunLayout(Path(context.plan.run_dir)).checkpoint_place(storage)
        self._storage = open_storage(place) if storage is not None else None
        self._place = place

    def run(self) -> LoopResult:
        """Collective: every rank runs it, and every rank leaves it after the same step."""
        with self._clock.running():
            return self._run()

    def _run(self) -> LoopResult:
        context, start = self._context, self._start
        if start.step == 0:
            self._evaluate(0)
        steps = range(start.step + 1, context.plan.total_steps + 1)
        pin = context.device.type == "cuda"
        begins = ((step, self._order.advance(start.position, index)) for index, step in enumerate(steps))
        feed = Feed(context.dataset, context.task, context.shape, context.session.rank, begins, pin)
        outcome: StepOutcome | None = None
        try:
            if not steps:
                self._save_restored()
            for step in steps:
                outcome = self._step(step, feed)
                if outcome.leave is not Leave.NO:
                    break
            self._protection.flush()
        finally:
            feed.close()
            self._protection.close()
        step = outcome.step if outcome is not None else start.step
        context.session.beat(step, Phase.FINISH)
        loss = outcome.loss if outcome is not None else None
        finished = step >= context.plan.total_steps
        regroup = not finished and outcome is not None and outcome.leave.regroup
        unsaved = self._unsaved if finished and self._saves_last else None
        return LoopResult(step, finished, loss, self._evaluation, self._checkpoint, regroup, unsaved)

    def _step(self, step: int, feed: Feed) -> StepOutcome:
        """One optimizer step and what is due after it."""
        context, started = self._context, time.perf_counter()
        beat = context.session.beat
        beat(step, Phase.DATA)
        batch = feed.take()
        wait_s = time.perf_counter() - started
        outcome = self._update(batch, feed, wait_s, started)
        step_time_s = time.perf_counter() - started
        if self._measures_memory(step):
            measured = self._memory.finish()
            if context.session.rank == 0:
                context.session.report_event(measured)
        self._watch.check(outcome)  # before anything is saved or told of this step
        check_replay(context.plan.expected, outcome.step, outcome.loss, outcome.grad_norm)
        checkpoint_s = 0.0
        beat(step, Phase.SNAPSHOT)
        kept = self._protection.after_step(outcome)
        context.check_interrupted()
        due = self._checkpoint_due(outcome) or (outcome.leave.regroup and not kept)
        # A checkpoint says how good its weights are: then it is measured before, else after the step is reported.
        evaluate_first = self._evaluation_due(step) and due
        if evaluate_first:
            self._evaluate(step)
        if due:
            beat(step, Phase.CHECKPOINT)
            checkpoint_s = self._save(outcome, evaluate_first)
        if context.session.rank == 0:
            total_s = step_time_s + checkpoint_s
            first = step == self._start.step + 1
            report = step_report(context, outcome, total_s, checkpoint_s, time.time(), first)
            context.session.report_step(report)
            self._protection.keep_report(report)
        if step == self._start.step + MEASURED_STEP:
            measure_micro_step(context, outcome)
        if self._evaluation_due(step) and not evaluate_first:
            self._evaluate(step)
        return outcome

    def _update(self, batch: StepBatch, feed: Feed, wait_s: float, started: float) -> StepOutcome:
        """Forward, backward and update; then every rank learns of every other.

        The host waits for the device twice: for the loss and the norm, and for what the ranks exchanged.
        """
        context, engine, clock = self._context, self._context.engine, self._clock
        beat, step = context.session.beat, batch.step
        clock.begin(step)
        if self._measures_memory(step):
            self._memory.begin()
        global_targets = self._global_targets(batch)
        lr = learning_rate(context.spec.train, context.plan.total_steps, step)
        set_learning_rate(engine, lr)
        loss_sum = torch.zeros((), dtype=torch.float64, device=context.device)
        with self._scarcity.at(step):
            for micro_step, micro_batch in enumerate(batch.micro_batches):
                self._seed(step, micro_step)
                on_device = micro_batch.to(context.device)
                beat(step, Phase.FORWARD)
                with clock.phase("forward"):
                    loss = self._watch.disturbed(batch.step, micro_step, context.task.loss(engine, on_device))
                loss_sum += loss.detach()
                beat(step, Phase.BACKWARD)
                with clock.phase("backward"):
                    self._stepper.backward(loss, global_targets)
                del loss
                beat(step, Phase.OPTIMIZER)
                with clock.phase("optimizer"):
                    self._stepper.step(self._before_update(step))
        summed, grad_norm = read_numbers((loss_sum, self._stepper.grad_norm()), context.device)
        ahead = feed.targets_ahead()
        facts = self._facts(batch, wait_s, summed, -1 if ahead is None else ahead, started)
        beat(step, Phase.EXCHANGE)
        packed = exchange(facts, context.device)
        context.check_interrupted()
        ranks = tuple(RankStep.unpack(row) for row in packed)
        stepper = self._stepper
        skipped = stepper.skipped or not math.isfinite(grad_norm)
        outcome = StepOutcome(step, batch.first_position, lr, grad_norm, ranks, stepper.loss_scale, skipped)
        self._targets_ahead = outcome.targets_ahead
        return outcome

    def _measures_memory(self, step: int) -> bool:
        """The second step of a generation: in the first one Adam has no moments until its end."""
        return step == self._start.step + 2

    def _before_update(self, step: int) -> Callable[[], None]:
        """What is done when a step's gradients are complete."""
        if not self._measures_memory(step):
            return self._protection.fence

        def measured() -> None:
            self._memory.at_update()
            self._protection.fence()

        return measured

    def _global_targets(self, batch: StepBatch) -> int:
        """Targets of all ranks in this step. Collective if the last exchange did not contain it: in a generation's
        first step, and after one in which some rank did not have its next batch yet."""
        if self._targets_ahead is not None:
            return self._targets_ahead
        self._context.session.beat(batch.step, Phase.EXCHANGE)
        return global_sum(batch.targets, self._context.device)

    def _facts(self, batch: StepBatch, wait_s: float, loss_sum: float, ahead: int, started: float) -> RankStep:
        """Of this rank. The device has done the step: its clock is read without waiting."""
        seconds, waited = self._clock.seconds(), self._clock.waited()
        snapshot_s = self._protection.spent_s()
        self._protection.follow()
        phases = PhaseTimes(wait_s, seconds["forward"], seconds["backward"], seconds["optimizer"], 0.0, snapshot_s)
        return RankStep(
            loss_sum=loss_sum,
            targets=batch.targets,
            tokens=batch.tokens,
            samples=batch.samples,
            digest=batch.digest,
            phases=phases,
            waits=CollectiveTimes(*(waited.get(name, 0.0) for name in PHASES)),
            memory=rank_memory(self._context.device),
            leave=self._context.session.leave(),
            save=self._context.session.save_asked(),
            replicated_step=self._protection.replicated_step,
            step_s=time.perf_counter() - started,
            targets_ahead=ahead,
            positions=batch.positions,
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
        evaluation = evaluate(self._context, step)
        self._evaluation = evaluation
        if evaluation is not None and self._context.session.rank == 0:
            self._context.session.report_event(evaluation.event(step))

    @property
    def _saves_last(self) -> bool:
        """Whether the last step is to have a checkpoint; an export is made from it."""
        return self._context.spec.checkpoint.at_end or self._context.plan.export

    def _checkpoint_due(self, outcome: StepOutcome) -> bool:
        checkpoint, last = self._context.spec.checkpoint, self._context.plan.total_steps
        every = checkpoint.interval_steps
        on_interval = outcome.save if every == "auto" else every != "never" and outcome.step % every == 0
        at_end = outcome.step == last and self._saves_last
        return on_interval or at_end or outcome.leave in (Leave.PARK, Leave.STOP)

    def _save(self, outcome: StepOutcome, evaluated: bool) -> float:
        """Write a checkpoint; the seconds it took. Collective. Failing storage is reported, and training continues."""
        context = self._context
        started = time.perf_counter()
        validation = self._evaluation.loss if evaluated and self._evaluation is not None else None
        extra = {**self._watch.extra(), TRAINING_LOSS: outcome.loss, VALIDATION_LOSS: validation}
        progress = SaveProgress(outcome.step, self._order.advance(outcome.first_position, 1), extra)
        asked_to_end = outcome.leave is not Leave.NO or outcome.step >= context.plan.total_steps
        if not asked_to_end and self._store(outcome, extra, started):
            return time.perf_counter() - started
        if not (self._saves_last and outcome.step >= context.plan.total_steps and outcome.leave is Leave.NO):
            self._try_to_save(progress, self._storage)
        elif not self._save_at_last(progress):
            self._protection.keep(outcome)  # for a driver that goes on from the vaults
        return time.perf_counter() - started

    def _save_restored(self) -> None:
        """The restored state is that of the last step: save it as a checkpoint, unless it came from one. Collective."""
        context, start = self._context, self._start
        if not self._saves_last or context.plan.resume_from is not None:
            return
        if self._evaluation_due(start.step):
            self._evaluate(start.step)
        context.session.beat(start.step, Phase.CHECKPOINT)
        validation = self._evaluation.loss if self._evaluation is not None else None
        extra = {**start.extra, **self._watch.extra(), VALIDATION_LOSS: validation}
        self._save_at_last(SaveProgress(start.step, start.position, extra))

    def _save_at_last(self, progress: SaveProgress) -> bool:
        """Write the last checkpoint with retries, if necessary into the run's directory; return whether it is written.
        Collective."""
        session = self._context.session
        for pauses in (*LAST_SAVE_PAUSES, 0):
            if self._try_to_save(progress, self._storage):
                return True
            for _ in range(pauses):
                time.sleep(LAST_SAVE_PAUSE_S)
                session.beat(progress.step, Phase.CHECKPOINT)  # every rank as often: it is counted, not timed
        if self._storage is None or not self._try_to_save(progress, None):
            return False
        if session.rank == 0:
            message = f"storage {self._place} fails: the checkpoint of step {progress.step} is in the run's directory"
            session.report_event(WarningIssued(message))
        return True

    def _try_to_save(self, progress: SaveProgress, storage: Storage | None) -> bool:
        """Write a checkpoint into a storage, or the run's directory; whether that went well. Collective."""
        context, spec, started = self._context, self._context.spec.checkpoint, time.perf_counter()
        try:
            saved = save_checkpoint(
                context.engine,
                context.session,
                context.plan.run_dir,
                progress.step,
                progress,
                Rule(spec.keep_last, spec.keep_every, spec.keep_best),
                storage,
                writing=self._protection.stored,
                lease=context.plan.lease,
            )
        except StorageError as error:
            self._unsaved = error.message
            place = self._place if storage is self._storage else str(RunLayout(Path(context.plan.run_dir)).checkpoints)
            self._report_failure(progress.step, place, error, time.perf_counter() - started)
            return False
        self._checkpoint, self._unsaved = saved.path, None
        if context.session.rank == 0:
            event = CheckpointSaved(
                step=progress.step,
                path=saved.path,
                bytes=saved.size_bytes,
                seconds=saved.seconds,
                world_size=context.session.world_size,
                stage=context.spec.zero.stage,
            )
            context.session.report_event(event)
        return True

    def _store(self, outcome: StepOutcome, extra: JsonObject, started: float) -> bool:
        """Leave the writing to the vaults; whether they do. Collective."""
        context = self._context
        if not self._protection.store(outcome, self._place, extra):
            return False
        if context.session.rank == 0:
            event = CheckpointStarted(
                step=outcome.step,
                place=self._place,
                world_size=context.session.world_size,
                stage=context.spec.zero.stage,
                seconds=time.perf_counter() - started,
            )
            context.session.report_event(event)
        return True

    def _report_failure(self, step: int, place: str, error: StorageError, seconds: float) -> None:
        if self._context.session.rank == 0:
            event = CheckpointFailed(step, place, error.message, error.fault.value, seconds)
            self._context.session.report_event(event)

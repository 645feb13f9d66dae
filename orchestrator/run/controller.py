"""The run controller: from connecting to a cluster to the final state, through failures, numeric faults and changes of
size. It decides with the pure policies of `domain.policy`, and asks a `WorkerGroup` to act."""

from dataclasses import dataclass, replace
from typing import Protocol

from orchestrator.checkpoint.format.exported import clear_unfinished
from orchestrator.data.prepare import PreparedData, cache_directory
from orchestrator.domain.events import (
    CheckpointSaved,
    Event,
    FaultInjected,
    GangResized,
    GangWaiting,
    ModelExported,
    RecoveryFinished,
    RecoveryStarted,
    RunState,
    TrainingPlanned,
    WarningIssued,
    WorkerPhase,
)
from orchestrator.domain.generation import GenerationOutcome, Shortage, WorkerFailure
from orchestrator.domain.policy.failure_budget import Budget, RunFailure, Verdict, judge
from orchestrator.domain.policy.numeric import NumericFault, Refusal
from orchestrator.domain.session import TrainPlan
from orchestrator.domain.step_report import StepReport
from orchestrator.planner.batch_shape import total_steps
from orchestrator.planner.gpu_fit import GpuFit
from orchestrator.planner.model_shape import model_shape
from orchestrator.planner.train_plan import DataFacts, PlanLimits, train_plan
from orchestrator.run.ending import Ended, after_last_step, gave_up, stopped, with_hint
from orchestrator.run.group_protocol import WorkerGroup
from orchestrator.run.memory_checkpoints import MemoryCheckpoints
from orchestrator.run.restore_points import RestorePoint, RestorePoints
from orchestrator.run.run_context import RunContext
from orchestrator.run.run_progress import RunProgress
from orchestrator.run.state_machine import RunStateMachine
from orchestrator.store.rollback import Rollback, answer_fault
from orchestrator.store.skip_file import read_skips


@dataclass(frozen=True)
class Prepared:
    """All that training needs besides a plan."""

    entry: str
    """The workers' entry point."""
    data: PreparedData
    workers: int
    """Of the first generation."""
    origin: RestorePoint
    """What storage has, or the beginning."""
    adopted_at_step: int | None = None
    """Vaults of an earlier driver were adopted; the last step on record then. None: there were none."""


class Preparation(Protocol):
    """What happens before training."""

    def open(self, points: RestorePoints) -> None:
        """Before anything is started: look for checkpoints, report the run. Raises CheckpointError."""

    def run(self, group: WorkerGroup, fit: GpuFit) -> Prepared | None:
        """Connect, adopt, start workers, prepare data. None: stopped meanwhile. Raises ConvoyError."""

    def record(self, data: PreparedData, step: int) -> None:
        """Training is about to continue after `step` with this data."""


class RunController:
    """Drives one run. It is an observer of the workers' events and steps; everything else is for one thread."""

    def __init__(
        self,
        run: RunContext,
        group: WorkerGroup,
        progress: RunProgress,
        states: RunStateMachine,
        memory: MemoryCheckpoints,
    ) -> None:
        self._run, self._group = run, group
        self._progress, self._states, self._memory = progress, states, memory
        self._points = RestorePoints(run, progress, group.survey)
        self._fit = GpuFit(run.spec, run.emit)
        recovery = run.spec.recovery
        self._budget = Budget(recovery.max_failures, recovery.max_without_progress)
        self._failures: list[RunFailure] = []
        self._micro_batch = run.spec.train.global_batch
        """The largest that training may use: out of memory halves it."""
        self._total_steps = 0

    def drive(self, preparation: Preparation) -> Ended:
        """Prepare, train, and release the group. Raises what `preparation` and the group raise."""
        preparation.open(self._points)
        self._states.begin()
        ended: Ended | None = None
        try:
            prepared = preparation.run(self._group, self._fit)
            ended = stopped() if prepared is None else self._train(prepared, preparation)
            return ended
        finally:
            self._memory.end(self._group, succeeded=ended is not None and ended.state is RunState.SUCCEEDED)
            self._group.close()

    def on_event(self, event: Event) -> None:
        """Take an event of the workers."""
        progress = self._progress
        match event.body:
            case CheckpointSaved() as saved:
                progress.checkpoint_saved(saved.step)
            case FaultInjected() as injected:
                progress.injected(injected.fault, injected.step, injected.rank)
            case TrainingPlanned() as plan:
                progress.world_size = plan.world_size
            case ModelExported():
                self._recovered(progress.step, progress.world_size, event.time_s)  # no step was left
            case WorkerPhase(phase="train"):
                if self._states.state in (RunState.STARTING, RunState.RECOVERING):
                    self._states.enter(RunState.RUNNING)

    def on_step(self, report: StepReport) -> None:
        """Take the report of a step."""
        self._progress.take_step(report)
        self._recovered(report.step, report.world_size, report.time_s)

    def _recovered(self, step: int, world_size: int, time_s: float) -> None:
        recovery = self._progress.end_recovery()
        if recovery is not None:
            finished = RecoveryFinished(
                incident=recovery.incident,
                step=step,
                world_size=world_size,
                seconds=time_s - recovery.detected_s,
                steps_recomputed=recovery.steps_recomputed,
            )
            self._run.emit(finished)

    def _train(self, prepared: Prepared, preparation: Preparation) -> Ended:
        run, data = self._run, prepared.data
        self._states.enter(RunState.STARTING)
        self._total_steps = total_steps(run.spec.train, data.manifest.train_samples, run.spec.data.sequence_length)
        origin = self._first_origin(prepared)
        preparation.record(data, origin.step)
        return self._generations(prepared, origin)

    def _first_origin(self, prepared: Prepared) -> RestorePoint:
        progress, origin = self._progress, prepared.origin
        if prepared.adopted_at_step is None:
            progress.furthest = origin.step
        else:
            progress.furthest = prepared.adopted_at_step
            origin = self._newest()
            progress.step = origin.step
        return origin

    def _generations(self, prepared: Prepared, origin: RestorePoint) -> Ended:
        """One generation of workers after the other, until the end."""
        run, progress, data, workers = self._run, self._progress, prepared.data, prepared.workers
        readable = (str(data.directory), str(cache_directory(run.spec, run.store.home)))
        while True:
            plan = self._plan(data, workers, origin)
            outcome = self._group.train(prepared.entry, plan, readable, run.bus)
            if outcome is None or run.stop.is_set():
                return self._ended(outcome, plan)
            progress.generation_ended(outcome.step)
            if outcome.failure is None and not outcome.regroup:
                return self._ended(outcome, plan)
            answer = self._newest() if outcome.failure is None else self._answer(outcome, outcome.failure, plan)
            if isinstance(answer, Ended):
                return answer
            formed = self._reform()
            if formed is None:
                return stopped()
            size, waited = formed
            origin = self._newest() if waited else answer  # the vaults may hold another state after a wait
            if outcome.regroup:
                run.emit(GangResized(outcome.step, workers, size))
            workers = size

    def _newest(self) -> RestorePoint:
        return self._points.newest(self._total_steps)

    def _plan(self, data: PreparedData, workers: int, origin: RestorePoint) -> TrainPlan:
        run, group, progress = self._run, self._group, self._progress
        facts = DataFacts(str(data.directory.absolute()), data.manifest.train_samples, data.manifest.vocab_size)
        config = run.model_config()
        clear_unfinished(run.layout)
        shape = model_shape(config, facts.vocab_size)
        kept_bytes, room = self._memory.plan(group, shape), group.device_room()
        self._fit.check(workers, room, shape)
        limits = PlanLimits(group.memory_per_worker_bytes(workers) - kept_bytes, self._micro_batch, room)
        plan = train_plan(run.spec, str(run.layout.root), facts, config, workers, limits)
        self._fit.tell(workers, room, shape, plan.micro_batch)
        return replace(
            plan,
            lease=run.lease.token,
            resume_from=origin.checkpoint,
            peer_state=origin.peers,
            skips=tuple((skip.first, skip.count) for skip in read_skips(run.layout)),
            injections=progress.injections,
            expected=progress.records.get(origin.step + 1) if origin.step else None,
        )

    def _reform(self) -> tuple[int, bool] | None:
        """How many workers the next generation has, and whether it had to wait for them; None if stopped."""
        run, progress, began_s, waited = self._run, self._progress, self._run.clock.unix_s(), False

        def waits(shortage: Shortage | None) -> None:
            nonlocal waited
            if shortage is None:
                state = RunState.STARTING if progress.recovery is None else RunState.RECOVERING
                self._states.enter(state, "enough workers are available")
                return
            waited = True
            have, need = shortage.have, shortage.need
            self._states.enter(
                RunState.WAITING, f"waiting for nodes: {have} of {need} required worker{_s(need)} available"
            )
            run.emit(GangWaiting(have, need, began_s, progress.step))

        size = self._group.reform(waits)
        return None if size is None else (size, waited)

    def _answer(self, outcome: GenerationOutcome, failure: WorkerFailure, plan: TrainPlan) -> RestorePoint | Ended:
        """From where training continues after a failure; or the end, if the budget, the spec or the failure itself
        says so."""
        progress, fault = self._progress, failure.details.numeric_fault
        if fault is not None:
            return self._answer_fault(failure, fault)
        # A process that runs out of memory may not live to report that this was arranged.
        progress.drop_injections_through(progress.furthest + 1, "oom")
        if failure.details.restore_mismatch:
            self._points.distrust(plan.peer_state, plan.resume_from, failure.message)
        self._failures.append(
            RunFailure(
                self._run.clock.monotonic_s(),
                progress.furthest,
                failure.lost_nobody and not failure.details.restore_mismatch,
                failure.is_out_of_memory,
                plan.micro_batch,
                failure.details.before_samples,
            )
        )
        verdict = judge(self._failures, self._budget)
        if not verdict.recover:
            return gave_up(self._ended(outcome, plan), verdict)
        self._shrink_micro_batch(verdict, plan)
        self._enter_recovery(failure)
        return self._begin_recovery(failure, self._newest(), None)

    def _answer_fault(self, failure: WorkerFailure, fault: NumericFault) -> RestorePoint | Ended:
        """What the spec says about a numeric fault, done and reported."""
        run, progress = self._run, self._progress
        progress.drop_injections_through(fault.step)
        in_memory = [state.step for state in self._points.in_memory()]
        answer = answer_fault(run.layout, fault, run.spec, in_memory, run.clock.unix_s(), run.emit)
        if isinstance(answer, Refusal):
            progress.step = progress.furthest
            return Ended(RunState.FAILED, with_hint(answer.reason, answer.hint), 1)
        self._enter_recovery(failure)
        return self._begin_recovery(failure, self._points.roll_back(answer), answer)

    def _shrink_micro_batch(self, verdict: Verdict, plan: TrainPlan) -> None:
        if verdict.micro_batch is None:
            return
        self._micro_batch = verdict.micro_batch
        what = f"micro batches of at most {verdict.micro_batch} instead of {plan.micro_batch}, same global batch"
        self._run.emit(WarningIssued(f"out of memory: {what}"))

    def _enter_recovery(self, failure: WorkerFailure) -> None:
        self._states.enter(RunState.RECOVERING, f"worker of rank {failure.rank} failed: {failure.message}")

    def _begin_recovery(self, failure: WorkerFailure, origin: RestorePoint, rollback: Rollback | None) -> RestorePoint:
        clock, progress = self._run.clock, self._progress
        step, offset_s = progress.furthest, clock.unix_s() - clock.monotonic_s()
        recovery = progress.begin_recovery(origin.step, failure.seen_s + offset_s)
        fault = rollback.skip.fault if rollback is not None else None
        started = RecoveryStarted(
            incident=recovery.incident,
            rank=failure.rank if fault is None or fault.rank is None else fault.rank,
            cause=failure.message if fault is None else fault.text,
            detected_s=recovery.detected_s,
            step=step,
            from_step=origin.step,
            source=origin.source,
            checkpoint=origin.checkpoint,
            skipped=(rollback.skip.first, rollback.skip.count) if rollback is not None else None,
            reason=failure.reason,
            alive_s=failure.alive_s + offset_s if failure.alive_s is not None else None,
            found_s=failure.seen_s + offset_s,
        )
        self._run.emit(started)
        return origin

    def _ended(self, outcome: GenerationOutcome | None, plan: TrainPlan) -> Ended:
        """The end of the run after its last generation."""
        if outcome is None:
            return stopped()
        progress = self._progress
        progress.step = max(progress.step, outcome.step)
        return after_last_step(self._run.layout, outcome, plan.export)


def _s(count: int) -> str:
    return "" if count == 1 else "s"

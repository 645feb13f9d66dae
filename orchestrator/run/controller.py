"""A run's training: from its first gang to its end, through lost workers, numeric faults and changes of size."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.atomic_files import read_json
from orchestrator.checkpoint.format.exported import clear_unfinished, export_problem
from orchestrator.checkpoint.storage.checkpoint_catalog import list_checkpoints
from orchestrator.checkpoint.storage.storage import open_storage
from orchestrator.data.prepare import PreparedData, cache_directory
from orchestrator.domain.errors import CheckpointError, UsageError
from orchestrator.domain.events import Event, EventKind, Observer, RunState
from orchestrator.domain.fault_plan import NodeAddress
from orchestrator.domain.policy.failure_budget import Budget, RunFailure, Verdict, judge
from orchestrator.domain.policy.numeric import Injection, NumericFault, Refusal
from orchestrator.domain.policy.replay import FP32_TOLERANCE, LOW_PRECISION_TOLERANCE, StepRecord
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.session import PeerState, ShardPlace, TrainPlan, TrainResult
from orchestrator.domain.step_report import StepReport
from orchestrator.planner.batch_shape import total_steps
from orchestrator.planner.gpu_fit import GpuFit
from orchestrator.planner.model_shape import known_config, model_shape
from orchestrator.planner.train_plan import DataFacts, PlanLimits, train_plan
from orchestrator.run.memory_checkpoints import MemoryCheckpoints
from orchestrator.spec.job import JobSpec
from orchestrator.spec.spec_errors import SpecError
from orchestrator.store.checkpoint_places import checkpoint_places
from orchestrator.store.recorded_progress import read_progress
from orchestrator.store.resume_check import Resumption
from orchestrator.store.rollback import Rollback, answer_fault, resume_point
from orchestrator.store.run_store import RunStore
from orchestrator.store.skip_file import read_skips

INTERRUPTED = 130
KEPT_RECORDS = 256
Ended = tuple[RunState, str | None, int]
"""Final state, its reason, exit code."""


@dataclass(frozen=True)
class Origin:
    """What training goes on from: peers' memory, a checkpoint, or neither: the beginning."""

    step: int = 0
    peers: PeerState | None = None
    checkpoint: str | None = None
    """Directory or URL."""

    @property
    def source(self) -> str:
        """For events: vaults, storage or beginning."""
        return "vaults" if self.peers is not None else "storage" if self.checkpoint is not None else "beginning"


@dataclass(frozen=True)
class Recovery:
    """From a lost worker to the first step after it."""

    incident: int
    detected_s: float
    steps_recomputed: int


@dataclass
class Run:
    """One run under way: its places, its observers, and how far it is."""

    spec: JobSpec
    job_dir: Path
    layout: RunLayout
    store: RunStore
    stop: threading.Event
    observers: list[Observer] = field(default_factory=list)
    step: int = 0
    """The last step finished."""
    saved_step: int = 0
    """Of the newest checkpoint."""
    incidents_before: int = 0
    """Pages that drivers before this one wrote."""
    recovery: Recovery | None = None
    """The one under way."""
    records: dict[int, StepRecord] = field(default_factory=dict)
    """What the last steps gave, where restores are verified."""
    injections: tuple[Injection, ...] = ()
    """Those that have not come to pass."""
    nodes: tuple[NodeAddress, ...] = ()
    """Where a local cluster's nodes are; empty: all on loopback."""
    blame: Callable[[UsageError], UsageError | SpecError] = lambda error: error
    """Adds to an error about `model.pretrained` where the job file says it."""
    resumption: Resumption | None = None
    """How it goes on; None: it begins."""
    lease: int = 0
    """Token of this driver's lease."""

    def __post_init__(self) -> None:
        self.keeping = MemoryCheckpoints(self.layout, self.emit, lambda: self.saved_step or None, self.recorded_step)
        self.fitting = GpuFit(self.spec, self.emit)

    def emit(self, kind: EventKind, fields: dict[str, Any]) -> None:
        """Tell the observers."""
        tell(self.observers, kind, fields)

    def enter(self, state: RunState, reason: str | None = None) -> None:
        """Change the state, on disk first."""
        self.store.set_state(self.layout, state, reason)
        self.emit(EventKind.STATE_CHANGED, {"state": state.value, "reason": reason})

    def recorded_step(self) -> int:
        """The last step that is written down."""
        return read_progress(self.layout).step

    def remember(self, report: StepReport) -> None:
        """Keep what a step gave, where restores are verified."""
        if self.spec.checkpoint.verify_restore:
            tolerance = FP32_TOLERANCE if self.spec.train.precision == "fp32" else LOW_PRECISION_TOLERANCE
            self.records[report.step] = StepRecord(report.step, report.loss, report.grad_norm, tolerance)
            while len(self.records) > KEPT_RECORDS:
                del self.records[next(iter(self.records))]

    def model_config(self) -> dict[str, Any]:
        """The model's config as far as it is known without loading a library."""
        pretrained = self.spec.model.pretrained
        found = read_json(self.job_dir / pretrained / "config.json") if pretrained is not None else None
        return known_config(self.spec, found)

    def newest_checkpoint(self, below: int | None = None) -> Origin:
        """The newest checkpoint that will do, with an event for each that will not; the beginning where there is none.
        `below`: of a step before this one.

        Raises CheckpointError where there are some and none will do, or storage does not answer.
        """
        spec = self.spec
        found = resume_point(self.layout, spec.checkpoint.storage, spec.train.global_batch, self.emit, below)
        if found is None:
            return Origin()
        self.saved_step = found.step
        return Origin(found.step, None, found.place)


def tell(observers: Sequence[Observer], kind: EventKind, fields: dict[str, Any]) -> None:
    """Give an event to every observer."""
    event = Event(kind, time.time(), fields)
    for observer in observers:
        observer.on_event(event)


def stopped() -> Ended:
    """It ended because somebody asked for that."""
    return RunState.STOPPED, "stopped on request", INTERRUPTED


class RunController:
    """Trains, through as many failures as the budget allows, until the end or until there is no going on."""

    def __init__(self, run: Run, driver: Any, entry: str, data: PreparedData, recorded: int) -> None:
        """`driver`: a `GangDriver` whose workers have been started; `entry`: what they run; `recorded`: the last step
        that is written down."""
        self._run, self._driver, self._entry, self._data = run, driver, entry, data
        spec = run.spec
        self._budget = Budget(spec.recovery.max_failures, spec.recovery.max_without_progress)
        self._failures: list[RunFailure] = []
        self._rolled_back = 0
        self._furthest = recorded
        self._micro_batch = spec.train.global_batch
        self._total_steps = total_steps(spec.train, data.manifest.train_samples, spec.data.sequence_length)
        self._below: int | None = None
        """A checkpoint of this step was not what had been saved: older ones are gone on from."""
        self._superseded: PeerState | None = None
        """A state that training went back to: what the vaults hold of its gang beyond it must not be used."""

    def carry(self, workers: int, origin: Origin) -> Ended:
        """Train with `workers`, from `origin`."""
        run = self._run
        readable = (str(self._data.directory), str(cache_directory(run.spec, run.store.home)))
        while True:
            plan = self._plan(workers, origin)
            outcome = self._driver.train(self._entry, plan, readable, run.observers)
            if outcome is None or run.stop.is_set():
                return self._judge(outcome, plan)
            self._furthest = max(self._furthest, run.step, outcome.step)
            if outcome.regroup:
                origin = self.newest()
            elif outcome.failure is None:
                return self._judge(outcome, plan)
            else:
                answer = self._after_failure(outcome, plan)
                if not isinstance(answer, Origin):
                    return answer
                origin = answer
            found, waited = self._reform()
            if found is None:
                return stopped()
            if waited:
                origin = self.newest()  # what the vaults hold may be another by now
            if outcome.regroup:
                run.emit(EventKind.RESIZED, {"step": outcome.step, "before": workers, "world_size": found})
            workers = found

    def _reform(self) -> tuple[int | None, bool]:
        """How many workers the next gang has (None where stopped), and whether they had to be waited for."""
        run, began_s, waited = self._run, time.time(), False

        def waits(wait: Any) -> None:
            nonlocal waited
            if wait is None:
                run.enter(
                    RunState.STARTING if run.recovery is None else RunState.RECOVERING, "enough workers are there"
                )
                return
            waited = True
            fields = {"have": wait.have, "need": wait.need, "since_s": began_s, "step": run.step}
            run.enter(RunState.WAITING, f"{wait.have} of at least {wait.need} workers there, the others need nodes")
            run.emit(EventKind.WAITING, fields)

        return self._driver.reform(waits), waited

    def _plan(self, workers: int, origin: Origin) -> TrainPlan:
        run, data = self._run, self._data
        facts = DataFacts(str(data.directory.absolute()), data.manifest.train_samples, data.manifest.vocab_size)
        config = run.model_config()
        clear_unfinished(run.layout)
        shape = model_shape(config, facts.vocab_size)
        kept_bytes, room = run.keeping.plan(self._driver, shape), self._driver.device_room()
        run.fitting.check(workers, room, shape)
        limits = PlanLimits(self._driver.memory_per_worker_bytes(workers) - kept_bytes, self._micro_batch, room)
        plan = train_plan(run.spec, str(run.layout.root), facts, config, workers, limits)
        run.fitting.tell(workers, room, shape, plan.micro_batch)
        return replace(
            plan,
            lease=run.lease,
            resume_from=origin.checkpoint,
            peer_state=origin.peers,
            skips=tuple((skip.first, skip.count) for skip in read_skips(run.layout)),
            injections=run.injections,
            expected=run.records.get(origin.step + 1) if origin.step else None,
        )

    def newest(self) -> Origin:
        """The vaults' newest whole step, or the newest whole checkpoint where that is newer.

        The report of a step may be lost with whoever was to pass it on: it is made again then, for the record, where
        an earlier state is there to do so.
        """
        states = [each for each in self._in_memory() if each.step >= self._run.saved_step]
        on_record = [each for each in states if each.step <= self._furthest]
        # What is to be verified needs a step that was made after it.
        verifiable = [each for each in on_record if each.step + 1 in self._run.records]
        whole = next(iter(verifiable or on_record or states), None)
        if whole is None:
            return self._run.newest_checkpoint(self._below)
        if whole.step >= self._total_steps:
            # Nothing is left to train, and the export is made from a checkpoint, if there is one.
            return self._stored(whole.step) or whole
        return whole

    def _stored(self, step: int) -> Origin | None:
        """The checkpoint of a step, checked; None when there is none that will do, or storage does not answer.

        Storage is asked: the word that it was saved may be lost with the worker that saved it.
        """
        run = self._run
        try:
            places = checkpoint_places(run.layout, run.spec.checkpoint.storage)
            if all(each.step != step for place in places for each in list_checkpoints(open_storage(place))):
                return None
            found = run.newest_checkpoint(self._below)
        except CheckpointError:
            return None
        return found if found.step == step else None

    def _in_memory(self) -> list[Origin]:
        """What the vaults hold whole, newest first."""
        found = []
        for whole in self._driver.survey():
            shards = tuple(ShardPlace(rank, vaults) for rank, vaults in enumerate(whole.places))
            state = PeerState(whole.generation, whole.step, shards)
            if not _is_superseded(state, self._superseded):
                found.append(Origin(whole.step, state))
        return found

    def _after_failure(self, outcome: Any, plan: TrainPlan) -> Origin | Ended:
        """What to go on from; or the end, where the budget, the spec or the failure itself says so."""
        run, answer = self._run, self._answer(outcome.numeric_fault)
        if isinstance(answer, Refusal):
            run.step = self._furthest
            return RunState.FAILED, f"{answer.reason}\nhint: {answer.hint}", 1
        if answer is not None:
            self._rolled_back += 1
            return self._recover(outcome.failure, answer)
        lost_nobody, out_of_memory = outcome.lost_nobody, outcome.out_of_memory
        # A process that runs out of memory may not live to tell that it was made to.
        run.injections = tuple(i for i in run.injections if i.kind != "oom" or i.step > self._furthest + 1)
        if outcome.restore_mismatch:
            lost_nobody = False
            self._distrust(plan, outcome.failure.message)
        before_samples = outcome.before_samples
        self._failures.append(
            RunFailure(time.monotonic(), self._furthest, lost_nobody, out_of_memory, plan.micro_batch, before_samples)
        )
        verdict = judge(self._failures, self._budget)
        if not verdict.recover:
            return _give_up(self._judge(outcome, plan), verdict)
        if (smaller := verdict.micro_batch) is not None:
            self._micro_batch = smaller
            what = f"micro batches of {smaller} at most instead of {plan.micro_batch}, same global batch"
            run.emit(EventKind.WARNING, {"message": f"out of memory: {what}"})
        return self._recover(outcome.failure, None)

    def _distrust(self, plan: TrainPlan, reason: str) -> None:
        """The state that the plan went on from is not what was saved: one tier down, or an older checkpoint."""
        run, peers = self._run, plan.peer_state
        if peers is not None:
            newest = max((each.peers.generation for each in self._in_memory() if each.peers is not None), default=0)
            self._superseded = PeerState(max(newest, peers.generation), -1, ())
        else:
            self._below = run.saved_step
        place = "vaults" if peers is not None else plan.resume_from
        run.emit(EventKind.CHECKPOINT_REJECTED, {"path": place, "reason": reason})

    def _answer(self, fault: NumericFault | None) -> Rollback | Refusal | None:
        """What the spec says to a numeric fault, done and told; None where that is not what happened."""
        run = self._run
        if fault is None:
            return None
        run.injections = tuple(each for each in run.injections if each.step > fault.step)
        in_memory = [origin.step for origin in self._in_memory()]
        return answer_fault(run.layout, fault, run.spec, in_memory, time.time(), run.emit)

    def _recover(self, failure: Any, rollback: Rollback | None) -> Origin:
        """Say what is going to happen; what to go on from.

        A failure in the middle of a recovery prolongs it: what it costs counts from the first one's detection.
        """
        run = self._run
        detected_s = time.time() - (time.monotonic() - failure.seen_s)
        if run.recovery is not None:
            detected_s = run.recovery.detected_s
        run.enter(RunState.RECOVERING, f"worker of rank {failure.rank} failed: {failure.message}")
        origin = self.newest() if rollback is None else self._rolled_back_to(rollback)
        run.step = origin.step
        incident = run.incidents_before + len(self._failures) + self._rolled_back
        run.recovery = Recovery(incident, detected_s, max(0, self._furthest - origin.step))
        fault = rollback.skip.fault if rollback is not None else None
        fields = {
            "incident": incident,
            "rank": failure.rank if fault is None or fault.rank is None else fault.rank,
            "cause": failure.message if fault is None else fault.text,
            "detected_s": detected_s,
            "step": self._furthest,
            "from_step": origin.step,
            "source": origin.source,
            "checkpoint": origin.checkpoint,
            "skipped": [rollback.skip.first, rollback.skip.count] if rollback is not None else None,
        }
        run.emit(EventKind.RECOVERY_STARTED, fields)
        return origin

    def _rolled_back_to(self, rollback: Rollback) -> Origin:
        """Of the steps after it, no state may be used any more."""
        states = self._in_memory()
        origin = Origin(rollback.from_step, None, rollback.checkpoint)
        if rollback.in_memory:
            origin = next(state for state in states if state.step == rollback.from_step)
        generation = max((state.peers.generation for state in states if state.peers is not None), default=0)
        self._superseded = PeerState(generation, rollback.from_step, ())
        run = self._run
        run.saved_step = min(run.saved_step, rollback.from_step)
        run.records = {step: record for step, record in run.records.items() if step <= rollback.from_step}
        return origin

    def _judge(self, outcome: Any, plan: TrainPlan) -> Ended:
        run = self._run
        if outcome is None:
            return stopped()
        run.step = max(run.step, outcome.step)
        if outcome.failure is not None:
            failure = outcome.failure
            reason = f"worker of rank {failure.rank} failed: {failure.message}"
            return RunState.FAILED, f"{reason}\nhint: {failure.hint}" if failure.hint else reason, 1
        if outcome.stopped or not all(result.finished for result in outcome.results):
            return stopped()
        problem = _missing(run, outcome.results, plan)
        if problem is not None:
            return RunState.FAILED, f"{problem}\nhint: convoy run --resume {run.layout.run_id}", 1
        return RunState.SUCCEEDED, None, 0


def _is_superseded(state: PeerState, back_to: PeerState | None) -> bool:
    return back_to is not None and state.generation <= back_to.generation and state.step > back_to.step


def _missing(run: Run, results: Sequence[TrainResult], plan: TrainPlan) -> str | None:
    """What a run that has made all its steps still owes; None when it has kept everything it was to keep."""
    step = max((result.step for result in results), default=0)
    unsaved = next((result.unsaved for result in results if result.unsaved is not None), None)
    if unsaved is not None:
        return f"all steps are made, but the state of the last one, {step}, could not be saved: {unsaved}"
    problem = export_problem(run.layout.export, step) if plan.export else None
    return f"all steps are made, but the model is not exported: {problem}" if problem is not None else None


def _give_up(judged: Ended, verdict: Verdict) -> Ended:
    state, reason, exit_code = judged
    if verdict.reason is not None:
        reason = f"{verdict.reason}; the last: {reason}\nhint: {verdict.hint}"
    return state, reason, exit_code

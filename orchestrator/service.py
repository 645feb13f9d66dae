"""Composition root: what a command means, made from the parts. The command line and, later, the server call it."""

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator import __version__
from orchestrator.data.prepare import PreparedData, prepare
from orchestrator.domain.errors import CheckpointError, ConvoyError, UsageError
from orchestrator.domain.events import Event, EventKind, Observer, RunState
from orchestrator.domain.layout import RunLayout
from orchestrator.domain.recovery import Budget, RunFailure, Verdict, judge
from orchestrator.domain.report import StepReport
from orchestrator.domain.session import PeerState, ShardPlace, TrainPlan
from orchestrator.keeping import Keeping
from orchestrator.metrics.exporter import MetricsObserver, serve_metrics
from orchestrator.metrics.incidents import IncidentRecorder
from orchestrator.metrics.json_file import read_json, write_json
from orchestrator.metrics.ledger import LedgerRecorder
from orchestrator.metrics.recorder import RunRecorder
from orchestrator.planner.memory import largest_micro_batch, memory_need, model_shape
from orchestrator.planner.shape import shape_batch, total_steps
from orchestrator.spec.job import JobSpec
from orchestrator.spec.load import LoadedJob, dump_job, load_job
from orchestrator.store.progress import read_progress
from orchestrator.store.retention import Retention
from orchestrator.store.runs import RunStore

TRAIN_ENTRY = "orchestrator.train.worker:run_worker"
INTERRUPTED = 130


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended. `exit_code`: 0 succeeded, 1 failed, 130 stopped."""

    run_id: str
    run_dir: Path
    state: RunState
    reason: str | None
    step: int
    exit_code: int


@dataclass
class _Run:
    """One run under way: its places, its observers, and how far it is."""

    spec: JobSpec
    job_dir: Path
    layout: RunLayout
    store: RunStore
    stop: threading.Event
    observers: list[Observer] = field(default_factory=list)
    step: int = 0
    """The last step finished."""
    incidents_before: int = 0
    """Pages that drivers before this one wrote."""
    recovery: "_Recovery | None" = None
    """The one under way."""

    def __post_init__(self) -> None:
        self.keeping = Keeping(self.layout, self.emit)

    def emit(self, kind: EventKind, fields: dict[str, Any]) -> None:
        _tell(self.observers, kind, fields)

    def enter(self, state: RunState, reason: str | None = None) -> None:
        """Change the state, on disk first."""
        self.store.set_state(self.layout, state, reason)
        self.emit(EventKind.STATE_CHANGED, {"state": state.value, "reason": reason})


@dataclass(frozen=True)
class _Recovery:
    """From a lost worker to the first step after it."""

    incident: int
    detected_s: float
    steps_recomputed: int


def run_job(
    job: LoadedJob,
    home: Path,
    observers: Sequence[Observer],
    stop: threading.Event,
    entry: str = TRAIN_ENTRY,
) -> RunOutcome:
    """Create a run of `job` under `home` and carry it to its end. `entry` names the workers' entry point.

    Failures of the run are in the outcome; what is raised is a bug, or a mistake before there was a run. Whatever
    happens, the run's state is final and nothing is left running afterwards. Setting `stop` ends it within 5 s.
    """
    store = RunStore(home)
    layout = store.create(job.spec.name)
    run = _Run(job.spec, job.path.parent.absolute(), layout, store, stop)
    layout.spec.write_text(dump_job(job.spec))
    write_json(layout.data, {"job_dir": str(run.job_dir)})
    return _carry(run, observers, entry, resume_from=None)


def resume_run(
    run_dir: Path,
    home: Path,
    observers: Sequence[Observer],
    stop: threading.Event,
    entry: str = TRAIN_ENTRY,
) -> RunOutcome:
    """Go on with a run from its newest valid checkpoint, or from the start where it has none.

    Raises UsageError where it already succeeded or somebody drives it, CheckpointError where checkpoints exist and
    none of them is whole.
    """
    store = RunStore(home)
    record = store.read(str(run_dir.absolute()))
    if record.state is RunState.SUCCEEDED:
        raise UsageError(
            f"run {record.id} has succeeded: there is nothing to resume",
            hint="start a new run with more steps (--set train.steps=...)",
        )
    store.claim(record.layout)
    try:
        job = load_job(record.layout.spec)
        facts = read_json(record.layout.data) or {}
        run = _Run(job.spec, Path(str(facts.get("job_dir") or record.layout.root)), record.layout, store, stop)
    except BaseException as error:
        store.set_state(record.layout, RunState.FAILED, f"could not be resumed: {error}")
        raise
    return _carry(run, observers, entry, resume_from=record.layout)


def prepare_data(job: LoadedJob, home: Path, observers: Sequence[Observer], workers: int) -> PreparedData:
    """Tokenise a job's corpus into the cache, with `workers` processes and without Ray."""
    from orchestrator.data.executor import LocalExecutor

    tell = partial(_tell, observers)
    return prepare(job.spec, job.path.parent, _cache(job.spec, home), LocalExecutor(workers), tell)


def _tell(observers: Sequence[Observer], kind: EventKind, fields: dict[str, Any]) -> None:
    event = Event(kind, time.time(), fields)
    for observer in observers:
        observer.on_event(event)


def _carry(run: _Run, observers: Sequence[Observer], entry: str, resume_from: RunLayout | None) -> RunOutcome:
    """From a directory to a final state, whatever happens on the way."""
    recorder = RunRecorder(run.layout)
    ledger = LedgerRecorder(run.layout, time.time)
    durability = run.keeping.recorder
    metrics = MetricsObserver(run.layout.run_id, run.spec.name, ledger.snapshot, durability)
    run.incidents_before = len(list(run.layout.incidents.glob("*.md")))
    run.observers = [recorder, ledger, metrics, durability, IncidentRecorder(run.layout)]
    run.observers += [Retention(run.layout, run.spec.checkpoint), _Progress(run), *observers]
    server = None
    try:
        server = serve_metrics(metrics, run.spec.metrics.host, run.spec.metrics.port, os.environ)
        if server is not None:
            run.emit(EventKind.METRICS_SERVING, {"url": server.url})
        return _end(run, *_attempt(run, entry, resume_from))
    except ConvoyError as error:
        reason = f"{error.message}\nhint: {error.hint}" if error.hint else error.message
        return _end(run, RunState.FAILED, reason, error.exit_code)
    except KeyboardInterrupt:
        return _end(run, RunState.STOPPED, "interrupted", INTERRUPTED)
    except BaseException as error:
        _end(run, RunState.FAILED, f"{type(error).__name__}: {error}", 1)
        raise
    finally:
        if server is not None:
            server.close()
        ledger.close()
        recorder.close()


def _end(run: _Run, state: RunState, reason: str | None, exit_code: int) -> RunOutcome:
    run.enter(state, reason)
    return RunOutcome(run.layout.run_id, run.layout.root, state, reason, run.step, exit_code)


def _attempt(run: _Run, entry: str, resume_from: RunLayout | None) -> tuple[RunState, str | None, int]:
    """Cluster, data, plan, gang; the final state, its reason and the exit code."""
    from orchestrator.gang.driver import GangDriver

    checkpoint = _newest(run, resume_from) if resume_from is not None else None
    run.emit(
        EventKind.RUN_CREATED,
        {
            "run_id": run.layout.run_id,
            "spec_hash": _spec_hash(run.spec),
            "convoy_version": __version__,
            "resumed_from_step": run.step if checkpoint is not None else None,
        },
    )
    run.enter(RunState.PREPARING)
    driver = GangDriver(run.spec, dict(os.environ), run.stop.is_set, run.layout.run_id)
    ended: tuple[RunState, str | None, int] | None = None
    try:
        size = driver.connect()
        run.emit(EventKind.CLUSTER_READY, vars(size).copy())
        adopted = run.keeping.begin(driver, resume_from is not None, run.observers[0].on_step)  # the recorder
        workers = driver.start_workers(_imports(run.spec) if entry == TRAIN_ENTRY else ())
        if workers is None:
            return _stopped()
        data = _prepare(run, driver)
        if data is None:
            return _stopped()
        run.enter(RunState.STARTING)
        start = _newest_state(run, driver, read_progress(run.layout).step) if adopted else (None, checkpoint)
        run.keeping.tell_missing(run.step)
        ended = _train(run, driver, entry, data, workers, start)
        return ended
    finally:
        run.keeping.end(driver, succeeded=ended is not None and ended[0] is RunState.SUCCEEDED)
        driver.close()


def _train(
    run: _Run,
    driver: Any,
    entry: str,
    data: PreparedData,
    workers: int,
    start: tuple[PeerState | None, Path | None],
) -> tuple[RunState, str | None, int]:
    """Train, through as many failures as the budget allows, until the end or until there is no going on."""
    budget = Budget(run.spec.recovery.max_failures, run.spec.recovery.max_without_progress)
    readable = (str(data.directory), str(_cache(run.spec, run.store.home)))
    failures: list[RunFailure] = []
    furthest, limit = run.step, run.spec.train.global_batch
    peers, checkpoint = start
    while True:
        shape = model_shape(_config(run), data.manifest.vocab_size)
        memory_bytes = driver.memory_per_worker_bytes(workers) - run.keeping.plan(driver, shape)
        plan = _plan(run, data, workers, memory_bytes, checkpoint, limit)
        outcome = driver.train(entry, replace(plan, peer_state=peers), readable, run.observers)
        if outcome is not None and outcome.regroup and not run.stop.is_set():
            peers, checkpoint = _newest_state(run, driver)
            found = driver.reform()
            if found is None:
                return _stopped()
            run.emit(EventKind.RESIZED, {"step": outcome.step, "before": workers, "world_size": found})
            workers = found
            continue
        if outcome is None or outcome.failure is None or run.stop.is_set():
            return _judge(run, outcome)
        furthest = max(furthest, run.step, outcome.step)
        failures.append(
            RunFailure(time.monotonic(), furthest, outcome.lost_nobody, outcome.out_of_memory, plan.micro_batch)
        )
        verdict = judge(failures, budget)
        if not verdict.recover:
            return _give_up(_judge(run, outcome), verdict)
        if verdict.micro_batch is not None:
            limit = verdict.micro_batch
            message = (
                f"out of memory: micro batches of {limit} at most instead of {plan.micro_batch}, same global batch"
            )
            run.emit(EventKind.WARNING, {"message": message})
        peers, checkpoint = _recover(run, driver, outcome.failure, furthest, len(failures))
        found = driver.reform()
        if found is None:
            return _stopped()
        workers = found


def _newest_state(run: _Run, driver: Any, recorded: int | None = None) -> tuple[PeerState | None, Path | None]:
    """What to go on from: the vaults' newest whole step, or the newest whole checkpoint where that is newer.

    `recorded`: the last step whose report has arrived, where a later one's may have been lost.
    """
    from orchestrator.checkpoint.catalog import list_checkpoints

    whole = driver.survey(recorded)
    saved = next((found.step for found in list_checkpoints(run.layout.checkpoints) if found.problem is None), 0)
    if whole is None or whole.step < saved:
        run.step = 0
        return None, _newest(run, run.layout)
    run.step = whole.step
    shards = tuple(ShardPlace(rank, vaults) for rank, vaults in enumerate(whole.places))
    return PeerState(whole.generation, whole.step, shards), None


def _recover(run: _Run, driver: Any, failure: Any, reached: int, number: int) -> tuple[PeerState | None, Path | None]:
    """Say what is going to happen; what to go on from. `number`: failures of this driver, this one included.

    A failure in the middle of a recovery prolongs it: what it costs counts from the first one's detection.
    """
    detected_s = time.time() - (time.monotonic() - failure.seen_s)
    if run.recovery is not None:
        detected_s = run.recovery.detected_s
    incident = run.incidents_before + number
    run.enter(RunState.RECOVERING, f"worker of rank {failure.rank} failed: {failure.message}")
    peers, checkpoint = _newest_state(run, driver, reached)
    run.recovery = _Recovery(incident, detected_s, max(0, reached - run.step))
    fields = {
        "incident": incident,
        "rank": failure.rank,
        "cause": failure.message,
        "detected_s": detected_s,
        "step": reached,
        "from_step": run.step,
        "checkpoint": str(checkpoint) if checkpoint is not None else None,
        "source": "vaults" if peers is not None else "storage" if checkpoint is not None else "beginning",
    }
    run.emit(EventKind.RECOVERY_STARTED, fields)
    return peers, checkpoint


def _give_up(judged: tuple[RunState, str | None, int], verdict: Verdict) -> tuple[RunState, str | None, int]:
    state, reason, exit_code = judged
    if verdict.reason is not None:
        reason = f"{verdict.reason}; the last: {reason}\nhint: {verdict.hint}"
    return state, reason, exit_code


def _judge(run: _Run, outcome: Any) -> tuple[RunState, str | None, int]:
    if outcome is None:
        return _stopped()
    run.step = max(run.step, outcome.step)
    if outcome.failure is not None:
        failure = outcome.failure
        reason = f"worker of rank {failure.rank} failed: {failure.message}"
        return RunState.FAILED, f"{reason}\nhint: {failure.hint}" if failure.hint else reason, 1
    if outcome.stopped or not all(result.finished for result in outcome.results):
        return _stopped()
    return RunState.SUCCEEDED, None, 0


def _stopped() -> tuple[RunState, str | None, int]:
    return RunState.STOPPED, "stopped on request", INTERRUPTED


class _Progress:
    """Observer that keeps the run's step and says when training has begun."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._running = False

    def on_event(self, event: Event) -> None:
        if event.kind is EventKind.WORKER_PHASE and event.fields.get("phase") == "train" and not self._running:
            self._running = True
            self._run.enter(RunState.RUNNING)
        elif event.kind is EventKind.STATE_CHANGED and event.fields.get("state") == RunState.RECOVERING.value:
            self._running = False

    def on_step(self, report: StepReport) -> None:
        self._run.step = report.step
        recovery, self._run.recovery = self._run.recovery, None
        if recovery is not None:
            fields = {
                "incident": recovery.incident,
                "step": report.step,
                "world_size": report.world_size,
                "seconds": report.time_s - recovery.detected_s,
                "steps_recomputed": recovery.steps_recomputed,
            }
            self._run.emit(EventKind.RECOVERED, fields)


def _newest(run: _Run, layout: RunLayout) -> Path | None:
    """The checkpoint to go on from; older ones where newer ones are damaged, with an event for each of those."""
    from orchestrator.checkpoint.catalog import list_checkpoints, newest_valid

    rejected: list[str] = []

    def tell(path: Path, reason: str) -> None:
        rejected.append(f"{path.name}: {reason}")
        run.emit(EventKind.CHECKPOINT_REJECTED, {"path": str(path), "reason": reason})

    found = newest_valid(layout.checkpoints, tell) if layout.checkpoints.is_dir() else None
    if found is None and rejected:
        raise CheckpointError(
            f"run {layout.run_id} has no whole checkpoint: {'; '.join(rejected)}",
            hint="start it anew with `convoy run`, or put a copy of a checkpoint back",
        )
    if found is not None:
        run.step = next(item.step for item in list_checkpoints(layout.checkpoints) if item.path == found)
    return found


def _prepare(run: _Run, driver: Any) -> PreparedData | None:
    """The data; None where the run was stopped meanwhile."""
    from orchestrator.gang.executor import Stopped

    try:
        data = prepare(run.spec, run.job_dir, _cache(run.spec, run.store.home), driver.executor(), run.emit)
    except Stopped:
        return None
    if run.stop.is_set():
        return None
    facts = {"job_dir": str(run.job_dir), "directory": str(data.directory.absolute()), "cached": data.cached}
    write_json(run.layout.data, {**facts, **data.manifest.to_json()})
    return data


def _plan(
    run: _Run, data: PreparedData, workers: int, memory_bytes: int, checkpoint: Path | None, limit: int
) -> TrainPlan:
    """What the workers are to do; `limit`: the largest micro batch, whatever the spec says."""
    spec, train = run.spec, run.spec.train
    steps = total_steps(train, data.manifest.train_samples, spec.data.sequence_length)
    try:
        shape = shape_batch(train.global_batch, workers, None)
    except ValueError as error:
        raise UsageError(str(error), hint="raise train.global_batch or lower resources.workers") from error
    if train.micro_batch == "auto":
        need = memory_need(spec, model_shape(_config(run), data.manifest.vocab_size), workers)
        micro_batch = largest_micro_batch(need, memory_bytes, shape.shares[0])
    else:
        micro_batch = train.micro_batch
    shape = shape_batch(train.global_batch, workers, min(micro_batch, limit))
    return TrainPlan(
        spec=spec.model_dump(mode="json"),
        run_dir=str(run.layout.root),
        data_dir=str(data.directory.absolute()),
        total_steps=steps,
        shares=shape.shares,
        micro_batch=shape.micro_batch,
        accumulation=shape.accumulation,
        resume_from=str(checkpoint) if checkpoint is not None else None,
    )


def _config(run: _Run) -> dict[str, Any]:
    """The model's config as far as it is known without loading a library; the spec's own fields win."""
    pretrained = run.spec.model.pretrained
    found = read_json(run.job_dir / pretrained / "config.json") if pretrained is not None else None
    return {**(found or {}), **run.spec.model.config}


def _imports(spec: JobSpec) -> tuple[str, ...]:
    """What workers import while the data is being prepared."""
    name = spec.model.architecture
    model = (f"transformers.models.{name}.modeling_{name}",) if name is not None else ("transformers",)
    return ("torch", "torch.distributed", "deepspeed", *model, "orchestrator.train.loop", "orchestrator.data.dataset")


def _cache(spec: JobSpec, home: Path) -> Path:
    return Path(spec.data.cache_dir).absolute() if spec.data.cache_dir else home.absolute() / "cache"


def _spec_hash(spec: JobSpec) -> str:
    import hashlib

    return hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:16]

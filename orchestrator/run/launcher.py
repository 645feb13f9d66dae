"""Composition root: what a command means, made from the parts. The command line and, later, the server call it."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator import __version__
from orchestrator.atomic_files import read_json, write_json, write_text
from orchestrator.data.prepare import PreparedData, cache_directory, prepare, reopen
from orchestrator.data.prepare_progress import PrepareProgress
from orchestrator.domain.errors import (
    CheckpointError,
    ConvoyError,
    DataError,
    LeaseLostError,
    UsageError,
    WeightsError,
)
from orchestrator.domain.events import EventKind, Observer, RunState
from orchestrator.domain.fault_plan import Arranged
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.session import Question
from orchestrator.metrics.exporter import MetricsObserver, serve_metrics
from orchestrator.metrics.incidents import IncidentRecorder
from orchestrator.metrics.ledger import LedgerRecorder
from orchestrator.metrics.run_recorder import RunRecorder
from orchestrator.metrics.straggler_observer import StragglerRecorder
from orchestrator.run.controller import INTERRUPTED, Origin, Run, RunController, stopped, tell
from orchestrator.run.driver_lease import (
    LeaseChoice,
    WhileHeld,
    keep_in_bucket,
    lease_of_new_run,
    lease_of_resumed_run,
    settle,
)
from orchestrator.run.run_progress import RunProgress
from orchestrator.spec.job import JobSpec
from orchestrator.spec.loading.load import LoadedJob, dump_job, load_job, spec_hash
from orchestrator.store.checkpoint_places import require_storage
from orchestrator.store.checkpoint_retention import Retention
from orchestrator.store.input_recording import record, require_same
from orchestrator.store.lease.bucket_record import BucketRecord
from orchestrator.store.lease.run_lease import RunLease
from orchestrator.store.resume_check import examine, pinned
from orchestrator.store.run_history import current_steps
from orchestrator.store.run_store import RunStore
from orchestrator.store.scale_files import ScaleFiles
from orchestrator.store.skip_file import write_skips
from orchestrator.weights.pretrained_location import anchored, at_value, check_files

TRAIN_ENTRY = "orchestrator.train.worker:run_worker"
ENGINE_MODULES = (
    "torch",
    "torch.distributed",
    "deepspeed",
    "orchestrator.train.engine.engine_imports",
    "orchestrator.train.step_loop",
    "orchestrator.train.worker",
    "orchestrator.data.samples.dataset",
)
"""What a worker imports whatever the job is."""
GPU_CHECK = "orchestrator.train.engine.gpu_check:check_gpu"
BASE_ENTRY = "orchestrator.train.models.base_check:check_base"


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended. `exit_code`: 0 succeeded, 1 failed, 130 stopped."""

    run_id: str
    run_dir: Path
    state: RunState
    reason: str | None
    step: int
    exit_code: int


def run_job(
    job: LoadedJob,
    home: Path,
    observers: Sequence[Observer],
    stop: threading.Event,
    entry: str = TRAIN_ENTRY,
    arranged: Arranged | None = None,
    choice: LeaseChoice | None = None,
) -> RunOutcome:
    """Create a run of `job` under `home` and carry it to its end. `entry` names the workers' entry point; `choice`: see
    `LeaseChoice`.

    Failures of the run are in the outcome; what is raised is a bug, or a mistake before there was a run. Whatever
    happens, the run's state is final and nothing is left running afterwards. Setting `stop` ends it within 5 s.
    """
    check_files(job)
    job_dir = job.path.parent.absolute()
    spec = anchored(job.spec, job_dir)
    store = RunStore(home)
    layout = store.create(spec.name)
    lease = lease_of_new_run(layout, choice or LeaseChoice(), stop)
    run = Run(spec, job_dir, layout, store, stop, lease=lease.token)
    run.blame = partial(at_value, job)
    layout.spec.write_text(dump_job(spec))
    write_json(layout.data, {"job_dir": str(run.job_dir)})
    if arranged is not None:
        run.injections, run.nodes = arranged.injections, arranged.nodes
        write_skips(layout, arranged.skips)
    return _carry(run, lease, observers, entry, resume_from=None)


def resume_run(
    run_dir: Path,
    home: Path,
    observers: Sequence[Observer],
    stop: threading.Event,
    entry: str = TRAIN_ENTRY,
    arranged: Arranged | None = None,
    overrides: Sequence[str] = (),
    accept_changes: bool = False,
    choice: LeaseChoice | None = None,
) -> RunOutcome:
    """Go on with a run from its newest valid checkpoint, or from the start where it has none. What is left out of it
    was decided before: of `arranged` that does not count. `overrides` (KEY=VALUE) become part of the run's spec.
    `accept_changes`: also if data, tokenizer, model or code are not what the run was trained with; it is recorded.
    If the driver before this one may live, its lease is waited for (`choice`: see `LeaseChoice`).

    Raises UsageError where it already succeeded or somebody drives it, ChangedError where something has changed that
    is not accepted or cannot be, CheckpointError where checkpoints exist and none of them is whole, SpecError where
    the spec is wrong. The run is left as it was by all but CheckpointError.
    """
    store, choice = RunStore(home), choice or LeaseChoice()
    layout = _unfinished(store, run_dir)
    opening = settle(layout, load_job(layout.spec, overrides).spec.checkpoint.storage, choice, observers, stop)
    layout = _unfinished(store, run_dir)  # a driver on another machine may have gone on with it meanwhile
    job = load_job(layout.spec, overrides)
    job_dir = Path(str((read_json(layout.data) or {}).get("job_dir") or layout.root))
    resumption = examine(
        layout, job.spec, job_dir, cache_directory(job.spec, home), accept_changes, _watch(observers, stop)
    )
    lease = lease_of_resumed_run(layout, job.spec.checkpoint.storage, opening, choice, stop)
    try:
        store.claim(layout, lease.token)
        if overrides:
            write_text(layout.spec, dump_job(job.spec))
        spec = pinned(anchored(job.spec, job_dir), resumption.history)
        run = Run(spec, job_dir, layout, store, stop, resumption=resumption, lease=lease.token)
        run.blame = partial(at_value, job)
        if arranged is not None:
            run.injections, run.nodes = arranged.injections, arranged.nodes
    except BaseException as error:
        store.set_state(layout, RunState.FAILED, f"could not be resumed: {error}")
        lease.close()
        raise
    return _carry(run, lease, observers, entry, resume_from=layout)


def _unfinished(store: RunStore, run_dir: Path) -> RunLayout:
    """The run in a directory. Raises UsageError if it has reached its last step."""
    record = store.read(str(run_dir.absolute()))
    if record.state is RunState.SUCCEEDED:
        raise UsageError(
            f"run {record.id} has succeeded: there is nothing to resume",
            hint="start a new run with more steps (--set train.steps=...)",
        )
    return record.layout


def _watch(observers: Sequence[Observer], stop: threading.Event) -> Callable[[int], None]:
    """Shows how much of the files has been read that were touched since; a stop ends that as Ctrl-C does."""
    progress = PrepareProgress(partial(tell, observers), 0)

    def watch(done_bytes: int) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        progress.update("compare", done_bytes)

    return watch


def prepare_data(job: LoadedJob, home: Path, observers: Sequence[Observer], workers: int) -> PreparedData:
    """Tokenise a job's corpus into the cache, with `workers` processes and without Ray."""
    from orchestrator.data.executor import LocalExecutor

    emit = partial(tell, observers)
    return prepare(job.spec, job.path.parent, cache_directory(job.spec, home), LocalExecutor(workers), emit)


def _carry(
    run: Run, lease: RunLease, observers: Sequence[Observer], entry: str, resume_from: RunLayout | None
) -> RunOutcome:
    """From a directory to a final state, whatever happens on the way."""
    recorder = RunRecorder(run.layout, lease=lease.token)
    ledger = LedgerRecorder(run.layout, time.time)
    stragglers, durability = StragglerRecorder(run.emit), run.keeping.recorder
    metrics = MetricsObserver(
        run.layout.run_id,
        run.spec.name,
        ledger.snapshot,
        slowness=lambda: stragglers.ratios,
        durability=durability,
    )
    run.incidents_before = len(list(run.layout.incidents.glob("*.md")))
    writing: list[Observer] = [
        recorder,
        ledger,
        durability,
        IncidentRecorder(run.layout),
        Retention(run.layout, run.spec.checkpoint),
    ]
    run.observers = [*(WhileHeld(each, lease) for each in writing), metrics]
    run.observers += [RunProgress(run), *observers, stragglers]
    server, copies = None, list[BucketRecord]()

    def keep_copy() -> None:
        copies.extend(keep_in_bucket(run.layout, run.spec.checkpoint.storage, lease, new=resume_from is None))

    try:
        server = serve_metrics(metrics, run.spec.metrics.host, run.spec.metrics.port, os.environ)
        if server is not None:
            run.emit(EventKind.METRICS_SERVING, {"url": server.url})
        return _end(run, lease, *_attempt(run, entry, resume_from, keep_copy))
    except ConvoyError as error:
        reason = f"{error.message}\nhint: {error.hint}" if error.hint else error.message
        return _end(run, lease, RunState.FAILED, reason, error.exit_code)
    except KeyboardInterrupt:
        return _end(run, lease, RunState.STOPPED, "interrupted", INTERRUPTED)
    except BaseException as error:
        _end(run, lease, RunState.FAILED, f"{type(error).__name__}: {error}", 1)
        raise
    finally:
        if server is not None:
            server.close()
        if lease.held():
            ledger.close()
        recorder.close()
        for copy in copies:
            copy.close()
        lease.close()


def _end(run: Run, lease: RunLease, state: RunState, reason: str | None, exit_code: int) -> RunOutcome:
    """Enter the final state, unless another driver has the run: then it has that driver's state."""
    if lease.held():
        try:
            run.enter(state, reason)
        except LeaseLostError as error:
            state, reason, exit_code = RunState.FAILED, error.message, error.exit_code
    if lease.lost is not None:
        state, reason, exit_code = RunState.FAILED, lease.lost.message, lease.lost.exit_code
    return RunOutcome(run.layout.run_id, run.layout.root, state, reason, run.step, exit_code)


def _attempt(
    run: Run, entry: str, resume_from: RunLayout | None, with_storage: Callable[[], None]
) -> tuple[RunState, str | None, int]:
    """Cluster, data, plan, gang; the final state, its reason and the exit code. `with_storage` is called once it is
    known that storage answers."""
    from orchestrator.gang.driver import GangDriver

    origin, problem = _stored_origin(run) if resume_from is not None else (Origin(), None)
    if resume_from is not None and run.spec.checkpoint.verify_restore:
        for report in current_steps(resume_from.steps):
            run.remember(report)
    _begin(run, origin)
    with_storage()
    desk, run_id = ScaleFiles(run.layout), run.layout.run_id
    driver = GangDriver(run.spec, dict(os.environ), run.stop.is_set, desk, run.emit, run_id, run.nodes, run.lease)
    ended: tuple[RunState, str | None, int] | None = None
    try:
        warm, later, check = _warm(run.spec) if entry == TRAIN_ENTRY else ((), (), None)
        size = driver.connect(warm)
        run.emit(EventKind.CLUSTER_READY, vars(size).copy())
        adopted = run.keeping.begin(driver, resume_from is not None, run.observers[0].on_step)  # the recorder
        if problem is not None and not driver.survey():
            raise problem
        question = _base_question(run) if entry == TRAIN_ENTRY and origin.checkpoint is None and not adopted else None
        workers = driver.start_workers(warm, later, check, question)
        if workers is None:
            return stopped()
        run.fitting.check_early(workers, driver.device_room(), run.model_config())
        if question is not None:
            _hear_answers(run, driver)
        data = _prepare(run, driver)
        if data is None:
            return stopped()
        run.enter(RunState.STARTING)
        training = RunController(run, driver, entry, data, run.recorded_step() if adopted else origin.step)
        if adopted:
            origin = training.newest()
            run.step = origin.step
        run.keeping.tell_missing(origin.step)
        _record(run, data, origin.step)
        ended = training.carry(workers, origin)
        return ended
    finally:
        run.keeping.end(driver, succeeded=ended is not None and ended[0] is RunState.SUCCEEDED)
        driver.close()


def _begin(run: Run, origin: Origin) -> None:
    """Say what begins; find out whether storage can be written to. Raises UsageError, StorageError."""
    run.step = origin.step
    run.emit(
        EventKind.RUN_CREATED,
        {
            "run_id": run.layout.run_id,
            "spec_hash": spec_hash(run.spec),
            "convoy_version": __version__,
            "resumed_from_step": origin.step if origin.checkpoint is not None else None,
        },
    )
    for message in run.resumption.warnings if run.resumption is not None else ():
        run.emit(EventKind.WARNING, {"message": message})
    run.enter(RunState.PREPARING)
    require_storage(run.layout, run.spec.checkpoint.storage)


def _stored_origin(run: Run) -> tuple[Origin, CheckpointError | None]:
    """What storage has to go on from; or why it has nothing, where vaults that outlived their driver may have it."""
    try:
        return run.newest_checkpoint(), None
    except CheckpointError as error:
        if run.spec.cluster.address is None or not run.spec.checkpoint.memory:
            raise
        return Origin(), error


def _base_question(run: Run) -> Question | None:
    """Whether the pretrained model can be trained on, if there is one and training begins with it, and whether workers
    have the packages that the job needs beyond Convoy's own."""
    spec = run.spec
    if spec.model.pretrained is None and spec.model.attention != "flash" and spec.train.compile == "off":
        return None
    return Question(BASE_ENTRY, {"spec": run.spec.model_dump(mode="json")})


def _hear_answers(run: Run, driver: Any) -> None:
    """Raises SpecError, at the field that is wrong, if a worker says that the model cannot be trained on."""
    try:
        problem = driver.wait_for_answers()
    except UsageError as error:
        raise run.blame(error) from error
    if problem is not None:
        what = f"the model could not be checked beforehand: {problem}; it is checked when it is built"
        run.emit(EventKind.WARNING, {"message": what})


def _prepare(run: Run, driver: Any) -> PreparedData | None:
    """The data; None where the run was stopped meanwhile."""
    from orchestrator.gang.ray_executor import Stopped

    try:
        data = _data(run, driver)
    except Stopped:
        return None
    except WeightsError as error:  # the tokenizer does not fit the model
        raise run.blame(error) from error
    if run.stop.is_set():
        return None
    facts = {"job_dir": str(run.job_dir), "directory": str(data.directory.absolute()), "cached": data.cached}
    write_json(run.layout.data, {**facts, **data.manifest.to_json()})
    return data


def _data(run: Run, driver: Any) -> PreparedData:
    """The run's own prepared data if it is whole and nothing has changed, else what is made from the text."""
    again = run.resumption
    last = again.history[-1].data if again is not None and again.history else None
    if again is not None and again.prepared is not None:
        return reopen(again.prepared, again.contents, last.tokens_digest if last is not None else None, run.emit)
    cache_dir, kept = cache_directory(run.spec, run.store.home), again.kept if again is not None else None
    data = prepare(run.spec, run.job_dir, cache_dir, driver.executor(), run.emit, kept)
    if again is not None and last is not None and not again.new_data:
        require_same(data, last, accepted=bool(again.changes))
    return data


def _record(run: Run, data: PreparedData, step: int) -> None:
    """Write down what the run is trained with from here. A disk that fails now must not end it."""
    again = run.resumption
    try:
        record(run.layout, load_job(run.layout.spec).spec, run.job_dir, data, again, step, time.time())
    except (OSError, DataError) as error:
        what = f"what the run is trained with cannot be recorded: {error}; a resume will not notice what changed"
        run.emit(EventKind.WARNING, {"message": what})
    if again is not None and again.changes:
        changes = [change.to_json() for change in again.changes]
        run.emit(EventKind.CHANGES_ACCEPTED, {"step": step, "changes": changes})


def _warm(spec: JobSpec) -> tuple[tuple[str, ...], tuple[str, ...], str | None]:
    """What workers import while the data is being prepared; what those who come later, or wait, do besides, on CPUs
    only; and what tries their GPUs, if they have any."""
    name = spec.model.architecture
    model = (f"transformers.models.{name}.modeling_{name}",) if name is not None else ("transformers",)
    base = (*ENGINE_MODULES, *model)
    if spec.resources.gpus_per_worker:
        return base, (), GPU_CHECK
    return base, (f"orchestrator.train.engine.warmup:stage_{spec.zero.stage}",), None

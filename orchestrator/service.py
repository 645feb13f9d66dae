"""Composition root: what a command means, made from the parts. The command line and, later, the server call it."""

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator import __version__
from orchestrator.data.prepare import PreparedData, cache_directory, prepare
from orchestrator.domain.arranged import Arranged
from orchestrator.domain.errors import CheckpointError, ConvoyError, UsageError
from orchestrator.domain.events import EventKind, Observer, RunState
from orchestrator.domain.layout import RunLayout
from orchestrator.metrics.exporter import MetricsObserver, serve_metrics
from orchestrator.metrics.incidents import IncidentRecorder
from orchestrator.metrics.ledger import LedgerRecorder
from orchestrator.metrics.recorder import RunRecorder
from orchestrator.metrics.stragglers import StragglerRecorder
from orchestrator.run_progress import RunProgress
from orchestrator.spec.job import JobSpec
from orchestrator.spec.load import LoadedJob, dump_job, load_job, spec_hash
from orchestrator.store.checkpoints import require_storage
from orchestrator.store.history import current_steps
from orchestrator.store.retention import Retention
from orchestrator.store.runs import RunStore
from orchestrator.store.scaling import ScaleFiles
from orchestrator.store.skips import write_skips
from orchestrator.training import INTERRUPTED, Origin, Run, Training, stopped, tell
from orchestrator.whole_files import read_json, write_json, write_text

TRAIN_ENTRY = "orchestrator.train.worker:run_worker"


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
) -> RunOutcome:
    """Create a run of `job` under `home` and carry it to its end. `entry` names the workers' entry point.

    Failures of the run are in the outcome; what is raised is a bug, or a mistake before there was a run. Whatever
    happens, the run's state is final and nothing is left running afterwards. Setting `stop` ends it within 5 s.
    """
    store = RunStore(home)
    layout = store.create(job.spec.name)
    run = Run(job.spec, job.path.parent.absolute(), layout, store, stop)
    layout.spec.write_text(dump_job(job.spec))
    write_json(layout.data, {"job_dir": str(run.job_dir)})
    if arranged is not None:
        run.injections, run.nodes = arranged.injections, arranged.nodes
        write_skips(layout, arranged.skips)
    return _carry(run, observers, entry, resume_from=None)


def resume_run(
    run_dir: Path,
    home: Path,
    observers: Sequence[Observer],
    stop: threading.Event,
    entry: str = TRAIN_ENTRY,
    arranged: Arranged | None = None,
    overrides: Sequence[str] = (),
) -> RunOutcome:
    """Go on with a run from its newest valid checkpoint, or from the start where it has none. What is left out of it
    was decided before: of `arranged` that does not count. `overrides` (KEY=VALUE) become part of the run's spec.

    Raises UsageError where it already succeeded or somebody drives it, CheckpointError where checkpoints exist and
    none of them is whole, SpecError where an override does not fit the spec.
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
        job = load_job(record.layout.spec, overrides)
        if overrides:
            write_text(record.layout.spec, dump_job(job.spec))
        facts = read_json(record.layout.data) or {}
        run = Run(job.spec, Path(str(facts.get("job_dir") or record.layout.root)), record.layout, store, stop)
        if arranged is not None:
            run.injections, run.nodes = arranged.injections, arranged.nodes
    except BaseException as error:
        store.set_state(record.layout, RunState.FAILED, f"could not be resumed: {error}")
        raise
    return _carry(run, observers, entry, resume_from=record.layout)


def prepare_data(job: LoadedJob, home: Path, observers: Sequence[Observer], workers: int) -> PreparedData:
    """Tokenise a job's corpus into the cache, with `workers` processes and without Ray."""
    from orchestrator.data.executor import LocalExecutor

    emit = partial(tell, observers)
    return prepare(job.spec, job.path.parent, cache_directory(job.spec, home), LocalExecutor(workers), emit)


def _carry(run: Run, observers: Sequence[Observer], entry: str, resume_from: RunLayout | None) -> RunOutcome:
    """From a directory to a final state, whatever happens on the way."""
    recorder = RunRecorder(run.layout)
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
    run.observers = [recorder, ledger, metrics, durability, IncidentRecorder(run.layout)]
    run.observers += [Retention(run.layout, run.spec.checkpoint), RunProgress(run), *observers, stragglers]
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


def _end(run: Run, state: RunState, reason: str | None, exit_code: int) -> RunOutcome:
    run.enter(state, reason)
    return RunOutcome(run.layout.run_id, run.layout.root, state, reason, run.step, exit_code)


def _attempt(run: Run, entry: str, resume_from: RunLayout | None) -> tuple[RunState, str | None, int]:
    """Cluster, data, plan, gang; the final state, its reason and the exit code."""
    from orchestrator.gang.driver import GangDriver

    origin, problem = _stored_origin(run) if resume_from is not None else (Origin(), None)
    if resume_from is not None and run.spec.checkpoint.verify_restore:
        for report in current_steps(resume_from.steps):
            run.remember(report)
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
    run.enter(RunState.PREPARING)
    require_storage(run.layout, run.spec.checkpoint.storage)
    desk, run_id = ScaleFiles(run.layout), run.layout.run_id
    driver = GangDriver(run.spec, dict(os.environ), run.stop.is_set, desk, run.emit, run_id, run.nodes)
    ended: tuple[RunState, str | None, int] | None = None
    try:
        size = driver.connect()
        run.emit(EventKind.CLUSTER_READY, vars(size).copy())
        adopted = run.keeping.begin(driver, resume_from is not None, run.observers[0].on_step)  # the recorder
        if problem is not None and not driver.survey():
            raise problem
        workers = driver.start_workers(*(_warm(run.spec) if entry == TRAIN_ENTRY else ((), ())))
        if workers is None:
            return stopped()
        data = _prepare(run, driver)
        if data is None:
            return stopped()
        run.enter(RunState.STARTING)
        training = Training(run, driver, entry, data, run.recorded_step() if adopted else origin.step)
        if adopted:
            origin = training.newest()
            run.step = origin.step
        run.keeping.tell_missing(origin.step)
        ended = training.carry(workers, origin)
        return ended
    finally:
        run.keeping.end(driver, succeeded=ended is not None and ended[0] is RunState.SUCCEEDED)
        driver.close()


def _stored_origin(run: Run) -> tuple[Origin, CheckpointError | None]:
    """What storage has to go on from; or why it has nothing, where vaults that outlived their driver may have it."""
    try:
        return run.newest_checkpoint(), None
    except CheckpointError as error:
        if run.spec.cluster.address is None or not run.spec.checkpoint.memory:
            raise
        return Origin(), error


def _prepare(run: Run, driver: Any) -> PreparedData | None:
    """The data; None where the run was stopped meanwhile."""
    from orchestrator.gang.executor import Stopped

    try:
        data = prepare(run.spec, run.job_dir, cache_directory(run.spec, run.store.home), driver.executor(), run.emit)
    except Stopped:
        return None
    if run.stop.is_set():
        return None
    facts = {"job_dir": str(run.job_dir), "directory": str(data.directory.absolute()), "cached": data.cached}
    write_json(run.layout.data, {**facts, **data.manifest.to_json()})
    return data


def _warm(spec: JobSpec) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What workers import while the data is being prepared; and what those who come later, or wait, do besides."""
    name = spec.model.architecture
    model = (f"transformers.models.{name}.modeling_{name}",) if name is not None else ("transformers",)
    base = ("torch", "torch.distributed", "deepspeed", *model, "orchestrator.train.loop", "orchestrator.data.dataset")
    return base, (f"orchestrator.train.rehearsal:stage_{spec.zero.stage}",)

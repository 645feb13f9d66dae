"""Composition root: what a command means, made from the parts. The command line and, later, the server call it."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from prometheus_client import disable_created_metrics

from orchestrator.atomic_files import read_json, write_json, write_text
from orchestrator.data.prepare import PreparedData, cache_directory, prepare
from orchestrator.data.prepare_progress import PrepareProgress
from orchestrator.domain.errors import ConvoyError, LeaseLostError, UsageError
from orchestrator.domain.events import Emit, Observer, RunState
from orchestrator.domain.fault_plan import Arranged
from orchestrator.domain.queue.grant import GrantDesk
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.scaling import ScaleDesk
from orchestrator.domain.session import Question
from orchestrator.metrics.event_bus import EventBus, named
from orchestrator.metrics.exporter import MetricsObserver
from orchestrator.run.driver_lease import LeaseChoice, lease_of_new_run, lease_of_resumed_run, settle
from orchestrator.run.group_protocol import WorkerGroup
from orchestrator.run.preparation import Workload
from orchestrator.run.run_context import RunContext
from orchestrator.run.run_handle import RunHandle
from orchestrator.run.run_handle import RunOutcome as RunOutcome
from orchestrator.run.run_trackers import RunTrackers
from orchestrator.run.served_metrics import ServedMetrics
from orchestrator.spec.job import JobSpec
from orchestrator.spec.loading.load import LoadedJob, dump_job, load_job
from orchestrator.spec.resources import ClusterSpec
from orchestrator.store.exchange.grant_files import GrantFiles
from orchestrator.store.resume_check import examine, pinned
from orchestrator.store.run_store import RunStore, was_begun
from orchestrator.store.skip_file import write_skips
from orchestrator.trackers.tracker_needs import check_trackers
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


def run_job(
    job: LoadedJob,
    home: Path,
    observers: Sequence[Observer],
    stop: threading.Event,
    entry: str = TRAIN_ENTRY,
    arranged: Arranged | None = None,
    choice: LeaseChoice | None = None,
) -> RunOutcome:
    """Create a run of `job` under `home` and drive it to its end. `entry` names the workers' entry point;
    `choice`: see `LeaseChoice`.

    Failures of the run are in the outcome; what is raised is a bug, or a mistake before there was a run. Whatever
    happens, the run's state is final and nothing is left running afterwards. Setting `stop` ends it within 5 s.
    """
    return _drive(create_run(job, home, stop, arranged, choice), observers, entry)


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
    """Continue a run from its newest valid state, or from the start if it has none. Samples that it leaves out were
    decided before: those of `arranged` do not count. See `claim_run` for the other arguments and the errors.

    Raises CheckpointError if checkpoints exist and none of them is complete.
    """
    changes = Changes(tuple(overrides), accept_changes)
    handle = claim_run(run_dir, home, stop, _bus_of(observers).emit, arranged, changes, choice)
    return _drive(handle, observers, entry)


def create_run(
    job: LoadedJob,
    home: Path,
    stop: threading.Event,
    arranged: Arranged | None = None,
    choice: LeaseChoice | None = None,
) -> RunHandle:
    """A new run of `job` under `home`, driven by this process. Nothing is started. Raises UsageError, SpecError if the
    job cannot be run."""
    check_files(job)
    check_trackers(job, os.environ)
    job_dir = job.path.parent.absolute()
    spec = anchored(job.spec, job_dir)
    store = RunStore(home)
    layout = store.create(spec.name)
    _write_inputs(layout, spec, job_dir)
    if arranged is not None:
        write_skips(layout, arranged.skips)
    lease = lease_of_new_run(layout, choice or LeaseChoice(), stop)
    return _handle(job, RunContext(spec, job_dir, layout, store, stop, EventBus(), lease), arranged)


def lay_out(job: LoadedJob, home: Path) -> RunLayout:
    """The directory of a run of `job` that no driver has begun: a server makes it and starts a driver later, see
    `serve_run`. Raises UsageError, SpecError if the job cannot be run."""
    check_files(job)
    check_trackers(job, os.environ)
    job_dir = job.path.parent.absolute()
    spec = anchored(job.spec, job_dir)
    store, now_s = RunStore(home), time.time()
    layout = store.reserve(spec.name, now_s)
    _write_inputs(layout, spec, job_dir)
    store.restore_queued(layout, spec.name, now_s)
    return layout


def _write_inputs(layout: RunLayout, spec: JobSpec, job_dir: Path) -> None:
    layout.spec.write_text(dump_job(spec))
    write_json(layout.data, {"job_dir": str(job_dir)})


def serve_run(
    run_dir: Path,
    home: Path,
    observers: Sequence[Observer],
    stop: threading.Event,
    address: str,
    entry: str = TRAIN_ENTRY,
    choice: LeaseChoice | None = None,
) -> RunOutcome:
    """Drive a run of a server to its end: begin it, or continue it from its newest state. It trains on the Ray cluster
    at `address`, in the places that the server grants it, whatever its spec says of a cluster.

    Raises what `claim_run` raises.
    """
    layout = RunLayout(run_dir.absolute())
    served = Served(address, GrantFiles(layout))
    if was_begun(read_json(layout.state)):
        handle = claim_run(run_dir, home, stop, _bus_of(observers).emit, choice=choice, served=served)
    else:
        handle = _begin(layout, home, stop, served, choice or LeaseChoice())
    return _drive(handle, observers, entry)


@dataclass(frozen=True)
class Served:
    """What a driver has from the server that started it."""

    address: str
    """Of the Ray cluster."""
    grants: GrantDesk

    def place(self, spec: JobSpec) -> JobSpec:
        """The spec on this cluster. The run's own spec stays as it is: the next driver may get another cluster."""
        cluster = ClusterSpec(address=self.address, usd_per_hour=spec.cluster.usd_per_hour)
        return spec.model_copy(update={"cluster": cluster})


def _begin(layout: RunLayout, home: Path, stop: threading.Event, served: Served, choice: LeaseChoice) -> RunHandle:
    """Become the first driver of a run. Raises UsageError if another process is faster."""
    job = load_job(layout.spec)
    job_dir = Path(str((read_json(layout.data) or {}).get("job_dir") or layout.root))
    lease = lease_of_new_run(layout, choice, stop)
    store = RunStore(home)
    store.claim(layout, lease.token)
    spec = served.place(anchored(job.spec, job_dir))
    run = RunContext(spec, job_dir, layout, store, stop, EventBus(), lease, grants=served.grants)
    return _handle(job, run, None)


@dataclass(frozen=True)
class Changes:
    """What a resume changes."""

    overrides: tuple[str, ...] = ()
    """KEY=VALUE; they become part of the run's spec."""
    accept: bool = False
    """Continue although data, tokenizer, model or code are not those that the run was trained with; it is recorded."""


def claim_run(
    run_dir: Path,
    home: Path,
    stop: threading.Event,
    emit: Emit,
    arranged: Arranged | None = None,
    changes: Changes | None = None,
    choice: LeaseChoice | None = None,
    served: Served | None = None,
) -> RunHandle:
    """A run that exists, driven by this process from now on. Waits for the lease of an earlier driver that may still
    run (`choice`: see `LeaseChoice`). `emit` reports that wait, and the progress of the comparison of files. `served`:
    a server has started this driver.

    Raises UsageError if it has succeeded or another process drives it, ChangedError if something has changed that is
    not accepted or cannot be, SpecError if the spec is wrong, StorageError if its bucket does not answer,
    KeyboardInterrupt if `stop` is set meanwhile. The run is unchanged then.
    """
    store, changes, choice = RunStore(home), changes or Changes(), choice or LeaseChoice()
    layout = _unfinished(store, run_dir)
    storage = load_job(layout.spec, changes.overrides).spec.checkpoint.storage
    opening = settle(layout, storage, choice, emit, stop)
    layout = _unfinished(store, run_dir)  # a driver on another machine may have continued it meanwhile
    job = load_job(layout.spec, changes.overrides)
    check_trackers(job, os.environ)
    job_dir = Path(str((read_json(layout.data) or {}).get("job_dir") or layout.root))
    watch = _watch(emit, stop)
    resumption = examine(layout, job.spec, job_dir, cache_directory(job.spec, home), changes.accept, watch)
    lease = lease_of_resumed_run(layout, job.spec.checkpoint.storage, opening, choice, stop)
    try:
        store.claim(layout, lease.token)
        if changes.overrides:
            write_text(layout.spec, dump_job(job.spec))
        spec = pinned(anchored(job.spec, job_dir), resumption.history)
        spec, grants = (served.place(spec), served.grants) if served is not None else (spec, None)
        run = RunContext(spec, job_dir, layout, store, stop, EventBus(), lease, grants=grants, resumption=resumption)
        return _handle(job, run, arranged)
    except BaseException as error:
        with contextlib.suppress(LeaseLostError):
            store.set_state(layout, RunState.FAILED, f"could not be resumed: {error}")
        lease.close()
        raise


def _handle(job: LoadedJob, run: RunContext, arranged: Arranged | None) -> RunHandle:
    return RunHandle(replace(run, arranged=arranged or Arranged(), locate=partial(at_value, job)))


def _unfinished(store: RunStore, run_dir: Path) -> RunLayout:
    """The run in a directory. Raises UsageError if it has succeeded."""
    record = store.read(str(run_dir.absolute()))
    if record.state is RunState.SUCCEEDED:
        raise UsageError(
            f"run {record.id} has succeeded: there is nothing to resume",
            hint="start a new run with more steps (--set train.steps=...)",
        )
    return record.layout


def _watch(emit: Emit, stop: threading.Event) -> Callable[[int], None]:
    """Shows how much of the files has been read that were touched since; a stop ends that as Ctrl-C does."""
    progress = PrepareProgress(emit, 0)

    def watch(done_bytes: int) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        progress.update("compare", done_bytes)

    return watch


def prepare_data(job: LoadedJob, home: Path, observers: Sequence[Observer], workers: int) -> PreparedData:
    """Tokenise a job's corpus into the cache, with `workers` processes and without Ray."""
    from orchestrator.data.executor import LocalExecutor

    emit = _bus_of(observers).emit
    return prepare(job.spec, job.path.parent, cache_directory(job.spec, home), LocalExecutor(workers), emit)


def _drive(handle: RunHandle, observers: Sequence[Observer], entry: str) -> RunOutcome:
    """With a metrics endpoint and on the cluster that the job names."""
    run = handle.context
    # No time of creation for each counter: it is in no catalog and on no panel.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    metrics = MetricsObserver(
        handle.run_id,
        run.spec.name,
        handle.ledger.totals,
        slowness=lambda: handle.stragglers.ratios,
        durability=handle.durability,
        pace=run.bus.pace,
    )
    handle.watch("the metrics", metrics)
    for name, observer in named(observers):
        handle.watch(name, observer)
    with contextlib.ExitStack() as ending:
        ending.callback(_close, handle)
        try:
            served = ServedMetrics(run, metrics.registry, os.environ)
        except ConvoyError as error:  # the endpoint cannot be served
            return handle.fail(error)
        ending.callback(served.close)
        trackers = RunTrackers(run, os.environ)
        for name, tracker in trackers.observers:
            handle.watch(name, tracker)
        ending.callback(trackers.close)
        outcome = handle.drive(ray_workers, handle.preparation(workload_of(run.spec, entry)))
        if outcome.state is RunState.FAILED:
            served.await_scrape()  # for the alert: the series end with the endpoint
        return outcome


def _close(handle: RunHandle) -> None:
    """End a run's records, and write its report if it still is this driver's."""
    held = handle.context.lease.held()
    handle.close()
    if held:
        _report(handle.layout)


def _report(layout: RunLayout) -> None:
    """Write `report.html`. Bounded, and it cannot fail."""
    from orchestrator.report.report_file import write_report_at_end

    write_report_at_end(layout)


def _bus_of(observers: Sequence[Observer]) -> EventBus:
    bus = EventBus()
    for name, observer in named(observers):
        bus.add(name, observer)
    return bus


def ray_workers(run: RunContext, desk: ScaleDesk) -> WorkerGroup:
    """The workers of a run on the Ray cluster that the job names; nothing is started yet."""
    from orchestrator.gang.driver import GangDriver

    env, run_id = dict(os.environ), run.layout.run_id
    nodes, token = run.arranged.nodes, run.lease.token
    return GangDriver(run.spec, env, run.stop.is_set, desk, run.emit, run_id, nodes, token)


def workload_of(spec: JobSpec, entry: str) -> Workload:
    """What workers run. They import the engine while data is prepared; workers that join later, or stand by, also build
    a tiny engine if they are on CPUs."""
    if entry != TRAIN_ENTRY:
        return Workload(entry)
    name = spec.model.architecture
    model = (f"transformers.models.{name}.modeling_{name}",) if name is not None else ("transformers",)
    imports = (*ENGINE_MODULES, *model)
    question = None
    if spec.model.pretrained is not None or spec.model.attention == "flash" or spec.train.compile != "off":
        question = Question(BASE_ENTRY, {"spec": spec.model_dump(mode="json")})
    if spec.resources.gpus_per_worker:
        return Workload(entry, imports, (), GPU_CHECK, question)
    return Workload(entry, imports, (f"orchestrator.train.engine.warmup:stage_{spec.zero.stage}",), None, question)

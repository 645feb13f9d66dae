"""Before training: what storage has, the cluster, the workers, and the data."""

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator import __version__
from orchestrator.atomic_files import write_json
from orchestrator.data.executor import StoppedError
from orchestrator.data.prepare import PreparedData, cache_directory, prepare, reopen
from orchestrator.domain.errors import CheckpointError, DataError, UsageError, WeightsError
from orchestrator.domain.events import AcceptedChange, ChangesAccepted, ClusterReady, RunCreated, WarningIssued
from orchestrator.domain.session import Question
from orchestrator.domain.step_report import StepReport
from orchestrator.planner.gpu_fit import GpuFit
from orchestrator.run.controller import Prepared
from orchestrator.run.group_protocol import WorkerGroup
from orchestrator.run.memory_checkpoints import MemoryCheckpoints
from orchestrator.run.restore_points import RestorePoint, RestorePoints
from orchestrator.run.run_context import RunContext
from orchestrator.run.run_progress import RunProgress
from orchestrator.spec.loading.load import load_job, spec_hash
from orchestrator.store.checkpoint_places import require_storage
from orchestrator.store.input_recording import record, require_same
from orchestrator.store.recorded_progress import read_progress
from orchestrator.store.run_history import current_steps


@dataclass(frozen=True)
class Workload:
    """What worker processes run."""

    entry: str
    """`module:function` of the entry point."""
    imports: tuple[str, ...] = ()
    """Modules that they import while the data is prepared."""
    imports_later: tuple[str, ...] = ()
    """What workers that join later, or stand by, do besides: `module` or `module:function`."""
    device_check: str | None = None
    """`module:function` that tries a worker's GPU."""
    question: Question | None = None
    """Asked before data is prepared, if training starts from the pretrained model."""


class RunPreparation:
    """The `Preparation` of a real run."""

    def __init__(
        self,
        run: RunContext,
        progress: RunProgress,
        memory: MemoryCheckpoints,
        workload: Workload,
        record_step: Callable[[StepReport], None],
        keep_in_bucket: Callable[[], None],
    ) -> None:
        """`record_step` writes down a step that an earlier driver did not live to record; `keep_in_bucket` is
        called when storage has answered."""
        self._run, self._progress, self._memory = run, progress, memory
        self._workload, self._record_step = workload, record_step
        self._keep_in_bucket = keep_in_bucket
        self._origin = RestorePoint()
        self._problem: CheckpointError | None = None
        """Why storage has nothing, if vaults that outlived their driver may still have it."""

    def open(self, points: RestorePoints) -> None:
        """See `Preparation`."""
        run, resumed = self._run, self._run.resumption is not None
        if resumed:
            self._look_in_storage(points)
            if run.spec.checkpoint.verify_restore:
                for report in current_steps(run.layout.steps):
                    self._progress.remember(report)
        origin = self._origin
        self._progress.step = origin.step
        resumed_from_step = origin.step if origin.checkpoint is not None else None
        run.emit(RunCreated(run.layout.run_id, spec_hash(run.spec), __version__, resumed_from_step))
        for message in run.resumption.warnings if run.resumption is not None else ():
            run.emit(WarningIssued(message))

    def run(self, group: WorkerGroup, fit: GpuFit) -> Prepared | None:
        """See `Preparation`."""
        run, work = self._run, self._workload
        require_storage(run.layout, run.spec.checkpoint.storage)
        self._keep_in_bucket()
        size = group.connect(work.imports)
        run.emit(ClusterReady(size.address, size.nodes, size.cpus, size.gpus, size.seconds))
        adopted = self._memory.begin(group, run.resumption is not None, self._record_step)
        if self._problem is not None and not group.survey():
            raise self._problem
        question = work.question if self._origin.checkpoint is None and not adopted else None
        workers = group.start_workers(work.imports, work.imports_later, work.device_check, question)
        if workers is None:
            return None
        fit.check_early(workers, group.device_room(), run.model_config())
        if question is not None:
            self._take_answers(group)
        data = self._prepare(group)
        if data is None:
            return None
        recorded = read_progress(run.layout).step if adopted else None
        return Prepared(work.entry, data, workers, self._origin, recorded)

    def record(self, data: PreparedData, step: int) -> None:
        """Write down what the run is trained with from here. A disk that refuses it does not end the run."""
        run, again = self._run, self._run.resumption
        self._memory.tell_missing(step)
        try:
            spec = load_job(run.layout.spec).spec
            record(run.layout, spec, run.job_dir, data, again, step, run.clock.unix_s())
        except (OSError, DataError) as error:
            what = f"the inputs of the run cannot be recorded: {error}; a resume will not notice changes"
            run.emit(WarningIssued(what))
        if again is not None and again.changes:
            changes = tuple(AcceptedChange(change.part, change.what) for change in again.changes)
            run.emit(ChangesAccepted(step, changes))

    def _look_in_storage(self, points: RestorePoints) -> None:
        run = self._run
        try:
            self._origin = points.newest_checkpoint()
        except CheckpointError as error:
            if run.spec.cluster.address is None or not run.spec.checkpoint.memory:
                raise
            self._problem = error

    def _take_answers(self, group: WorkerGroup) -> None:
        """Raises SpecError, at the wrong field, if a worker finds that the model cannot be trained on."""
        try:
            problem = group.wait_for_answers()
        except UsageError as error:
            raise self._run.locate(error) from error
        if problem is not None:
            what = f"the model could not be checked beforehand: {problem}; it is checked when it is built"
            self._run.emit(WarningIssued(what))

    def _prepare(self, group: WorkerGroup) -> PreparedData | None:
        run = self._run
        try:
            data = self._data(group)
        except StoppedError:
            return None
        except WeightsError as error:  # the tokenizer does not fit the model
            raise run.locate(error) from error
        if run.stop.is_set():
            return None
        facts = {"job_dir": str(run.job_dir), "directory": str(data.directory.absolute())}
        write_json(run.layout.data, {**facts, "cached": data.cached, **data.manifest.to_json()})
        return data

    def _data(self, group: WorkerGroup) -> PreparedData:
        """The run's own prepared data if it is complete and nothing has changed, else data prepared from the text."""
        run, again = self._run, self._run.resumption
        last = again.history[-1].data if again is not None and again.history else None
        if again is not None and again.prepared is not None:
            return reopen(again.prepared, again.contents, last.tokens_digest if last is not None else None, run.emit)
        cache_dir, kept = cache_directory(run.spec, run.store.home), again.kept if again is not None else None
        data = prepare(run.spec, run.job_dir, cache_dir, group.executor(), run.emit, kept)
        if again is not None and last is not None and not again.new_data:
            require_same(data, last, accepted=bool(again.changes))
        return data

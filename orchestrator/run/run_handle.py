"""One run in this process: started, watched, scaled and stopped through a small interface.

A handle owns what a run records in its directory. It owns neither the cluster, nor a metrics endpoint, nor a terminal:
the command line and a server bring those."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orchestrator.domain.errors import ConvoyError, LeaseLostError
from orchestrator.domain.events import Observer, RunState
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.scaling import ScaleDesk, ScaleRequest
from orchestrator.domain.step_report import StepReport
from orchestrator.goodput.ledger_recorder import LedgerRecorder
from orchestrator.goodput.worker_terms import terms_of
from orchestrator.metrics.incidents import IncidentRecorder
from orchestrator.metrics.run_recorder import RunRecorder
from orchestrator.metrics.straggler_observer import StragglerRecorder
from orchestrator.run.controller import Preparation, RunController
from orchestrator.run.driver_lease import WhileHeld, keep_in_bucket
from orchestrator.run.ending import INTERRUPTED, Ended, with_hint
from orchestrator.run.group_protocol import WorkerGroup
from orchestrator.run.memory_checkpoints import MemoryCheckpoints
from orchestrator.run.preparation import RunPreparation, Workload
from orchestrator.run.run_context import RunContext
from orchestrator.run.run_progress import RunProgress
from orchestrator.run.state_machine import RunStateMachine
from orchestrator.store.checkpoint_retention import Retention
from orchestrator.store.exchange.scale_files import ScaleFiles, ask
from orchestrator.store.lease.bucket_record import BucketRecord
from orchestrator.store.recorded_progress import read_progress
from orchestrator.store.run_history import facts_after
from orchestrator.store.run_store import read_record

LAST_RECORD = "the retention of checkpoints"
"""Name of the last observer that `RunHandle` adds by itself."""
GroupFactory = Callable[[RunContext, ScaleDesk], WorkerGroup]
"""Makes the workers of a run; nothing is started yet."""


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended. `exit_code`: 0 succeeded, 1 failed, 2 a mistake in the job, 130 stopped."""

    run_id: str
    run_dir: Path
    state: RunState
    reason: str | None
    step: int
    exit_code: int


class RunHandle:
    """A run that this process drives. `drive` is for one thread; `stop` and `scale` are for any."""

    def __init__(self, run: RunContext) -> None:
        self.context = run
        self._recorder = RunRecorder(run.layout, lease=run.lease.token)
        self._copies: list[BucketRecord] = []
        self.ledger = LedgerRecorder(
            run.layout, run.clock.steady_unix_s(), terms_of(run.spec), partial(facts_after, run.layout)
        )
        self.stragglers = StragglerRecorder(run.emit)
        incidents = len(list(run.layout.incidents.glob("*.md")))
        self._progress = RunProgress(run.spec, run.arranged.injections, incidents)
        self._states = RunStateMachine(run.store, run.layout, run.emit)
        progress = self._progress
        self._memory = MemoryCheckpoints(
            run.spec,
            run.layout,
            run.emit,
            lambda: progress.saved_step or None,
            lambda: read_progress(run.layout).step,
        )
        self.durability = self._memory.recorder
        # The records on disk come first. The run must not go on if the recorder raises: it tolerates a failing disk.
        self._record("the recorder", self._recorder, essential=True)
        self._record("the ledger", self.ledger)
        self._record("the durability record", self.durability)
        self._record("the incident pages", IncidentRecorder(run.layout))
        self._record(LAST_RECORD, Retention(run.layout, run.spec.checkpoint))

    def _record(self, name: str, observer: Observer, essential: bool = False) -> None:
        """Add an observer that writes into the run's directory."""
        self.context.bus.add(name, WhileHeld(observer, self.context.lease), essential)

    @property
    def run_id(self) -> str:
        """Unique under the home directory."""
        return self.context.layout.run_id

    @property
    def layout(self) -> RunLayout:
        """Where its files are."""
        return self.context.layout

    def watch(self, name: str, observer: Observer) -> None:
        """Deliver all events and step reports from now on to `observer` too. `name` is for a warning if it fails."""
        self.context.bus.add(name, observer)

    def stop(self) -> None:
        """End it within 5 s, with a checkpoint if possible. Returns at once."""
        self.context.stop.set()

    def scale(self, workers: int, by: str, force: bool = False) -> ScaleRequest:
        """Ask for another number of workers; the answer is an event. Raises UsageError if it is not under way."""
        record = read_record(self.layout)
        assert record is not None  # this process created or claimed it
        return ask(record, workers, by, force)

    def preparation(self, workload: Workload) -> Preparation:
        """What happens before training, for `drive`."""
        keep = self._keep_in_bucket
        return RunPreparation(self.context, self._progress, self._memory, workload, self._record_step, keep)

    def _record_step(self, report: StepReport) -> None:
        """A step that an earlier driver did not live to record."""
        for observer in (self._recorder, self.ledger):
            WhileHeld(observer, self.context.lease).on_step(report)

    def _keep_in_bucket(self) -> None:
        run = self.context
        copies = keep_in_bucket(run.layout, run.spec.checkpoint.storage, run.lease, new=run.resumption is None)
        self._copies.extend(copies)

    def drive(self, make_group: GroupFactory, preparation: Preparation) -> RunOutcome:
        """Train to the end. Failures of the run are in the outcome; what is raised is a bug. In any case the state of
        the run is final afterwards, and nothing is left running."""
        run = self.context
        try:
            group = make_group(run, ScaleFiles(run.layout, run.grants))
            controller = RunController(run, group, self._progress, self._states, self._memory)
            # Observers that get a step may rely on what the controller made of it.
            run.bus.add("the run controller", controller, essential=True, after=LAST_RECORD)
            run.bus.add("the comparison of workers", self.stragglers)
            return self.conclude(controller.drive(preparation))
        except ConvoyError as error:
            return self.fail(error)
        except KeyboardInterrupt:
            return self.conclude(Ended(RunState.STOPPED, "interrupted", INTERRUPTED))
        except BaseException as error:
            self.conclude(Ended(RunState.FAILED, f"{type(error).__name__}: {error}", 1))
            raise

    def fail(self, error: ConvoyError) -> RunOutcome:
        """End it with an error."""
        return self.conclude(Ended(RunState.FAILED, with_hint(error.message, error.hint), error.exit_code))

    def conclude(self, ended: Ended) -> RunOutcome:
        """Record the final state. If another driver has taken the run over, nothing is recorded and the outcome says
        so."""
        layout, lease = self.layout, self.context.lease
        lost: LeaseLostError | None = None
        if lease.held():
            try:
                self._states.enter(ended.state, ended.reason)
            except LeaseLostError as error:
                lost = error
        lost = lease.lost or lost
        if lost is not None:
            ended = Ended(RunState.FAILED, lost.message, lost.exit_code)
        return RunOutcome(layout.run_id, layout.root, ended.state, ended.reason, self._progress.step, ended.exit_code)

    def close(self) -> None:
        """Write the last records, and give the lease back. Idempotent."""
        if self.context.lease.held():
            self.ledger.close()
        self._recorder.close()
        for copy in self._copies:
            copy.close()
        self.context.lease.close()

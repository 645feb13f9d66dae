"""Observer that compares the workers of a gang step by step, and reports when one becomes slow or is no longer slow."""

from collections import deque

from orchestrator.domain.events import Emit, Event, GangResized, RecoveryStarted, WorkerSlow, WorkerStarted
from orchestrator.domain.policy.stragglers import WINDOW_STEPS, changes, compare, slow_phase
from orchestrator.domain.ranks.rank_summary import OwnWork
from orchestrator.domain.step_report import StepReport


class StragglerRecorder:
    """It only reports: no worker is ended for being slow. One thread feeds it, as the driver does."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._steps: deque[OwnWork] = deque(maxlen=WINDOW_STEPS)
        self._slow: dict[int, bool] = {}
        self._nodes: dict[int, str] = {}
        self.ratios: dict[int, float] = {}
        """Of ranks; replaced as a whole, so that any thread may read it."""

    def on_event(self, event: Event) -> None:
        """Another gang is compared from the start."""
        match event.body:
            case WorkerStarted() as worker:
                self._nodes[worker.rank] = worker.node
            case RecoveryStarted() | GangResized():
                self._forget()

    def on_step(self, report: StepReport) -> None:
        """Compare the newest steps."""
        work = report.ranks.work
        if work is None:
            return
        if self._steps and self._steps[-1].world_size != work.world_size:
            self._forget()
        self._steps.append(work)
        steps = tuple(self._steps)
        found = compare(steps)
        self.ratios = {item.rank: item.ratio for item in found}
        for item, slow in changes(self._slow, found):
            self._slow[item.rank] = slow
            node, phase = self._nodes.get(item.rank), slow_phase(steps, item.rank)
            self._emit(WorkerSlow(item.rank, node, slow, phase, item.ratio, len(steps)))

    def _forget(self) -> None:
        self._steps.clear()
        self._slow.clear()
        self.ratios = {}

"""Observer that compares the workers of a gang step by step, and reports when one becomes slow or is no longer slow."""

from collections import deque

from orchestrator.domain.events import Emit, Event, GangResized, RecoveryStarted, WorkerSlow, WorkerStarted
from orchestrator.domain.policy.stragglers import WINDOW_STEPS, changes, compare
from orchestrator.domain.step_report import StepReport


class StragglerRecorder:
    """It only reports: no worker is ended for being slow. One thread feeds it, as the driver does."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._steps: deque[StepReport] = deque(maxlen=WINDOW_STEPS)
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
        if self._steps and len(self._steps[-1].ranks) != len(report.ranks):
            self._forget()
        self._steps.append(report)
        found = compare(tuple(self._steps))
        self.ratios = {item.rank: item.ratio for item in found}
        for item, slow in changes(self._slow, found):
            self._slow[item.rank] = slow
            node = self._nodes.get(item.rank)
            self._emit(WorkerSlow(item.rank, node, slow, item.phase, item.ratio, len(self._steps)))

    def _forget(self) -> None:
        self._steps.clear()
        self._slow.clear()
        self.ratios = {}

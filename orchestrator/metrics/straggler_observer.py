"""Observer that compares the workers of a gang step by step, and reports when one becomes slow or is no longer slow."""

from collections import deque
from collections.abc import Callable
from typing import Any

from orchestrator.domain.events import Event, EventKind
from orchestrator.domain.policy.stragglers import WINDOW_STEPS, changes, compare
from orchestrator.domain.step_report import StepReport


class StragglerRecorder:
    """It only reports: no worker is ended for being slow. One thread feeds it, as the driver does."""

    def __init__(self, emit: Callable[[EventKind, dict[str, Any]], None]) -> None:
        self._emit = emit
        self._steps: deque[StepReport] = deque(maxlen=WINDOW_STEPS)
        self._slow: dict[int, bool] = {}
        self._nodes: dict[int, str] = {}
        self.ratios: dict[int, float] = {}
        """Of ranks; replaced as a whole, so that any thread may read it."""

    def on_event(self, event: Event) -> None:
        """Another gang is compared from the start."""
        if event.kind is EventKind.WORKER_STARTED:
            self._nodes[int(event.fields["rank"])] = str(event.fields["node"])
        elif event.kind in (EventKind.RECOVERY_STARTED, EventKind.RESIZED):
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
            fields = {
                "rank": item.rank,
                "node": self._nodes.get(item.rank),
                "slow": slow,
                "phase": item.phase,
                "ratio": item.ratio,
                "steps": len(self._steps),
            }
            self._emit(EventKind.WORKER_SLOW, fields)

    def _forget(self) -> None:
        self._steps.clear()
        self._slow.clear()
        self.ratios = {}

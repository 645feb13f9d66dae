"""What the events of a run say about how far it is."""

from orchestrator.domain.events import Event, EventKind, RunState
from orchestrator.domain.step_report import StepReport
from orchestrator.run.controller import Run

RESTARTING = (RunState.STARTING.value, RunState.RECOVERING.value, RunState.WAITING.value)


class RunProgress:
    """Observer that keeps the run's step, says when training has begun, and when a recovery is over."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._running = False
        self._world_size = 0

    def on_event(self, event: Event) -> None:
        """Take one event."""
        if event.kind is EventKind.CHECKPOINT_SAVED:
            # One that was written in the background may be told of after a later one.
            self._run.saved_step = max(self._run.saved_step, int(event.fields["step"]))
        elif event.kind is EventKind.FAULT_INJECTED:
            came = (event.fields["fault"], event.fields["step"], event.fields["rank"])
            self._run.injections = tuple(i for i in self._run.injections if (i.kind, i.step, i.rank) != came)
        elif event.kind is EventKind.EXPORTED:
            self._recovered(self._run.step, self._world_size, event.time_s)  # no step was left to make
        elif event.kind is EventKind.PLAN:
            self._world_size = int(event.fields["world_size"])
        elif event.kind is EventKind.WORKER_PHASE and event.fields.get("phase") == "train" and not self._running:
            self._running = True
            self._run.enter(RunState.RUNNING)
        elif event.kind is EventKind.STATE_CHANGED and event.fields.get("state") in RESTARTING:
            self._running = False

    def on_step(self, report: StepReport) -> None:
        """Take one step."""
        self._run.step = report.step
        self._run.remember(report)
        self._recovered(report.step, report.world_size, report.time_s)

    def _recovered(self, step: int, world_size: int, time_s: float) -> None:
        """A recovery that was under way is over."""
        recovery, self._run.recovery = self._run.recovery, None
        if recovery is not None:
            fields = {
                "incident": recovery.incident,
                "step": step,
                "world_size": world_size,
                "seconds": time_s - recovery.detected_s,
                "steps_recomputed": recovery.steps_recomputed,
            }
            self._run.emit(EventKind.RECOVERED, fields)

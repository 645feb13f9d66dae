"""A page for each lost worker and each rollback, `incidents/incident-NNN.md`: what happened and when, the decision,
and the cost."""

import sys
import time
from dataclasses import dataclass, field

from orchestrator.domain.events import (
    CheckpointRejected,
    CheckpointRestored,
    Event,
    EventBody,
    NumericFaultFound,
    RecoveryFinished,
    RecoveryStarted,
    StateChanged,
    TrainingPlanned,
    WorkerFailed,
    WorkerHung,
    WorkerPhase,
    WorkerStarted,
)
from orchestrator.domain.policy.numeric import NumericFault
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport

SHOWN_LINES = 40
"""Of a worker's last output, or of its traceback."""


@dataclass
class _Incident:
    """One that is being recorded."""

    started: RecoveryStarted
    failed: list[WorkerFailed]
    hung: list[WorkerHung]
    timeline: list[tuple[float, str]] = field(default_factory=list)
    finished: RecoveryFinished | None = None
    fault: NumericFault | None = None
    """Why the run was rolled back, if it lost no worker."""


class IncidentRecorder:
    """Observer that keeps a page for each recovery, written when it begins and again when it is over.

    A disk that fails is reported once on stderr. Not thread-safe: one thread feeds it, as the driver does.
    """

    def __init__(self, layout: RunLayout) -> None:
        self._layout = layout
        self._failed: list[tuple[float, WorkerFailed]] = []
        """With the times."""
        self._fault: NumericFault | None = None
        self._hung: list[tuple[float, WorkerHung]] = []
        self._open: _Incident | None = None
        self._complained = False

    def on_event(self, event: Event) -> None:
        """Note what belongs to an incident."""
        match event.body:
            case WorkerFailed() as failed:
                self._failed.append((event.time_s, failed))
            case NumericFaultFound() as found:
                self._fault = NumericFault.of(found)
            case WorkerHung() as hung:
                self._hung.append((event.time_s, hung))
            case RecoveryStarted() as started:
                self._begin(started, event.time_s)
            case RecoveryFinished() as finished if self._open is not None:
                self._finish(self._open, finished, event.time_s)
            case _ if self._open is not None:
                self._note(self._open, event)

    def on_step(self, report: StepReport) -> None:
        """The event that says a recovery is over follows its first step."""

    def _begin(self, started: RecoveryStarted, time_s: float) -> None:
        failed, self._failed, hung, self._hung = self._failed, [], self._hung, []
        fault, self._fault = self._fault, None
        incident = _Incident(started, [worker for _, worker in failed], [worker for _, worker in hung])
        incident.fault = fault if started.skipped else None
        incident.timeline = [(at_s, _hang(worker)) for at_s, worker in hung]
        incident.timeline += [(at_s, f"worker {worker.rank}: {worker.error}") for at_s, worker in failed]
        without = f", without {_samples(started.skipped)}" if started.skipped else ""
        decided = f"decided: continue from step {started.from_step} ({started.source}){without}"
        incident.timeline.append((time_s, decided))
        self._open = incident
        self._write(incident)

    def _finish(self, incident: _Incident, finished: RecoveryFinished, time_s: float) -> None:
        trained = finished.step > incident.started.from_step
        over = f"step {finished.step} finished: training continues" if trained else "the model is exported"
        incident.timeline.append((time_s, over))
        incident.finished = finished
        self._write(incident)
        self._open = None

    def _note(self, incident: _Incident, event: Event) -> None:
        text = _told(event.body)
        if text is not None:
            incident.timeline.append((event.time_s, text))
            if isinstance(event.body, StateChanged):
                self._write(incident)

    def _write(self, incident: _Incident) -> None:
        path = self._layout.incident(incident.started.incident)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(page(incident), encoding="utf-8")
        except OSError as error:
            if not self._complained:
                self._complained = True
                print(f"warning: cannot write {path}: {error.strerror}", file=sys.stderr)


def _hang(hung: WorkerHung) -> str:
    who = "all workers hang" if hung.rank is None else f"worker {hung.rank} hangs"
    return f"{who}: no progress for {hung.seconds:.1f} s, {hung.reason}"


def _told(body: EventBody) -> str | None:
    match body:
        case WorkerStarted() as worker:
            return f"worker {worker.rank} started, process {worker.pid} on {worker.node}"
        case WorkerPhase(phase=phase):
            return f"workers: {phase}"
        case TrainingPlanned() as plan:
            return f"engine of {plan.world_size} workers, shares {list(plan.shares)}"
        case CheckpointRestored() as restored:
            taken = f"in {restored.seconds:.2f} s, left by {restored.saved_world_size} workers"
            return f"state of step {restored.step} restored from {restored.path} {taken}"
        case CheckpointRejected(path, reason):
            return f"checkpoint {path} not used: {reason}"
        case StateChanged(state, reason):
            return f"run {state}" + (f": {reason}" if reason else "")
        case _:
            return None


def page(incident: _Incident) -> str:
    """The page as Markdown."""
    started, finished = incident.started, incident.finished
    zero_s = started.detected_s
    title = f"worker {started.rank} lost after step {started.step}"
    if incident.fault is not None:
        title = f"numeric fault at step {incident.fault.step}"
    lines = [
        f"# Incident {started.incident}: {title}",
        "",
        f"Detected {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(zero_s))} UTC. Cause: {started.cause}.",
        "",
        "| what it cost | |",
        "| --- | --- |",
        f"| steps recomputed | {started.step - started.from_step} |",
        f"| from detection to the next finished step | {_cost(finished)} |",
        *([f"| left out | {_samples(started.skipped)} |"] if started.skipped else []),
        "",
        "## Timeline",
        "",
        "| s after detection | |",
        "| --- | --- |",
    ]
    lines += [f"| {at_s - zero_s:+.2f} | {_cell(text)} |" for at_s, text in incident.timeline]
    for failed in incident.failed:
        last = failed.traceback.splitlines()[-SHOWN_LINES:]
        if last:
            lines += ["", f"## Last lines of worker {failed.rank}", "", "```", *last, "```"]
    for hung in incident.hung:
        if hung.stack:
            lines += ["", f"## Stack of worker {hung.rank}", "", "```", *hung.stack.splitlines(), "```"]
    if directory := next((hung.stacks for hung in incident.hung if hung.stacks), None):
        lines += ["", f"Stacks of all workers: `{directory}/rank-N.txt` in the run's directory."]
    return "\n".join(lines) + "\n"


def _cost(finished: RecoveryFinished | None) -> str:
    return "not over" if finished is None else f"{finished.seconds:.2f} s"


def _samples(skipped: tuple[int, ...]) -> str:
    first, count = skipped
    return f"{count} samples, [{first}, {first + count}) of the order"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")

"""A page for each lost worker and each rollback, `incidents/incident-NNN.md`: what happened and when, the decision,
and the cost."""

import sys
import time
from dataclasses import dataclass, field
from typing import Any

from orchestrator.domain.events import Event, EventKind
from orchestrator.domain.policy.numeric import NumericFault
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport

SHOWN_LINES = 40
"""Of a worker's last output, or of its traceback."""


@dataclass
class _Incident:
    """One that is being recorded."""

    number: int
    started: dict[str, Any]
    failed: list[dict[str, Any]]
    hung: list[dict[str, Any]]
    timeline: list[tuple[float, str]] = field(default_factory=list)
    finished: dict[str, Any] | None = None
    fault: NumericFault | None = None
    """Why the run was rolled back, if it lost no worker."""


class IncidentRecorder:
    """Observer that keeps a page for each recovery, written when it begins and again when it is over.

    A disk that fails is reported once on stderr. Not thread-safe: one thread feeds it, as the driver does.
    """

    def __init__(self, layout: RunLayout) -> None:
        self._layout = layout
        self._failed: list[Event] = []
        self._fault: NumericFault | None = None
        self._hung: list[Event] = []
        self._open: _Incident | None = None
        self._complained = False

    def on_event(self, event: Event) -> None:
        """Note what belongs to an incident."""
        fields, incident = event.fields, self._open
        if event.kind is EventKind.WORKER_FAILED:
            self._failed.append(event)
        elif event.kind is EventKind.NUMERIC_FAULT:
            self._fault = NumericFault.from_json({**fields, "kind": fields["fault"]})
        elif event.kind is EventKind.WORKER_HUNG:
            self._hung.append(event)
        elif event.kind is EventKind.RECOVERY_STARTED:
            self._begin(event)
        elif incident is None:
            return
        elif event.kind is EventKind.RECOVERED:
            trained = fields["step"] > incident.started["from_step"]
            over = f"step {fields['step']} finished: training continues" if trained else "the model is exported"
            incident.timeline.append((event.time_s, over))
            incident.finished = fields
            self._write(incident)
            self._open = None
        elif text := _told(event):
            incident.timeline.append((event.time_s, text))
            if event.kind is EventKind.STATE_CHANGED:
                self._write(incident)

    def on_step(self, report: StepReport) -> None:
        """The event that says a recovery is over follows its first step."""

    def _begin(self, event: Event) -> None:
        failed, self._failed, hung, self._hung = self._failed, [], self._hung, []
        fault, self._fault = self._fault, None
        skipped = event.fields.get("skipped")
        incident = _Incident(
            int(event.fields["incident"]),
            event.fields,
            [item.fields for item in failed],
            [item.fields for item in hung],
        )
        incident.fault = fault if skipped else None
        incident.timeline = [(item.time_s, _hang(item.fields)) for item in hung]
        incident.timeline += [(item.time_s, f"worker {item.fields['rank']}: {item.fields['error']}") for item in failed]
        fields = event.fields
        without = f", without {_samples(skipped)}" if skipped else ""
        decided = f"decided: continue from step {fields['from_step']} ({fields['source']}){without}"
        incident.timeline.append((event.time_s, decided))
        self._open = incident
        self._write(incident)

    def _write(self, incident: _Incident) -> None:
        path = self._layout.incident(incident.number)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(page(incident), encoding="utf-8")
        except OSError as error:
            if not self._complained:
                self._complained = True
                print(f"warning: cannot write {path}: {error.strerror}", file=sys.stderr)


def _hang(fields: dict[str, Any]) -> str:
    who = "all workers hang" if fields["rank"] is None else f"worker {fields['rank']} hangs"
    return f"{who}: no progress for {fields['seconds']:.1f} s, {fields['reason']}"


def _told(event: Event) -> str | None:
    fields = event.fields
    match event.kind:
        case EventKind.WORKER_STARTED:
            return f"worker {fields['rank']} started, process {fields['pid']} on {fields['node']}"
        case EventKind.WORKER_PHASE:
            return f"workers: {fields['phase']}"
        case EventKind.PLAN:
            return f"engine of {fields['world_size']} workers, shares {fields['shares']}"
        case EventKind.CHECKPOINT_RESTORED:
            taken = f"in {fields['seconds']:.2f} s, left by {fields['saved_world_size']} workers"
            return f"state of step {fields['step']} restored from {fields['path']} {taken}"
        case EventKind.CHECKPOINT_REJECTED:
            return f"checkpoint {fields['path']} not used: {fields['reason']}"
        case EventKind.STATE_CHANGED:
            reason = fields.get("reason")
            return f"run {fields['state']}" + (f": {reason}" if reason else "")
        case _:
            return None


def page(incident: _Incident) -> str:
    """The page as Markdown."""
    started, finished = incident.started, incident.finished
    zero_s = float(started["detected_s"])
    title = f"worker {started['rank']} lost after step {started['step']}"
    if incident.fault is not None:
        title = f"numeric fault at step {incident.fault.step}"
    lines = [
        f"# Incident {incident.number}: {title}",
        "",
        f"Detected {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(zero_s))} UTC. Cause: {started['cause']}.",
        "",
        "| what it cost | |",
        "| --- | --- |",
        f"| steps recomputed | {int(started['step']) - int(started['from_step'])} |",
        f"| from detection to the next finished step | {_cost(finished)} |",
        *([f"| left out | {_samples(started['skipped'])} |"] if started.get("skipped") else []),
        "",
        "## Timeline",
        "",
        "| s after detection | |",
        "| --- | --- |",
    ]
    lines += [f"| {at_s - zero_s:+.2f} | {_cell(text)} |" for at_s, text in incident.timeline]
    for failed in incident.failed:
        last = str(failed.get("traceback") or "").splitlines()[-SHOWN_LINES:]
        if last:
            lines += ["", f"## Last lines of worker {failed['rank']}", "", "```", *last, "```"]
    for hung in incident.hung:
        if hung.get("stack"):
            lines += ["", f"## Stack of worker {hung['rank']}", "", "```", *str(hung["stack"]).splitlines(), "```"]
    if directory := next((hung["stacks"] for hung in incident.hung if hung.get("stacks")), None):
        lines += ["", f"Stacks of all workers: `{directory}/rank-N.txt` in the run's directory."]
    return "\n".join(lines) + "\n"


def _cost(finished: dict[str, Any] | None) -> str:
    return "not over" if finished is None else f"{float(finished['seconds']):.2f} s"


def _samples(skipped: list[int]) -> str:
    first, count = skipped
    return f"{count} samples, [{first}, {first + count}) of the order"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")

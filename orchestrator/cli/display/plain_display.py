"""Displays for output that is not a terminal: lines of text, or events as JSON."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from orchestrator.cli.display import formatting, gpu_fit_text, vault_text
from orchestrator.cli.display.live_display import (
    changes_text,
    cluster_ready,
    data_progress,
    data_ready,
    figures,
    model_text,
    planned_text,
    skipped,
)
from orchestrator.cli.display.run_view import RunView
from orchestrator.domain.events import Event, EventKind, RunState
from orchestrator.domain.step_report import StepReport
from orchestrator.metrics.jsonl import finite

ALWAYS_TOLD = frozenset(
    {
        EventKind.WARNING,
        EventKind.CHANGES_ACCEPTED,
        EventKind.WORKER_FAILED,
        EventKind.WORKER_SLOW,
        EventKind.RECOVERY_STARTED,
        EventKind.RECOVERED,
        EventKind.RESIZED,
        EventKind.SCALE,
        EventKind.NODE_DRAINING,
        EventKind.WAITING,
        EventKind.VAULTS_ADOPTED,
        EventKind.VAULTS_KEPT,
    }
)
LINE_INTERVAL_S = 5.0
"""Steps and data progress are printed at most this often."""


class PlainDisplay:
    """Observer that writes a line for each event, and every few seconds while training."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.time, show_progress: bool = True) -> None:
        self.view = RunView()
        self._stream = stream
        self._clock = clock
        self._show_progress = show_progress
        self._started_s = clock()
        self._told_s = float("-inf")
        self._said_eval = False

    def start(self) -> None:
        """Nothing to begin."""

    def stop(self) -> None:
        """Nothing to end."""

    def stopping(self) -> None:
        """Print that the run is being stopped."""
        self._say("stopping; press Ctrl-C again to force")

    def on_event(self, event: Event) -> None:
        """Print the event if it belongs into a log."""
        self.view.on_event(event)
        if event.kind is EventKind.DATA_PROGRESS:
            if self._due():
                self._say(f"data: {data_progress(self.view, self._clock())}")
            return
        text = describe(event, self.view)
        if text and (self._show_progress or event.kind in ALWAYS_TOLD):
            self._say(text)

    def on_step(self, report: StepReport) -> None:
        """Print the first step, the last one, and one every few seconds between."""
        self.view.on_step(report)
        first_or_last = self.view.first is report or report.step == self.view.total_steps
        if self._due() or (self._show_progress and first_or_last):
            self._told_s = self._clock()
            self._say(step_line(self.view))

    def _due(self) -> bool:
        if not self._show_progress or self._clock() - self._told_s < LINE_INTERVAL_S:
            return False
        self._told_s = self._clock()
        return True

    def _say(self, text: str) -> None:
        write_line(self._stream, f"[{formatting.clock(self._clock() - self._started_s):>7}] {text}")


class JsonDisplay:
    """Observer that writes every event and step as one JSON object a line: `{"kind": ..., "time_s": ..., ...}`.

    A step has the kind `step` and the fields of a `StepReport`.
    """

    def __init__(self, stream: TextIO) -> None:
        self.view = RunView()
        self._stream = stream

    def start(self) -> None:
        """Nothing to begin."""

    def stop(self) -> None:
        """Nothing to end."""

    def stopping(self) -> None:
        """Nothing: the event of the state follows."""

    def on_event(self, event: Event) -> None:
        """Print it, of every kind."""
        self.view.on_event(event)
        self._print({"kind": event.kind.value, "time_s": event.time_s, **event.fields})

    def on_step(self, report: StepReport) -> None:
        """Print it."""
        self.view.on_step(report)
        self._print({"kind": "step", **report.to_json()})

    def _print(self, value: dict[str, object]) -> None:
        write_line(self._stream, json.dumps(finite(value), ensure_ascii=False, allow_nan=False))


def write_line(stream: TextIO, text: str) -> None:
    """Write one line at once. If the reader is gone, the run continues without output."""
    try:
        stream.write(text + "\n")
        stream.flush()
    except (BrokenPipeError, ValueError, OSError):
        # What is left in the buffer would raise again when the interpreter ends.
        if stream is sys.stdout or stream is sys.stderr:
            _silence(stream)


def _silence(stream: TextIO) -> None:
    import os

    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):
        return


def step_line(view: RunView) -> str:
    """`step 34/120 (28%)  loss 5.1234  val 5.4  tok/s 12,345  step 0.51 s  RSS 2.1 GiB  1:23 left`."""
    total = view.total_steps
    share = f" ({view.step / total:.0%})" if total else ""
    text = "  ".join(f"{name} {value}" for name, value in figures(view))
    left = f"  {formatting.clock(view.eta_s)} left" if view.eta_s else ""
    return f"step {view.step}/{total or '?'}{share}  {text}{left}"


def waiting_text(event: Event) -> str:
    """`waiting for nodes: 1 of 2 required workers available; the state of step 40 is kept`."""
    fields = event.fields
    kept = f"; the state of step {fields.get('step')} is kept" if fields.get("step") else ""
    return f"waiting for nodes: {fields.get('have')} of {fields.get('need')} required workers available{kept}"


def describe(event: Event, view: RunView) -> str | None:
    """One line about an event; None if it is not worth one."""
    fields = event.fields
    match event.kind:
        case EventKind.RUN_CREATED:
            resumed = fields.get("resumed_from_step")
            return f"run {fields.get('run_id')}" + (f", resumed from step {resumed}" if resumed else "")
        case EventKind.CHANGES_ACCEPTED:
            return changes_text(event)
        case EventKind.CLUSTER_READY:
            return f"cluster: {cluster_ready(view)}, {formatting.duration(fields.get('seconds'))}"
        case EventKind.DATA_READY:
            return f"data: {data_ready(view)}, {formatting.duration(fields.get('seconds'))}"
        case EventKind.DATA_SKIPPED:
            return f"skipped: {skipped(event)}"
        case EventKind.PLAN:
            return f"plan: {view.total_steps} steps, {model_text(view)}"
        case EventKind.WORKER_STARTED:
            return f"worker {fields.get('rank')} started on {fields.get('node')} ({fields.get('device')})"
        case EventKind.WORKER_PHASE:
            return f"workers: {fields.get('phase')}"
        case EventKind.WORKER_FAILED:
            return f"worker {fields.get('rank')} failed: {fields.get('error')}"
        case EventKind.EVAL:
            return f"step {fields.get('step')}: validation loss {formatting.loss(fields.get('loss'))}"
        case EventKind.CHECKPOINT_SAVED:
            size, seconds = formatting.size(fields.get("bytes")), formatting.duration(fields.get("seconds"))
            return f"step {fields.get('step')}: checkpoint saved, {size} in {seconds}"
        case EventKind.CHECKPOINT_FAILED:
            return f"warning: {fields.get('reason')}; training continues"
        case EventKind.CHECKPOINT_RESTORED:
            return f"restored step {fields.get('step')} from {fields.get('path')}"
        case EventKind.CHECKPOINT_REJECTED:
            return f"checkpoint {fields.get('path')} not used: {fields.get('reason')}"
        case EventKind.EXPORTED:
            return f"exported to {fields.get('path')}"
        case EventKind.METRICS_SERVING:
            return f"metrics at {fields.get('url')}"
        case EventKind.WARNING:
            return f"warning: {fields.get('message')}"
        case EventKind.STATE_CHANGED:
            if fields.get("state") in (RunState.RECOVERING.value, RunState.WAITING.value):
                return None  # a more specific event follows
            reason = fields.get("reason")
            return f"{fields.get('state')}" + (f": {reason}" if reason else "")
        case _:
            return _describe_recovery(event)


def _describe_recovery(event: Event) -> str | None:
    """The same for events of lost workers and changes of size."""
    fields = event.fields
    match event.kind:
        case EventKind.WORKER_SLOW:
            if not fields.get("slow"):
                return f"worker {fields.get('rank')} is no longer slow"
            ratio = float(fields.get("ratio") or 0.0)
            slow = f"{ratio:.1f} times as long as the others, mostly in {fields.get('phase')}"
            return f"worker {fields.get('rank')} is slow: {slow}"
        case EventKind.RECOVERY_STARTED:
            return _continuing(fields)
        case EventKind.RECOVERED:
            again = int(fields.get("steps_recomputed") or 0)
            return (
                f"recovered in {formatting.duration(fields.get('seconds'))} with {fields.get('world_size')} workers, "
                f"{again} step{'s' if again != 1 else ''} recomputed"
            )
        case EventKind.RESIZED:
            now, before = fields.get("world_size"), fields.get("before")
            was = "same size, different workers" if now == before else f"{before} before"
            return f"step {fields.get('step')}: {now} workers from now on, {was}"
        case EventKind.SCALE | EventKind.NODE_DRAINING:
            return planned_text(event)
        case EventKind.WAITING:
            return waiting_text(event)
        case EventKind.VAULTS_PLANNED:
            return f"memory: {vault_text.planned(fields)}"
        case EventKind.DEVICE_PLANNED:
            return f"GPU memory: {gpu_fit_text.planned(fields)}"
        case EventKind.SNAPSHOTS_PLANNED:
            return f"node loss: {gpu_fit_text.node_loss(fields)}"
        case EventKind.VAULTS_ADOPTED:
            return f"adopted: {vault_text.adopted(fields)}"
        case EventKind.VAULTS_KEPT:
            return f"kept: {vault_text.kept(fields)}"
        case EventKind.FAULT_INJECTED:
            return f"drill: {fields.get('fault')} on rank {fields.get('rank')} at step {fields.get('step')}"
        case _:
            return None


def _continuing(fields: dict[str, Any]) -> str:
    where = f"from step {fields.get('from_step')} ({fields.get('source')})"
    if fields.get("source") == "beginning":
        where = "from the beginning"
    if fields.get("skipped"):
        return f"rolling back: continuing {where}"
    return f"recovering: worker {fields.get('rank')} was lost at step {fields.get('step')}, continuing {where}"

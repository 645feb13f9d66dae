"""Displays for output that is not a terminal: lines of text, or events as JSON."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

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
from orchestrator.cli.display.run_view import ShownRun
from orchestrator.domain.events import (
    ChangesAccepted,
    CheckpointFailed,
    CheckpointRejected,
    CheckpointRestored,
    CheckpointSaved,
    ClusterReady,
    DataProgress,
    DataReady,
    DataSkipped,
    DevicePlanned,
    EvalFinished,
    Event,
    EventBody,
    FaultInjected,
    GangResized,
    GangWaiting,
    MetricsServing,
    ModelExported,
    NodeDraining,
    RecoveryFinished,
    RecoveryStarted,
    RunCreated,
    RunState,
    ScaleAnswered,
    SnapshotsPlanned,
    StateChanged,
    TrackerEnded,
    TrackerReady,
    TrainingPlanned,
    VaultsAdopted,
    VaultsKept,
    VaultsPlanned,
    WarningIssued,
    WorkerFailed,
    WorkerPhase,
    WorkerSlow,
    WorkerStarted,
)
from orchestrator.domain.events.event_codec import encode_event
from orchestrator.domain.step_report import StepReport
from orchestrator.metrics.jsonl import finite

ALWAYS_TOLD = (
    WarningIssued,
    ChangesAccepted,
    WorkerFailed,
    WorkerSlow,
    RecoveryStarted,
    RecoveryFinished,
    GangResized,
    ScaleAnswered,
    NodeDraining,
    GangWaiting,
    VaultsAdopted,
    VaultsKept,
)
"""Also without progress."""
LINE_INTERVAL_S = 5.0
"""Steps and data progress are printed at most this often."""


class PlainDisplay:
    """Observer that writes a line for each event, and every few seconds while training."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.time, show_progress: bool = True) -> None:
        self.view = ShownRun()
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
        if isinstance(event.body, DataProgress):
            if self._due():
                self._say(f"data: {data_progress(self.view, self._clock())}")
            return
        text = describe(event.body, self.view)
        if text and (self._show_progress or isinstance(event.body, ALWAYS_TOLD)):
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

    A step has the kind `step`, the fields of its line in `steps.jsonl`, and `ranks` if it has a line in `ranks.jsonl`.
    """

    def __init__(self, stream: TextIO) -> None:
        self.view = ShownRun()
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
        self._print(encode_event(event))

    def on_step(self, report: StepReport) -> None:
        """Print it."""
        self.view.on_step(report)
        self._print({"kind": "step", **report.to_message()})

    def _print(self, value: Mapping[str, object]) -> None:
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


def step_line(view: ShownRun) -> str:
    """`step 34/120 (28%)  loss 5.1234  val 5.4  tok/s 12,345  step 0.51 s  RSS 2.1 GiB  1:23 left`."""
    total = view.total_steps
    share = f" ({view.step / total:.0%})" if total else ""
    text = "  ".join(f"{name} {value}" for name, value in figures(view))
    left = f"  {formatting.clock(view.eta_s)} left" if view.eta_s else ""
    return f"step {view.step}/{total or '?'}{share}  {text}{left}"


def waiting_text(waiting: GangWaiting) -> str:
    """`waiting for nodes: 1 of 2 workers are there; the state of step 40 is kept`."""
    kept = f"; the state of step {waiting.step} is kept" if waiting.step else ""
    return f"waiting for nodes: {waiting.have} of {waiting.need} required workers available{kept}"


def describe(body: EventBody, view: ShownRun) -> str | None:
    """One line about an event; None if it is not worth one."""
    match body:
        case RunCreated(run_id=run_id, resumed_from_step=resumed):
            return f"run {run_id}" + (f", resumed from step {resumed}" if resumed else "")
        case ChangesAccepted():
            return changes_text(body)
        case ClusterReady():
            return f"cluster: {cluster_ready(body)}, {formatting.duration(body.seconds)}"
        case DataReady():
            return f"data: {data_ready(body)}, {formatting.duration(body.seconds)}"
        case DataSkipped():
            return f"skipped: {skipped(body)}"
        case TrainingPlanned():
            return f"plan: {body.total_steps} steps, {model_text(body)}"
        case WorkerStarted():
            return f"worker {body.rank} started on {body.node} ({body.device})"
        case WorkerPhase(phase=phase):
            return f"workers: {phase}"
        case WorkerFailed():
            return f"worker {body.rank} failed: {body.error}"
        case EvalFinished():
            return f"step {body.step}: validation loss {formatting.loss(body.loss)}"
        case ModelExported():
            return f"exported to {body.path}"
        case MetricsServing(url):
            return f"metrics at {url}"
        case WarningIssued(message):
            return f"warning: {message}"
        case StateChanged(state, reason):
            if state in (RunState.RECOVERING, RunState.WAITING):
                return None  # a more specific event follows
            return f"{state}" + (f": {reason}" if reason else "")
        case CheckpointSaved() | CheckpointFailed() | CheckpointRestored() | CheckpointRejected():
            return _describe_checkpoint(body)
        case _:
            return _describe_memory(body) or _describe_recovery(body) or _describe_tracker(body)


def _describe_checkpoint(
    body: CheckpointSaved | CheckpointFailed | CheckpointRestored | CheckpointRejected,
) -> str:
    match body:
        case CheckpointSaved():
            size, seconds = formatting.size(body.bytes), formatting.duration(body.seconds)
            return f"step {body.step}: checkpoint saved, {size} in {seconds}"
        case CheckpointFailed():
            return f"warning: {body.reason}; training continues"
        case CheckpointRestored():
            return f"restored step {body.step} from {body.path}"
        case CheckpointRejected():
            return f"checkpoint {body.path} not used: {body.reason}"


def _describe_memory(body: EventBody) -> str | None:
    match body:
        case VaultsPlanned():
            return f"memory: {vault_text.planned(body)}"
        case DevicePlanned():
            return f"GPU memory: {gpu_fit_text.planned(body)}"
        case SnapshotsPlanned():
            return f"node loss: {gpu_fit_text.node_loss(body)}"
        case VaultsAdopted():
            return f"adopted: {vault_text.adopted(body)}"
        case VaultsKept():
            return f"kept: {vault_text.kept(body)}"
        case _:
            return None


def _describe_recovery(body: EventBody) -> str | None:
    """The same for lost workers and changes of size."""
    match body:
        case WorkerSlow(slow=False):
            return f"worker {body.rank} is no longer slow"
        case WorkerSlow():
            slow = f"{body.ratio:.1f} times as long as the others, mostly in {body.phase}"
            return f"worker {body.rank} is slow: {slow}"
        case RecoveryStarted():
            return _continuing(body)
        case RecoveryFinished(steps_recomputed=again):
            return (
                f"recovered in {formatting.duration(body.seconds)} with {body.world_size} workers, "
                f"{again} step{'s' if again != 1 else ''} recomputed"
            )
        case GangResized():
            same = body.world_size == body.before
            was = "same size, different workers" if same else f"{body.before} before"
            return f"step {body.step}: {body.world_size} workers from now on, {was}"
        case ScaleAnswered() | NodeDraining():
            return planned_text(body)
        case GangWaiting():
            return waiting_text(body)
        case FaultInjected():
            return f"drill: {body.fault} on rank {body.rank} at step {body.step}"
        case _:
            return None


def _describe_tracker(body: EventBody) -> str | None:
    match body:
        case TrackerReady():
            return f"{body.tracker}: {body.place}"
        case TrackerEnded():
            dropped = f", {body.dropped} dropped" if body.dropped else ""
            problem = f"; {body.problem}" if body.problem else ""
            return f"{body.tracker}: {body.logged} points logged{dropped}{problem}"
        case _:
            return None


def _continuing(recovery: RecoveryStarted) -> str:
    where = f"from step {recovery.from_step} ({recovery.source})"
    if recovery.source == "beginning":
        where = "from the beginning"
    if recovery.skipped:
        return f"rolling back: continuing {where}"
    return f"recovering: worker {recovery.rank} was lost at step {recovery.step}, continuing {where}"

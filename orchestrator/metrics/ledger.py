"""Accounts for the wall time of a run, and computes goodput, the share of it spent training.

`Ledger` is pure: facts with times go in, seconds by category come out, and they always add up to the elapsed time.
`LedgerRecorder` feeds it from a run and keeps `ledger.json`.
"""

import sys
import threading
from collections.abc import Callable
from enum import StrEnum
from math import isfinite

from orchestrator.atomic_files import read_json, write_json
from orchestrator.domain.events import (
    CheckpointFailed,
    CheckpointRestored,
    CheckpointSaved,
    ClusterReady,
    DataProgress,
    DataReady,
    EvalFinished,
    Event,
    EventBody,
    ModelExported,
    RecoveryStarted,
    RunState,
    StateChanged,
    WorkerFailed,
    WorkerPhase,
)
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.json_values import JsonFields, JsonObject, integer, mapping, number, optional
from orchestrator.metrics.lineage import Lineage

WRITE_INTERVAL_S = 5.0


class Category(StrEnum):
    """Categories of wall time."""

    PREPARING_DATA = "preparing_data"
    STARTING_CLUSTER = "starting_cluster"
    STARTING_WORKERS = "starting_workers"
    """Placement, processes, imports, rendezvous."""
    BUILDING = "building"
    """Model and engine, operator builds included."""
    RESTORING = "restoring"
    TRAINING = "training"
    """Steps that count: forward, backward, optimizer. The productive part."""
    DATA_WAIT = "data_wait"
    EVALUATING = "evaluating"
    CHECKPOINTING = "checkpointing"
    EXPORTING = "exporting"
    RECOVERING = "recovering"
    """From a lost worker to the first step after it: placement, processes, imports, building and restoring included."""
    WAITING = "waiting"
    """For nodes, with too few workers to train."""
    LOST = "lost"
    """Wasted training: an interrupted step, and steps that were repeated or will be."""
    OTHER = "other"
    """Everything else: between the phases, shutting down."""


_PHASES = {
    "import": Category.STARTING_WORKERS,
    "rendezvous": Category.STARTING_WORKERS,
    "build": Category.BUILDING,
    "restore": Category.RESTORING,
    "train": Category.TRAINING,
    "export": Category.EXPORTING,
}
_STATES = {
    RunState.STARTING: Category.STARTING_WORKERS,
    RunState.RECOVERING: Category.RECOVERING,
    RunState.WAITING: Category.WAITING,
}


class Ledger:
    """Seconds by category. Times are Unix seconds; one that goes backwards counts as no time passed."""

    def __init__(self, start_s: float, carried: JsonFields | None = None) -> None:
        """`carried`: `to_json` of the previous driver, which is continued; the time between is not counted."""
        self._booked: dict[Category, float] = dict.fromkeys(Category, 0.0)
        """But for `TRAINING`, and the part of `LOST` that was `TRAINING`: see `_lineage`."""
        self._lineage = Lineage()
        self._start_s = start_s
        self._now_s = start_s
        self._open_s = start_s
        """What lies between here and `_now_s` is not booked yet."""
        self._current = Category.OTHER
        self._step_checkpoint_s = 0.0
        self._carried_s = 0.0
        if carried:
            self._carry(carried)

    def _carry(self, carried: JsonFields) -> None:
        """Raises JsonShapeError if it is no ledger."""
        before = mapping(carried, "seconds")
        seconds = {category: max(0.0, optional(number, before, category.value) or 0.0) for category in Category}
        self._carried_s = sum(seconds.values())
        trained_s, lost_s = seconds[Category.TRAINING], seconds[Category.LOST]
        points = optional(mapping, carried, "trained_after_step") or {}
        known = {int(step): number(points, step) for step in points}
        lineage = Lineage(known or {0: trained_s}, optional(integer, carried, "going_on_from") if known else None)
        if lineage.counted_s > trained_s or lineage.undone_s > lost_s:
            lineage = Lineage({0: trained_s})  # it does not belong to these seconds
        self._lineage = lineage
        # A step that the driver before this one did not live to see the end of was cut off.
        cut_off_s = trained_s - lineage.counted_s
        self._booked = {**seconds, Category.TRAINING: 0.0, Category.LOST: lost_s - lineage.undone_s + cut_off_s}

    @property
    def seconds(self) -> dict[Category, float]:
        """Seconds by category, what lies open left out."""
        lineage, booked = self._lineage, self._booked
        lost_s = booked[Category.LOST] + lineage.superseded_s + lineage.undone_s
        return {**booked, Category.TRAINING: lineage.counted_s, Category.LOST: lost_s}

    def on_event(self, event: Event, now_s: float) -> None:
        """Take an event received at `now_s`; its own time is used if it is plausible."""
        self._advance(min(event.time_s, now_s))
        recovering = self._current is Category.RECOVERING
        measured = None if recovering else _measured(event.body)
        if measured is not None:
            category, seconds = measured
            taken = self._carve(category, seconds if isfinite(seconds) else 0.0)
            if category is Category.CHECKPOINTING:
                self._step_checkpoint_s += taken
        match event.body:
            case DataProgress():
                self._switch(Category.PREPARING_DATA)
            case ClusterReady() | DataReady():
                # Whichever comes last, it is the workers that are waited for then.
                self._switch(Category.STARTING_WORKERS)
            case WorkerPhase() as entered:
                # Every phase of a recovery is the recovery's. Its first step ends it, or the export if no step is left.
                phase = _PHASES.get(entered.phase, Category.OTHER)
                if not recovering or phase is Category.EXPORTING:
                    self._switch(phase)
            case StateChanged(state):
                self._enter(state)
            case WorkerFailed() if self._current is Category.TRAINING:
                self._close(Category.LOST)
                self._switch(Category.OTHER)
            case CheckpointRestored() as restored:
                self._lineage.go_on_from(restored.step)
            case RecoveryStarted() as recovery:
                self._lineage.go_on_from(recovery.from_step)

    def _enter(self, state: RunState) -> None:
        """The run's state has changed; `running` says nothing that the phases do not say better."""
        if state in (RunState.FAILED, RunState.RECOVERING) and self._current is Category.TRAINING:
            self._close(Category.LOST)
        if state != RunState.RUNNING:
            self._switch(_STATES.get(state, Category.OTHER))

    def on_step(self, report: StepReport, now_s: float) -> None:
        """Take a finished step: what lies open becomes its phases, and the rest of it `other`."""
        self._advance(min(report.time_s, now_s))
        if self._current is Category.RECOVERING:
            self._carve(Category.RECOVERING, max(0.0, self._now_s - self._open_s - report.step_time_s))
            self._current = Category.TRAINING
        elif self._current is not Category.TRAINING:
            self._switch(Category.TRAINING)
        ranks = report.ranks
        data_wait_s = sum(rank.phases.data_wait_s for rank in ranks) / max(1, len(ranks))
        checkpoint_s = sum(rank.phases.checkpoint_s for rank in ranks) / max(1, len(ranks))
        self._carve(Category.DATA_WAIT, data_wait_s)
        # A checkpoint that its own event has booked already is not booked twice.
        self._carve(Category.CHECKPOINTING, max(0.0, checkpoint_s - self._step_checkpoint_s))
        trained_s = self._take(report.step_time_s - data_wait_s - checkpoint_s)
        self._lineage.add(report.step, trained_s)
        self._close(Category.OTHER)
        self._step_checkpoint_s = 0.0

    def to_json(self, now_s: float) -> JsonObject:
        """The ledger as of `now_s`; what lies open is shown under what the run is doing."""
        self._advance(now_s)
        seconds = self.seconds
        seconds[self._current] += self._now_s - self._open_s
        elapsed_s = self._carried_s + self._now_s - self._start_s
        return {
            "elapsed_s": elapsed_s,
            "goodput": seconds[Category.TRAINING] / elapsed_s if elapsed_s > 0 else 0.0,
            "seconds": {category.value: seconds[category] for category in Category},
            "trained_after_step": {str(step): value for step, value in self._lineage.points.items()},
            "going_on_from": self._lineage.position,
        }

    def _advance(self, time_s: float) -> None:
        self._now_s = max(self._now_s, time_s)

    def _carve(self, category: Category, seconds: float) -> float:
        """Book up to `seconds` of what lies open; returns how much that was."""
        taken = self._take(seconds)
        self._booked[category] += taken
        return taken

    def _take(self, seconds: float) -> float:
        """Up to `seconds` of what lies open, which no longer does."""
        taken = max(0.0, min(self._now_s - self._open_s, seconds))
        self._open_s += taken
        return taken

    def _close(self, category: Category) -> None:
        self._carve(category, self._now_s - self._open_s)
        self._open_s = self._now_s

    def _switch(self, category: Category) -> None:
        # Training time that no step accounts for is not training.
        self._close(Category.OTHER if self._current is Category.TRAINING else self._current)
        self._current = category


class LedgerRecorder:
    """Observer that keeps `ledger.json` of a run, at most seconds old. `clock` gives Unix seconds. Thread-safe."""

    def __init__(self, layout: RunLayout, clock: Callable[[], float]) -> None:
        self._path = layout.ledger
        self._lock = threading.Lock()
        self._clock = clock
        carried = read_json(self._path)
        try:
            self.ledger = Ledger(clock(), carried)
        except ValueError:
            self.ledger = Ledger(clock())
        self._written_s = 0.0
        self._failed = False

    def on_event(self, event: Event) -> None:
        with self._lock:
            self.ledger.on_event(event, self._clock())
        self._write(force=isinstance(event.body, StateChanged))

    def on_step(self, report: StepReport) -> None:
        with self._lock:
            self.ledger.on_step(report, self._clock())
        self._write(force=False)

    def snapshot(self) -> JsonObject:
        """The ledger now, as in `ledger.json`."""
        with self._lock:
            return self.ledger.to_json(self._clock())

    def close(self) -> None:
        """Write it a last time."""
        self._write(force=True)

    def _write(self, force: bool) -> None:
        now_s = self._clock()
        if not force and now_s - self._written_s < WRITE_INTERVAL_S:
            return
        self._written_s = now_s
        try:
            write_json(self._path, self.snapshot(), durable=force)
        except OSError as error:
            if not self._failed:
                self._failed = True
                print(f"warning: cannot write {self._path}: {error.strerror}", file=sys.stderr)


def _measured(body: EventBody) -> tuple[Category, float] | None:
    """What an event says to have taken how many seconds, when that is over; None if it does not."""
    match body:
        case ClusterReady():
            return Category.STARTING_CLUSTER, body.seconds
        case DataReady():
            return Category.PREPARING_DATA, body.seconds
        case EvalFinished():
            return Category.EVALUATING, body.seconds
        case CheckpointSaved() if body.write_seconds is not None:
            return None  # written in the background: its step has reported how long training was paused
        case CheckpointSaved() | CheckpointFailed():
            return Category.CHECKPOINTING, body.seconds
        case CheckpointRestored():
            return Category.RESTORING, body.seconds
        case ModelExported():
            return Category.EXPORTING, body.seconds
        case _:
            return None

"""Keeps `ledger.json` of a run: the result for people and programs, and the state for the driver that resumes it."""

import json
import sys
import threading
from collections.abc import Callable, Iterable
from typing import TypeAlias

from orchestrator.atomic_files import read_json, write_text
from orchestrator.domain.events import Event, StateChanged
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.goodput.ledger import Ledger
from orchestrator.goodput.ledger_result import LedgerResult
from orchestrator.goodput.ledger_view import result_of
from orchestrator.goodput.worker_terms import WorkerTerms
from orchestrator.json_values import JsonFields, mapping

WRITE_INTERVAL_S = 5.0

Fact: TypeAlias = Event | StepReport
FactsAfter: TypeAlias = Callable[[float | None], Iterable[Fact]]
"""The recorded facts of a run after a time in Unix seconds, in order; None: all of them."""


class LedgerRecorder:
    """Observer that keeps `ledger.json` of a run, at most seconds old. Thread-safe."""

    def __init__(self, layout: RunLayout, clock: Callable[[], float], terms: WorkerTerms, recorded: FactsAfter) -> None:
        """`clock` gives Unix seconds that never go back. `recorded`: for a ledger that an earlier driver could not
        complete, or that an earlier version wrote."""
        self._path = layout.ledger
        self._lock = threading.Lock()
        self._clock, self._terms = clock, terms
        self.ledger = continued(read_json(self._path), recorded)
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

    def snapshot(self) -> LedgerResult:
        """The ledger now."""
        with self._lock:
            return result_of(self.ledger, self._clock(), self._terms)

    def totals(self) -> LedgerResult:
        """The same without what each node has spent: for scrapes, which may come every second."""
        with self._lock:
            return result_of(self.ledger, self._clock(), self._terms, nodes=False)

    def close(self) -> None:
        """Write it a last time."""
        self._write(force=True)

    def _write(self, force: bool) -> None:
        now_s = self._clock()
        if not force and now_s - self._written_s < WRITE_INTERVAL_S:
            return
        self._written_s = now_s
        with self._lock:
            value = {**result_of(self.ledger, now_s, self._terms).to_json(), "state": self.ledger.to_json()}
        try:
            write_text(self._path, json.dumps(value) + "\n", durable=force)
        except OSError as error:
            if not self._failed:
                self._failed = True
                print(f"warning: cannot write {self._path}: {error.strerror}", file=sys.stderr)


def continued(value: JsonFields | None, recorded: FactsAfter) -> Ledger:
    """The ledger of a run: from its state in `ledger.json` and what was recorded after that, or if there is no state
    from all that was recorded."""
    try:
        ledger = Ledger.from_json(mapping(value or {}, "state"))
    except ValueError:
        return replayed(Ledger(), recorded(None))
    return replayed(ledger, recorded(ledger.timeline.now_s))


def replayed(ledger: Ledger, facts: Iterable[Fact]) -> Ledger:
    """The ledger after recorded facts."""
    for fact in facts:
        if isinstance(fact, Event):
            ledger.on_event(fact, fact.time_s)
        else:
            ledger.on_step(fact, fact.time_s)
    return ledger


def shown(value: JsonFields | None, terms: Callable[[], WorkerTerms], recorded: FactsAfter) -> LedgerResult | None:
    """The result in `ledger.json`, as of its last writing. If it is of an earlier version or missing, it is worked out
    from what was recorded; None if nothing was."""
    try:
        return LedgerResult.from_json(value or {})
    except ValueError:
        ledger = continued(None, recorded)
    return result_of(ledger, ledger.timeline.now_s, terms()) if ledger.timeline.now_s > 0.0 else None

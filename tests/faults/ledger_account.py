"""The ledger of a real run, held against an account of its own: what the run's events and steps say by themselves."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from orchestrator.domain.events import (
    CheckpointRejected,
    Event,
    MetricsServing,
    RecoveryStarted,
    RunCreated,
    RunState,
    StateChanged,
    TrackerReady,
    WarningIssued,
    WorkersReserved,
)
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.goodput.ledger_result import IncidentTime, LedgerResult
from orchestrator.goodput.time_class import RECOVERY_CLASSES, TimeClass
from orchestrator.store.recorded_ledger import ledger_of
from orchestrator.store.run_history import read_events, read_steps

SLACK_S = 0.25
"""What a worker's time may differ by beside a step: a round of the driver's loop, on a machine that is busy."""
FINAL = (RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED)


@dataclass(frozen=True)
class Level:
    """So many workers were reserved from a time on."""

    time_s: float
    workers: int
    earlier_s: float


class Records:
    """What a run has recorded, in order."""

    def __init__(self, run_dir: Path) -> None:
        layout = RunLayout(run_dir)
        self.events: list[Event] = list(read_events(layout.events))
        self.steps: list[StepReport] = list(read_steps(layout.steps))
        self.levels = list(self._levels())

    def _levels(self) -> Iterator[Level]:
        """A driver that is lost takes its workers with it, at the last thing that it recorded."""
        ended = True
        for event in self.events:
            match event.body:
                case RunCreated() if not ended:
                    yield Level(self._last_before(event), 0, 0.0)
                case WorkersReserved() as reserved:
                    workers = sum(place.members + place.joining for place in reserved.nodes)
                    yield Level(event.time_s, workers, reserved.earlier_s)
                case StateChanged(state) if state in FINAL:
                    yield Level(event.time_s, 0, 0.0)
            ended = isinstance(event.body, StateChanged) and event.body.state in FINAL

    def _last_before(self, created: Event) -> float:
        """What the next driver reports before it takes up the run is not of the one before."""
        before = CheckpointRejected | MetricsServing | TrackerReady | WarningIssued
        events = [event for event in self.events if not isinstance(event.body, before)]
        times_s = (fact.time_s for fact in (*events, *self.steps) if fact.time_s < created.time_s)
        return max(times_s, default=created.time_s)  # of the first driver there is nothing

    def worker_s(self, since_s: float = 0.0, until_s: float = float("inf")) -> float:
        """Worker-seconds that were reserved between two times."""
        total = sum(level.earlier_s for level in self.levels if since_s <= level.time_s < until_s)
        for level, following in pairwise([*self.levels, Level(float("inf"), 0, 0.0)]):
            if level.workers:
                total += level.workers * max(0.0, min(until_s, following.time_s) - max(since_s, level.time_s))
        return total


def check_ledger(run_dir: Path) -> LedgerResult:
    """The ledger of a run that is over. It adds up to the workers' time within 0.5%, and what each recovery cost is in
    the right classes to within a step."""
    ledger, records = ledger_of(RunLayout(run_dir)), Records(run_dir)
    assert ledger is not None
    assert sum(ledger.seconds.values()) == pytest.approx(ledger.reserved_s, rel=1e-4)
    told = (ledger.reserved_s, records.worker_s(), ledger.seconds)
    assert ledger.reserved_s == pytest.approx(records.worker_s(), rel=0.005, abs=0.1), told
    by_node = sum(sum(node.seconds.values()) for node in ledger.by_node)
    assert by_node == pytest.approx(ledger.reserved_s, rel=1e-4)
    assert ledger.workers == 0
    incidents = {each.incident: each for each in ledger.by_incident}
    started = [event for event in records.events if isinstance(event.body, RecoveryStarted)]
    assert set(incidents) - {None} == {event.body.incident for event in started if _is(event.body)}
    for event in started:
        body = event.body
        assert isinstance(body, RecoveryStarted)
        _check_recovery(event, body, started, incidents[body.incident], records)
    return ledger


def _is(body: object) -> bool:
    return isinstance(body, RecoveryStarted)


def _check_recovery(
    event: Event, body: RecoveryStarted, started: list[Event], found: IncidentTime, records: Records
) -> None:
    before = [step for step in records.steps if step.time_s <= event.time_s]
    after = [step for step in records.steps if step.time_s > event.time_s]
    if not before or not after:
        return  # no step was cut off
    together = [each for each in started if before[-1].time_s < each.time_s < after[0].time_s]
    if together != [event]:
        return  # one failure prolonged the recovery from another
    workers, longest_s = before[-1].world_size, max(step.step_time_s for step in records.steps)
    near = (longest_s + SLACK_S) * workers
    last_s = before[-1].time_s
    alive_s = max(last_s, body.alive_s if body.alive_s is not None else body.detected_s)
    detected_s = max(alive_s, body.detected_s)
    thrown_away = [step for step in before[-(body.step + 1) :] if after[0].step <= step.step <= body.step]
    recomputed = sum(step.step_time_s * step.world_size for step in thrown_away) + (alive_s - last_s) * workers
    expected = {
        TimeClass.RECOMPUTED: recomputed,
        TimeClass.RECOVERY_DETECTION: (detected_s - alive_s) * workers,
        TimeClass.RECOVERY_DECISION: (event.time_s - detected_s) * workers,
    }
    got = {time_class: found.seconds.get(time_class, 0.0) for time_class in expected}
    assert got == {time_class: pytest.approx(seconds, abs=near) for time_class, seconds in expected.items()}, found
    rebuilt = sum(found.seconds.get(each, 0.0) for each in (*RECOVERY_CLASSES[2:], TimeClass.WAITING))
    begins_s = after[0].time_s - after[0].step_time_s
    assert rebuilt == pytest.approx(records.worker_s(event.time_s, begins_s), abs=near), found


def cost_of(ledger: LedgerResult) -> IncidentTime:
    """The only incident of a run."""
    (incident,) = ledger.by_incident
    return incident

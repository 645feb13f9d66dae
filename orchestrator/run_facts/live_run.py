"""Runs that are watched: what was appended to their files is read, and nothing twice."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from pathlib import Path

from orchestrator.atomic_files import read_json
from orchestrator.domain.events import Event
from orchestrator.domain.events.event_codec import decode_event
from orchestrator.domain.ranks.rank_report import RankReport
from orchestrator.domain.run_layout import RunLayout
from orchestrator.json_values import JsonObject
from orchestrator.run_facts.event_history import EventHistory
from orchestrator.run_facts.jsonl_tail import JsonlTail
from orchestrator.run_facts.step_history import StepFollower
from orchestrator.run_facts.step_point import PHASES, StepPoint
from orchestrator.store.recorded_progress import RecordedProgress
from orchestrator.store.run_history import read_last_ranks
from orchestrator.store.run_store import RunRecord, RunStore, read_record

PACE_STEPS = 20
"""Steps whose mean is shown as the present speed."""
KEPT_EVENTS = 100
WHOLE_BYTES = 64 << 20
"""A `steps.jsonl` up to this size is read from its beginning; of a larger one, so much of its end."""
GLANCE_BYTES = 256 << 10
"""The same for one run among many."""
_GAP_FACTOR = 5.0
"""A pause between two steps that is longer than so many steps is not part of the pace: a recovery, an evaluation."""


@dataclass(frozen=True)
class LivePace:
    """Means over the newest steps."""

    tokens_per_s: float | None
    step_time_s: float
    interval_s: float
    """From the end of a step to the end of the next one: with evaluations and checkpoints between them."""
    phase_shares: tuple[float, ...]
    """Of the step time, in the order of `PHASES`, 0 to 1; the rest is in no phase."""


@dataclass(frozen=True)
class LiveFacts:
    """A run at one moment."""

    record: RunRecord
    events: EventHistory
    newest_events: tuple[Event, ...]
    """Oldest first, at most `KEPT_EVENTS`."""
    last: StepPoint | None
    pace: LivePace | None
    losses: tuple[float, ...]
    whole: bool
    """Whether the losses begin with the run's first step."""
    ranks: tuple[RankReport, ...]
    durability: JsonObject | None

    @property
    def eta_s(self) -> float | None:
        """Time until the last step at the present pace; None if the run does not train."""
        total, pace = self.record.total_steps, self.pace
        if total is None or pace is None or not self.record.active:
            return None
        return max(0, total - self.record.step) * pace.interval_s


class LiveRun:
    """One run that is watched. `refresh` reads what is new."""

    def __init__(self, layout: RunLayout, glance: bool = False) -> None:
        """`glance`: the end of the steps is enough, and the ranks are not read."""
        self.layout, self._glance = layout, glance
        self._steps = StepFollower(layout.steps, GLANCE_BYTES if glance else WHOLE_BYTES)
        self._event_lines = JsonlTail(layout.events)
        self._events = EventHistory()
        self._newest: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self._ranks: tuple[RankReport, ...] = ()
        self._durability = _Cached(layout.durability)

    def refresh(self) -> LiveFacts | None:
        """The run now; None if there is no run in the directory."""
        for line in self._event_lines.read():
            event = decode_event(line)
            if event is not None:
                self._events.take(event)
                self._newest.append(event)
        if self._steps.refresh() and not self._glance:
            self._ranks = read_last_ranks(self.layout)
        recent = self._steps.recent
        last, pace = (recent[-1] if recent else None), pace_of(recent[-PACE_STEPS:])
        record = read_record(self.layout, self._progress(last, pace))
        if record is None:
            return None
        return LiveFacts(
            record, self._events, tuple(self._newest), last, pace, tuple(self._steps.losses), self._steps.whole,
            self._ranks, self._durability.read(),
        )  # fmt: skip

    def _progress(self, last: StepPoint | None, pace: LivePace | None) -> RecordedProgress:
        evaluations, plan = self._events.evaluations, self._events.plan
        validation = evaluations[-1].loss if evaluations and isfinite(evaluations[-1].loss) else None
        return RecordedProgress(
            step=last.step if last is not None else 0,
            total_steps=plan.total_steps if plan is not None else None,
            loss=last.loss if last is not None else None,
            validation_loss=validation,
            tokens_per_s=pace.tokens_per_s if pace is not None else None,
            workers=last.world_size if last is not None else None,
            time_s=last.time_s if last is not None else None,
        )


def pace_of(recent: Sequence[StepPoint]) -> LivePace | None:
    """The pace of steps in ascending order; None without steps. Pure."""
    if not recent:
        return None
    seconds = sum(point.step_time_s for point in recent)
    step_s = seconds / len(recent)
    gaps = [after.time_s - before.time_s for before, after in pairwise(recent)]
    usual = [gap for gap in gaps if 0.0 < gap <= _GAP_FACTOR * max(step_s, 1e-9)]
    shares = tuple(
        sum(point.phases_s[index] for point in recent) / seconds if seconds > 0 else 0.0 for index in range(len(PHASES))
    )
    tokens_per_s = sum(point.tokens for point in recent) / seconds if seconds > 0 else None
    return LivePace(tokens_per_s, step_s, sum(usual) / len(usual) if usual else step_s, shares)


class LiveFleet:
    """All runs under a directory: those that are active, and the newest of the others."""

    def __init__(self, home: Path, ended: int) -> None:
        """`ended`: so many runs that are not active."""
        self._store, self._ended_shown = RunStore(home), ended
        self._live: dict[RunLayout, LiveRun] = {}
        self._over: dict[RunLayout, tuple[int, LiveFacts]] = {}
        """Runs that were not active, with the time stamp of their `run.json`."""

    def refresh(self) -> list[LiveFacts]:
        """The runs now: active ones first, then the newest."""
        found: list[LiveFacts] = []
        layouts = self._store.newest(self._ended_shown + _MOST_ACTIVE)
        for layout in layouts:
            facts = self._facts(layout)
            if facts is not None:
                found.append(facts)
        known = set(layouts)
        self._live = {layout: live for layout, live in self._live.items() if layout in known}
        self._over = {layout: kept for layout, kept in self._over.items() if layout in known}
        active = [facts for facts in found if facts.record.active]
        return active + [facts for facts in found if not facts.record.active][: self._ended_shown]

    def _facts(self, layout: RunLayout) -> LiveFacts | None:
        try:
            stamp = layout.state.stat().st_mtime_ns
        except OSError:
            return None
        kept = self._over.get(layout)
        if kept is not None and kept[0] == stamp:
            return kept[1]
        live = self._live.get(layout)
        if live is None:
            live = self._live[layout] = LiveRun(layout, glance=True)
        facts = live.refresh()
        if facts is not None and not facts.record.active and not facts.record.lost:
            self._over[layout] = (stamp, facts)
            del self._live[layout]
        return facts


_MOST_ACTIVE = 64
"""Runs that are looked at, besides those that are over."""


class _Cached:
    """A JSON file that others replace: parsed again only if it was replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._value: JsonObject | None = None

    def read(self) -> JsonObject | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        stamp = (status.st_mtime_ns, status.st_ino)
        if stamp != self._stamp:
            self._stamp, self._value = stamp, read_json(self._path)
        return self._value

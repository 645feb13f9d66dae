"""The periods that a run went through: its drivers, its states, its generations of workers, its recoveries. Pure."""

from collections import deque
from dataclasses import dataclass, field

from orchestrator.domain.events import (
    CheckpointSaved,
    Event,
    EventBody,
    GangResized,
    RecoveryFinished,
    RecoveryStarted,
    RunCreated,
    RunState,
    StateChanged,
    TrainingPlanned,
    WorkerHung,
)
from orchestrator.domain.run_states import FINAL_STATES

MOST_PERIODS = 2000
"""Of each kind that are kept, the newest."""


@dataclass
class StatePeriod:
    """The run was in a state. Times are Unix seconds."""

    state: RunState
    started_s: float
    ended_s: float | None = None
    """None: it still is."""


@dataclass
class GangPeriod:
    """A gang of workers, from its plan to its end. Times are Unix seconds."""

    number: int
    """Counted from 1 over all drivers."""
    world_size: int
    micro_batch: int
    accumulation: int
    started_s: float
    ended_s: float | None = None
    ending: str = ""
    """Why it ended, for people; empty while it has not."""


@dataclass
class RecoveryPeriod:
    """A lost worker or a numeric fault, and how the run continued."""

    incident: int
    rank: int
    cause: str
    detected_s: float
    """Unix time."""
    step: int
    """The last step finished before it."""
    from_step: int
    """The step that training continued from."""
    source: str
    """vaults, storage or beginning."""
    rolled_back: bool
    """After a numeric fault."""
    seconds: float | None = None
    """From detection to the end of the first step after it; None: not over, or the run ended."""
    steps_recomputed: int = 0
    world_size: int | None = None
    """After it."""


@dataclass(frozen=True)
class TimelineMark:
    """Something that happened at one moment."""

    time_s: float
    kind: str
    """The event's."""
    text: str


@dataclass
class RunPeriods:
    """Mutable: `take` changes it."""

    states: deque[StatePeriod] = field(default_factory=lambda: deque(maxlen=MOST_PERIODS))
    generations: deque[GangPeriod] = field(default_factory=lambda: deque(maxlen=MOST_PERIODS))
    recoveries: deque[RecoveryPeriod] = field(default_factory=lambda: deque(maxlen=MOST_PERIODS))
    marks: deque[TimelineMark] = field(default_factory=lambda: deque(maxlen=MOST_PERIODS))
    drivers: int = 0
    first_s: float | None = None
    """Unix time of the first event."""
    last_s: float | None = None
    """Unix time of the newest one."""
    driven_s: float = 0.0
    """Seconds that the drivers before the newest one had the run."""
    driver_since_s: float | None = None
    waiting_s: float = 0.0
    """Periods of `waiting` that are over."""
    planned: int = 0
    """Generations so far."""

    def take(self, event: Event) -> None:
        """Take the next event."""
        time_s, body = event.time_s, event.body
        if self.first_s is None:
            self.first_s = self.driver_since_s = time_s
        if isinstance(body, RunCreated):
            self._new_driver(time_s)
        self.last_s = time_s if self.last_s is None else max(self.last_s, time_s)
        match body:
            case StateChanged(state):
                self._enter(state, time_s)
            case TrainingPlanned():
                self._plan(body, time_s)
            case RecoveryStarted() | RecoveryFinished():
                self._recover(body, time_s)
            case GangResized():
                self._end_generation(time_s, "resized")
                self.marks.append(TimelineMark(time_s, body.kind, f"{body.before} to {body.world_size} workers"))
            case CheckpointSaved():
                self.marks.append(TimelineMark(time_s, body.kind, f"checkpoint of step {body.step}"))
            case WorkerHung():
                who = "all workers" if body.rank is None else f"worker {body.rank}"
                self.marks.append(TimelineMark(time_s, body.kind, f"{who} made no progress for {body.seconds:.0f} s"))

    def elapsed_s(self, end_s: float) -> float:
        """Wall seconds that drivers had the run, up to `end_s`."""
        since_s = end_s if self.driver_since_s is None else self.driver_since_s
        return self.driven_s + max(0.0, end_s - since_s)

    def waited_s(self, end_s: float) -> float:
        """Seconds in the state `waiting`, up to `end_s`."""
        last = self.states[-1] if self.states else None
        now = last is not None and last.ended_s is None and last.state is RunState.WAITING
        return self.waiting_s + (max(0.0, end_s - last.started_s) if now and last is not None else 0.0)

    def _new_driver(self, time_s: float) -> None:
        self.drivers += 1
        if self.driver_since_s is not None and self.last_s is not None:
            self.driven_s += max(0.0, self.last_s - self.driver_since_s)
            self._end_state(self.last_s)
            self._end_generation(self.last_s, "the driver ended")
        self.driver_since_s = time_s

    def _enter(self, state: RunState, time_s: float) -> None:
        self._end_state(time_s)
        over = state in FINAL_STATES
        self.states.append(StatePeriod(state, time_s, time_s if over else None))
        if over:
            self._end_generation(time_s, state.value)

    def _end_state(self, time_s: float) -> None:
        last = self.states[-1] if self.states else None
        if last is not None and last.ended_s is None:
            last.ended_s = max(last.started_s, time_s)
            if last.state is RunState.WAITING:
                self.waiting_s += last.ended_s - last.started_s

    def _plan(self, plan: TrainingPlanned, time_s: float) -> None:
        self._end_generation(time_s, "formed again")
        self.planned += 1
        gang = GangPeriod(self.planned, plan.world_size, plan.micro_batch, plan.accumulation, time_s)
        self.generations.append(gang)

    def _end_generation(self, time_s: float, ending: str) -> None:
        last = self.generations[-1] if self.generations else None
        if last is not None and last.ended_s is None:
            last.ended_s, last.ending = max(last.started_s, time_s), ending

    def _recover(self, body: EventBody, time_s: float) -> None:
        if isinstance(body, RecoveryStarted):
            rolled_back = body.skipped is not None
            self._end_generation(body.detected_s, "rolled back" if rolled_back else f"worker {body.rank} lost")
            self.recoveries.append(
                RecoveryPeriod(
                    body.incident, body.rank, body.cause, body.detected_s, body.step, body.from_step, body.source,
                    rolled_back,
                )
            )  # fmt: skip
            what = "rolled back" if rolled_back else f"worker {body.rank} lost"
            self.marks.append(TimelineMark(body.detected_s, body.kind, what))
        elif isinstance(body, RecoveryFinished) and self.recoveries:
            last = self.recoveries[-1]
            if last.incident == body.incident:
                last.seconds, last.steps_recomputed = body.seconds, body.steps_recomputed
                last.world_size = body.world_size
            self.marks.append(TimelineMark(time_s, body.kind, f"recovered in {body.seconds:.1f} s"))

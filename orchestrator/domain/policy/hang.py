"""Whether a gang makes progress, and which ranks hold it up. Pure: pulses and step times in, a verdict out.

Every rank makes the same beats in the same order, one at the start of each phase of a step, so beats can be compared:
the rank that is behind the others is the one they wait for. If no rank is behind, stacks show which ones wait.

Within a phase an operation that may take long reports progress after each part (`Session.progress`). Progress resets
the clock as a beat does, but is not compared between ranks: they have shards of different sizes. So every bound here
limits the time without progress, never the duration of an operation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

STEP_FLOOR_S = 10.0
"""No bound is shorter: a machine that swaps, or is paused for a moment, is no hang."""
MEDIAN_FACTOR = 5.0
LONGEST_FACTOR = 2.0
FIRST_S = 300.0
"""The first step of the first gang: kernels are built, connections made, caches filled."""
FIRST_FACTOR = 6.0
"""The first step of a later gang, in bounds of a step."""
CHECKPOINT_FLOOR_S = 120.0
"""Longer than a storage takes to report an error by itself (`checkpoint.storage.Limits`), so that it can."""
CHECKPOINT_FACTOR = 10.0
FIRST_CHECKPOINT_S = 600.0
"""As long as none has been measured."""
OUTSIDE_S = 600.0
"""What is neither a step nor a checkpoint: import, rendezvous, build, restore."""
EXPORT_S = 1800.0
STORAGE_S = 600.0
"""How long some workers may be blocked by the kernel in storage that does not answer: a node's own disk, or its mount.
Ending such a worker earlier would not help: the kernel does not end it, and a new one there would block too."""
ALL_STORAGE_S = 3600.0
"""The same for all workers at once: storage that they share. Ending them gains nothing and loses processes."""
SUSPICION = 0.5
"""The share of the bound at which stacks are taken."""
SILENT_S = 3.5
"""From the last report of a worker to looking at its process, and whether anything on its node still answers."""
STOPPED_S = 5.0
"""How long a worker's process may be stopped according to the kernel while no step finishes."""


class Phase(StrEnum):
    """What a training thread is doing."""

    START = "start"
    IMPORT = "import"
    RENDEZVOUS = "rendezvous"
    MODEL = "model"
    """Building the model or loading its weights, each rank by itself."""
    BUILD = "build"
    """Fetching data before that; after it the engine, together."""
    RESTORE = "restore"
    TRAIN = "train"
    """Between `restore` and the first step."""
    DATA = "data"
    FORWARD = "forward"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"
    EXCHANGE = "exchange"
    """The exchange of numbers between all ranks."""
    SNAPSHOT = "snapshot"
    EVAL = "eval"
    CHECKPOINT = "checkpoint"
    FINISH = "finish"
    EXPORT = "export"


STEP_PHASES = frozenset(
    {Phase.DATA, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER, Phase.EXCHANGE, Phase.SNAPSHOT, Phase.EVAL}
)


@dataclass(frozen=True)
class Pace:
    """What has been measured, in seconds, of this and earlier gangs of the run, the newest last."""

    steps_s: tuple[float, ...] = ()
    """Steps, without checkpoints."""
    checkpoints_s: tuple[float, ...] = ()
    """Checkpoints that were written while training stood still, from beginning to end. The moment that a checkpoint in
    the background takes from training says nothing about those and is not among them."""
    first_over: bool = False
    """The present gang has finished a step."""


def step_bound_s(pace: Pace, asked_s: float | None) -> float:
    """How long no rank may make progress in a step: `asked_s` if the spec sets it, else from measured steps."""
    if asked_s is not None:
        return asked_s
    if not pace.steps_s:
        return STEP_FLOOR_S
    return max(STEP_FLOOR_S, MEDIAN_FACTOR * median(pace.steps_s), LONGEST_FACTOR * max(pace.steps_s))


def bound_s(phase: Phase, pace: Pace, asked_s: float | None) -> float:
    """How long no rank may make progress while a rank is in `phase`."""
    step_s = step_bound_s(pace, asked_s)
    if phase in STEP_PHASES:
        if pace.first_over:
            return step_s
        return max(step_s, FIRST_FACTOR * step_s if pace.steps_s else FIRST_S)
    if phase is Phase.CHECKPOINT:
        longest_s = max(pace.checkpoints_s, default=None)
        return max(
            step_s, FIRST_CHECKPOINT_S if longest_s is None else CHECKPOINT_FACTOR * longest_s, CHECKPOINT_FLOOR_S
        )
    return max(step_s, EXPORT_S if phase is Phase.EXPORT else OUTSIDE_S)


@dataclass(frozen=True)
class CollectiveCounts:
    """How far a rank is in its sequence of NCCL collectives. The sequence is the same on every rank, so the numbers of
    two ranks can be compared."""

    enqueued: int
    """Its host has called so many."""
    started: int
    """Its device has started so many: what was queued before them has ended."""
    completed: int


@dataclass(frozen=True)
class Pulse:
    """One rank whose part is not over, as the driver sees it. Time that the driver itself was paused is left out."""

    rank: int
    step: int
    """The step it makes."""
    beat: int
    """How many beats it has made in this step."""
    phase: Phase
    still_s: float
    """Since its last beat or its last progress."""
    quiet_s: float
    """Since its agent was last heard of."""
    looked: bool = False
    """Its process was looked at from outside, on a node that is known to live."""
    stopped_s: float = 0.0
    """How long the kernel has called it stopped, look after look."""
    waits: bool | None = None
    """Its training thread is in a collective, by its stack; None: its stack is not known."""
    blocked: bool = False
    """The kernel has a thread of it blocked in storage."""
    counts: CollectiveCounts | None = None
    """Of its NCCL collectives; None: not known, or it has none."""

    @property
    def heard(self) -> bool:
        """Its agent answers."""
        return self.quiet_s < SILENT_S

    @property
    def place(self) -> tuple[int, int]:
        """How far it is; comparable between the ranks of a gang."""
        return self.step, self.beat


class State(StrEnum):
    """What is to be done."""

    FINE = "fine"
    SUSPICIOUS = "suspicious"
    """Take stacks."""
    HUNG = "hung"
    """Recover, without the culprits."""


@dataclass(frozen=True)
class Finding:
    """The verdict. `culprits` is empty if no rank can be named: then all are given up."""

    state: State
    culprits: tuple[int, ...] = ()
    reason: str = ""
    still_s: float = 0.0
    """How long there has been no progress."""
    excused: tuple[int, ...] = ()
    """Ranks whose storage does not answer; otherwise this would be a hang."""


def judge_pulses(pulses: Sequence[Pulse], since_step_s: float, pace: Pace, asked_s: float | None) -> Finding:
    """Whether the gang hangs. `since_step_s`: since a step was last reported, or the gang began.

    Silence alone proves nothing: if no worker answers and no process could be inspected, the driver may be cut off.
    Slowness proves nothing either: progress of one worker now and then is enough.
    """
    if not pulses or not any(pulse.heard or pulse.looked for pulse in pulses):
        return Finding(State.FINE)
    still_s = min(since_step_s, *(pulse.still_s for pulse in pulses))
    stopped = [pulse for pulse in pulses if not pulse.heard and pulse.stopped_s > 0.0]
    stop_bound_s = STOPPED_S if asked_s is None else asked_s
    if stopped and still_s >= stop_bound_s and all(pulse.quiet_s >= stop_bound_s for pulse in stopped):
        ranks = tuple(pulse.rank for pulse in stopped)
        return Finding(State.HUNG, ranks, "its process is stopped, and the other workers wait for it", still_s)
    usual_s = max(bound_s(pulse.phase, pace, asked_s) for pulse in pulses)
    limit_s = max(usual_s, _storage_bound_s(pulses))
    if still_s >= limit_s:
        culprits, reason = name_culprits(pulses)
        return Finding(State.HUNG, culprits, reason, still_s)
    excused = tuple(pulse.rank for pulse in pulses if pulse.blocked and still_s >= usual_s)
    if still_s >= SUSPICION * limit_s or (stopped and still_s >= SUSPICION * stop_bound_s):
        return Finding(State.SUSPICIOUS, (), "", still_s, excused)
    return Finding(State.FINE, (), "", still_s, excused)


def _storage_bound_s(pulses: Sequence[Pulse]) -> float:
    """How long there may be no progress because of storage; 0 if no worker is blocked in it."""
    blocked = sum(pulse.blocked for pulse in pulses)
    if not blocked:
        return 0.0
    return ALL_STORAGE_S if blocked == len(pulses) else STORAGE_S


def name_culprits(pulses: Sequence[Pulse]) -> tuple[tuple[int, ...], str]:
    """The ranks that a gang without progress waits for, and the evidence; no rank if all look alike."""
    behind = min(pulse.place for pulse in pulses)
    blocked = [pulse for pulse in pulses if pulse.blocked and pulse.place == behind and pulse.waits is not True]
    if blocked and len(blocked) < len(pulses):
        return _ranks(blocked), f"its storage does not answer in {_doing(blocked)}, and the other workers wait for it"
    silent = [pulse for pulse in pulses if not pulse.heard]
    if silent:
        if len(silent) == len(pulses):
            return (), "no process answers"
        return _ranks(silent), "its process does not answer, and the other workers wait for it"
    if late := _late_in_collectives(pulses):
        return late
    last = [pulse for pulse in pulses if pulse.place == behind]
    ahead = [pulse for pulse in pulses if pulse.place != behind]
    busy = [pulse for pulse in last if pulse.waits is False]
    if busy and (ahead or len(busy) < len(last)):
        others = _doing(ahead or [pulse for pulse in last if pulse.waits is not False])
        return _ranks(busy), f"it is in {_doing(busy)} and in no collective, while the others wait in {others}"
    if ahead:
        odd, rest = (last, ahead) if len(last) <= len(ahead) else (ahead, last)
        return _ranks(odd), f"it is in {_doing(odd)}, the others are in {_doing(rest)}"
    return (), f"all workers are in {_doing(last)}"


def _late_in_collectives(pulses: Sequence[Pulse]) -> tuple[tuple[int, ...], str] | None:
    """The ranks whose device or host has not reached the collective that the others are in. On GPUs all hosts wait for
    their devices in the same place, and only this distinguishes them. None if all are equally far, or if it is
    unknown."""
    known = [(pulse, pulse.counts) for pulse in pulses if pulse.counts is not None]
    if len(known) < len(pulses):
        return None
    called = [(pulse, counts.enqueued) for pulse, counts in known]
    started = [(pulse, counts.started) for pulse, counts in known]
    for numbers, whose in ((called, "process has not called"), (started, "GPU has not started")):
        least = min(number for _, number in numbers)
        late = [pulse for pulse, number in numbers if number == least]
        if len(late) < len(pulses):
            return _ranks(late), f"its {whose} collective {least + 1}, in which the others wait"
    return None


def _ranks(pulses: Sequence[Pulse]) -> tuple[int, ...]:
    return tuple(sorted(pulse.rank for pulse in pulses))


def _doing(pulses: Sequence[Pulse]) -> str:
    """`forward of step 7`; of several ranks in different phases, what the furthest is at."""
    pulse = max(pulses, key=lambda pulse: pulse.place)
    return f"{pulse.phase.value} of step {pulse.step}" if pulse.phase in STEP_PHASES else pulse.phase.value

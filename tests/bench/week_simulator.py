"""Runs a week of jobs through a scheduler: events in order of time, and drivers that need time to answer."""

import heapq
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.clusters.placement import NodeCapacity, WorkerRequest
from orchestrator.control.policy.queue_facts import Decision, Places, QueueFacts, ScheduledRun
from tests.bench.week_policies import Policy
from tests.bench.week_trace import WEEK_S, WeekJob

EPOCH_S = 1_800_000_000.0
RESIZE_ANSWER_S, RESIZE_PAUSE_S = 10.0, 5.0
"""Until a driver has carried out a new grant, and for how long the workers pause then (docs/benchmarks.md: a planned
resize takes one to four seconds)."""
SUSPEND_ANSWER_S, RESUME_S = 20.0, 30.0
"""Saving the state and ending; and starting again from it. A killed run starts again as slowly."""
PAUSES_S = 600.0
"""Of pauses, that run times which are told to Convoy allow for."""
CHECKPOINT_S = 1800.0
"""A killed run repeats what it did since its last checkpoint."""
TICK_S = 900.0
"""Nothing waits longer for a decision; events are decided upon at once."""
WIDE = 8
"""GPUs from which on a job counts as wide."""


@dataclass
class SimulatedRun:
    """A job and where it is."""

    job: WeekJob
    ask: WorkerRequest
    order: int
    work_s: float
    """Left, at `at_s`."""
    at_s: float = 0.0
    places: Places = field(default_factory=dict)
    granted: Places = field(default_factory=dict)
    waits_since_s: float | None = 0.0
    waited_s: float = 0.0
    since_s: float = 0.0
    changed_s: float | None = None
    leaving: bool = False
    pause_until_s: float = 0.0
    begun: bool = False
    version: int = 0
    running_s: float = 0.0
    """Since its last start: for checkpoints."""
    promised_s: float | None = None
    reserved: tuple[float, Places] | None = None
    allowance_s: float = 0.0
    """For pauses to come: with it, run times that the scheduler sees are upper bounds."""

    def pause(self, now_s: float, seconds: float) -> None:
        """Its workers do nothing for some time."""
        begin_s = max(self.pause_until_s, now_s)
        self.pause_until_s = begin_s + seconds
        self.allowance_s -= seconds

    @property
    def workers(self) -> int:
        """That work: the old ones until a new grant is carried out."""
        return min(sum(self.places.values()), sum(self.granted.values()))

    def advance(self, now_s: float) -> float:
        """Work until now; the GPU-seconds that it did."""
        begin_s = max(self.at_s, min(self.pause_until_s, now_s))
        worked_s = max(0.0, now_s - begin_s)
        done_s = min(self.work_s, worked_s * self.workers)
        self.work_s -= done_s
        self.running_s += worked_s if self.workers else 0.0
        self.at_s = now_s
        return done_s

    def end_s(self) -> float:
        """When it ends with the workers that it has."""
        return max(self.at_s, self.pause_until_s) + self.work_s / max(1, self.workers)

    def facts(self, now_s: float, priorities: bool) -> ScheduledRun:
        """As the store would load them."""
        waits, priority = self.waits_since_s is not None, self.job.priority if priorities else 0
        pauses_s = max(0.0, self.pause_until_s - now_s) + max(0.0, self.allowance_s)
        work_s = self.work_s + pauses_s * max(1, self.ask.minimum)
        return ScheduledRun(
            self.job.name, "default", "user", priority, self.order, self.ask, waits, self.leaving, self.places,
            self.granted, EPOCH_S + self.since_s, work_s, None, self.changed_s, self.reserved,
        )  # fmt: skip


@dataclass(frozen=True)
class WeekResult:
    """Of one week with one scheduler."""

    utilisation: float
    """GPU-seconds of work that counts, done in the week, by those of the cluster."""
    mean_wait_s: float
    p95_wait_s: float
    late: int
    """Wide jobs that started later than they were promised, though none of higher priority came in between."""
    latest_s: float
    promised: int
    changes: int
    """Grants, suspensions and kills."""


class WeekSimulation:
    """One week, until its last job has ended."""

    def __init__(
        self, jobs: Sequence[WeekJob], nodes: tuple[NodeCapacity, ...], policy: Policy, ours: bool, priorities: bool
    ) -> None:
        self._nodes, self._policy, self._ours, self._priorities = nodes, policy, ours, priorities
        self._events: list[tuple[float, int, str, str, int]] = []
        self._counter = 0
        self._active: dict[str, SimulatedRun] = {}
        self._ended: list[SimulatedRun] = []
        self._useful_s, self._now_s, self._changes = 0.0, 0.0, 0
        self._lateness: list[tuple[int, float]] = []
        self._jobs = {job.name: job for job in jobs}
        for job in jobs:
            self._push(job.submitted_s, "submit", job.name)
        if ours:
            self._push(TICK_S, "tick", "")

    def _push(self, at_s: float, kind: str, name: str, version: int = 0) -> None:
        self._counter += 1
        heapq.heappush(self._events, (at_s, self._counter, kind, name, version))

    def run(self) -> WeekResult:
        """To the end."""
        while self._events:
            self._now_s = self._events[0][0]
            changed = False
            while self._events and self._events[0][0] <= self._now_s + 1e-6:
                _, _, kind, name, version = heapq.heappop(self._events)
                changed |= self._handle(kind, name, version)
            if changed:
                self._decide()
        waits = [run.waited_s for run in self._ended]
        gpus = sum(node.total["GPU"] for node in self._nodes)
        wide = [late_s for width, late_s in self._lateness if width >= WIDE]
        return WeekResult(
            self._useful_s / (gpus * WEEK_S), statistics.fmean(waits), statistics.quantiles(waits, n=20)[-1],
            sum(late_s > 1.0 for late_s in wide), max(wide, default=0.0), len(wide), self._changes,
        )  # fmt: skip

    def _handle(self, kind: str, name: str, version: int) -> bool:
        if kind == "submit":
            self._submit(self._jobs[name])
            return True
        if kind == "due":
            return name in self._active and self._active[name].waits_since_s is not None
        if kind == "tick":
            if self._active or self._events:
                self._push(self._now_s + TICK_S, "tick", "")
            return bool(self._active)
        run = self._active.get(name)
        if run is None or run.version != version:
            return False
        self._advance(run)
        if kind == "end":
            if run.work_s > 1e-3 * run.job.width:
                self._plan(run)
                return False
            del self._active[name]
            self._ended.append(run)
        elif kind == "answer":
            self._answer(run)
        return True

    def _submit(self, job: WeekJob) -> None:
        low, high = (max(1, job.width // 4), 4 * job.width) if job.elastic and self._ours else (job.width, job.width)
        ask = WorkerRequest({"GPU": 1.0}, low, high, "pack")
        run = SimulatedRun(job, ask, len(self._active) + len(self._ended), job.work_s, self._now_s)
        run.order = int(job.name.split("-")[1])
        run.waits_since_s = run.since_s = self._now_s
        run.allowance_s = PAUSES_S if self._ours else 0.0
        self._active[job.name] = run
        self._forget_promises(job.priority)

    def _forget_promises(self, priority: int) -> None:
        """Runs of a priority may delay those below it; one that was suspended, later ones of its own too."""
        for other in self._active.values():
            if other.job.priority < priority:
                other.promised_s = None

    def _advance(self, run: SimulatedRun) -> None:
        before_s = run.at_s
        done_s = run.advance(self._now_s)
        if before_s < WEEK_S and done_s:
            inside = 1.0 if self._now_s <= WEEK_S else (WEEK_S - before_s) / (self._now_s - before_s)
            self._useful_s += done_s * inside

    def _plan(self, run: SimulatedRun) -> None:
        """Its end, as things stand."""
        run.version += 1
        if run.workers:
            self._push(run.end_s(), "end", run.job.name, run.version)

    def _decide(self) -> None:
        for run in self._active.values():
            self._advance(run)
        runs = tuple(run.facts(self._now_s, self._priorities) for run in self._active.values())
        decision = self._policy(QueueFacts(EPOCH_S + self._now_s, self._nodes, runs, {}))
        self._promise(decision)
        for name, beneficiary in decision.suspensions.items():
            self._forget_promises(self._active[beneficiary].job.priority)
            self._take(self._active[name])
        for name in decision.grants:
            if self._active[name].waits_since_s is not None:
                self._forget_promises(self._active[name].job.priority)
        for name, places in decision.grants.items():
            self._grant(self._active[name], places)
        if decision.suspensions and not self._ours:
            self._decide()

    def _promise(self, decision: Decision) -> None:
        for name, run in self._active.items():
            run.reserved = decision.reservations.get(name)
        for name, (start_s, _) in decision.reservations.items():
            run = self._active[name]
            if self._ours and run.promised_s is None and start_s < float("inf"):
                run.promised_s = start_s - EPOCH_S
                self._push(max(self._now_s + 1.0, run.promised_s - 59.0), "due", name)

    def _grant(self, run: SimulatedRun, places: Places) -> None:
        self._changes += 1
        run.changed_s = EPOCH_S + self._now_s
        if run.waits_since_s is not None:
            run.waited_s += self._now_s - run.waits_since_s
            if run.promised_s is not None:
                self._lateness.append((run.job.width, self._now_s - run.promised_s))
                run.promised_s = None
            run.waits_since_s, run.since_s, run.running_s = None, self._now_s, 0.0
            run.places = run.granted = dict(places)
            if run.begun:
                run.pause(self._now_s, RESUME_S)
            run.begun = True
            self._plan(run)
            return
        run.granted = dict(places)
        run.places = {each: max(run.places.get(each, 0), places.get(each, 0)) for each in {**run.places, **places}}
        run.version += 1
        self._push(self._now_s + RESIZE_ANSWER_S, "answer", run.job.name, run.version)
        self._push(run.end_s(), "end", run.job.name, run.version)

    def _take(self, run: SimulatedRun) -> None:
        self._changes += 1
        if self._ours:
            run.leaving = True
            run.version += 1
            self._push(self._now_s + SUSPEND_ANSWER_S, "answer", run.job.name, run.version)
            self._push(run.end_s(), "end", run.job.name, run.version)
            return
        lost_s = (run.running_s % CHECKPOINT_S) * run.workers
        run.work_s += lost_s
        if self._now_s <= WEEK_S:
            self._useful_s -= lost_s
        self._release(run)

    def _release(self, run: SimulatedRun) -> None:
        run.leaving, run.places, run.granted = False, {}, {}
        run.waits_since_s = run.since_s = self._now_s
        self._forget_promises(run.job.priority + 1)
        run.version += 1

    def _answer(self, run: SimulatedRun) -> None:
        if run.leaving:
            self._release(run)
            return
        run.places = run.granted
        run.pause(self._now_s, RESIZE_PAUSE_S)
        self._plan(run)

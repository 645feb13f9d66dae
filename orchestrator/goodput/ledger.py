"""The ledger of a run: every second of every worker belongs to one class. Pure: facts go in, a result comes out.

Facts are events and step reports, with times. The steps say how long they took and what ranks spent on what; events say
what happened between them. If a fact is missing, the time is still counted, under the class of what was last known.
"""

from math import isfinite

from orchestrator.domain.events import (
    CheckpointFailed,
    CheckpointRestored,
    CheckpointSaved,
    ClusterReady,
    EvalFinished,
    Event,
    EventBody,
    GangResized,
    ModelExported,
    RecoveryStarted,
    RunCreated,
    RunState,
    StateChanged,
    TrainingPlanned,
    WorkerFailed,
    WorkerPhase,
    WorkersReserved,
)
from orchestrator.domain.step_report import StepReport
from orchestrator.goodput.crew import Crew, crew_of
from orchestrator.goodput.step_split import split_step
from orchestrator.goodput.time_class import TimeClass
from orchestrator.goodput.timeline import LedgerStage, Timeline
from orchestrator.json_values import JsonFields, JsonObject, flag, integer, mapping, number, optional

_FINAL = (RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED)
_WHILE_RUNNING = (LedgerStage.STARTUP, LedgerStage.TRAINING, LedgerStage.TAIL)
"""Stages that evaluations and checkpoints take their time from; recoveries and resizes come before them."""


class Ledger:
    """Takes the facts of a run in order, over all of its drivers."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        self._began_s = 0.0
        """When the present driver took up the run."""
        self._ready_s: float | None = None
        """When its cluster was ready."""
        self._reports_crew = False
        """Whether this driver says which workers are reserved; earlier versions do not."""
        self._failing = False
        """A worker has failed, and no recovery from it has started."""
        self._total_steps: int | None = None
        self._checkpoint_s = 0.0
        """Booked for checkpoints since the last step."""
        self._communication_share = 0.0
        """Of the last step, from 0 to 1."""

    def on_event(self, event: Event, now_s: float) -> None:
        """Take an event that was received at `now_s`. If its own time lies between the last fact and that, it is used:
        clocks of other hosts may be wrong."""
        body = event.body
        if isinstance(body, RunCreated) or (not self.timeline.driven and _begins(body)):
            self._take_up(event.time_s, now_s)
        at_s = self._at(event.time_s, now_s)
        self.timeline.advance(at_s)
        match body:
            case WorkersReserved() as reserved:
                self._change_crew(reserved)
            case ClusterReady():
                self._ready_s = at_s
            case TrainingPlanned() as plan:
                self._total_steps = plan.total_steps
                self._assume_crew(plan.world_size)
            case StateChanged(state):
                self._enter(state)
            case WorkerPhase() as entered:
                self._enter_phase(entered.phase)
            case WorkerFailed():
                self._failing = True
            case RecoveryStarted() as recovery:
                self._recover(recovery, event.time_s)
            case GangResized() if self.timeline.stage in (LedgerStage.TRAINING, LedgerStage.RESIZING):
                self._resize()
            case _:
                self._take_measured(body)

    def _take_measured(self, body: EventBody) -> None:
        """Events that say how long something took, when it is over."""
        timeline, running = self.timeline, self.timeline.stage in _WHILE_RUNNING
        match body:
            case EvalFinished() if running:
                timeline.carve(TimeClass.EVALUATION, _finite(body.seconds))
            case CheckpointSaved() if body.write_seconds is not None:
                pass  # written in the background: its step reports how long training was paused
            case CheckpointSaved() | CheckpointFailed() if running:
                self._checkpoint_s += timeline.carve(TimeClass.CHECKPOINT_STALL, _finite(body.seconds))
            case CheckpointRestored():
                timeline.lineage.go_on_from(body.step)
                timeline.incidents.repeats(max(0, timeline.lineage.last - body.step))
            case ModelExported():
                timeline.carve(TimeClass.EXPORT, _finite(body.seconds))
                if timeline.stage is LedgerStage.TRAINING:
                    timeline.doing = TimeClass.IDLE_TAIL
                timeline.close(timeline.now_s, timeline.doing)
                timeline.incidents.close()
                timeline.enter(LedgerStage.TAIL, TimeClass.IDLE_TAIL)

    def on_step(self, report: StepReport, now_s: float) -> None:
        """Take a finished step that was received at `now_s`."""
        timeline = self.timeline
        if not timeline.driven:
            self._take_up(report.time_s - _finite(report.step_time_s), now_s)
        if report.time_s <= self._began_s and not timeline.books.crew.workers:
            self._take_unattended(report)
            return
        self._assume_crew(report.world_size)
        timeline.advance(self._at(report.time_s, now_s))
        split = split_step(report, self._communication_share)
        taken_s = sum(split.values())
        self._communication_share = split[TimeClass.COMMUNICATION_WAIT] / taken_s if taken_s > 0.0 else 0.0
        if timeline.stage is not LedgerStage.TRAINING:
            timeline.close(timeline.now_s - taken_s, timeline.doing)
            timeline.enter(LedgerStage.TRAINING, TimeClass.PRODUCTIVE)
        self._make_step(report, split)
        timeline.incidents.close()
        if self._total_steps is not None and report.step >= self._total_steps:
            timeline.enter(LedgerStage.TAIL, TimeClass.IDLE_TAIL)

    def _make_step(self, report: StepReport, split: dict[TimeClass, float]) -> None:
        # A checkpoint that its own event has booked already is not booked twice.
        split[TimeClass.CHECKPOINT_STALL] = max(0.0, split[TimeClass.CHECKPOINT_STALL] - self._checkpoint_s)
        snapshot_s = max(0.0, _finite(report.ranks.spread.snapshot_s.mean(report.world_size)))
        lag_s = split[TimeClass.STRAGGLING] * self.timeline.books.crew.members
        self.timeline.make_step(report.step, split, snapshot_s, report.tokens)
        if lag_s > 0.0 and report.ranks.slowest:
            self.timeline.books.blame(self.timeline.books.crew.node_of(report.ranks.slowest[0].rank), lag_s)
        self._checkpoint_s, self._failing = 0.0, False

    def _take_unattended(self, report: StepReport) -> None:
        """A step that workers made after the end of their driver, and that the next one has found in the vaults."""
        timeline, step_s = self.timeline, _finite(report.step_time_s)
        charged, timeline.books.charged = timeline.books.charged, None
        timeline.change_crew(Crew.of_size(report.world_size))
        timeline.elapsed_s += step_s
        timeline.reserved_s += step_s * report.world_size
        timeline.open_s = timeline.now_s - step_s
        timeline.make_step(report.step, split_step(report), 0.0, report.tokens)
        timeline.change_crew(Crew())
        timeline.books.charged = charged

    def _take_up(self, time_s: float, now_s: float) -> None:
        """A driver takes up the run: the first one, or a later one, after the last was lost or has ended."""
        timeline = self.timeline
        lost = timeline.driven and timeline.lineage.last > 0
        if lost:
            timeline.incidents.begin_without_driver(timeline.now_s)
        self._release()
        timeline.skip_to(self._at(time_s, now_s))
        timeline.driven, self._began_s, self._ready_s = True, timeline.now_s, None
        self._reports_crew = self._failing = False
        self._checkpoint_s = 0.0
        if lost:
            timeline.enter(LedgerStage.RECOVERY, TimeClass.RECOVERY_REBUILD)
        else:
            timeline.enter(LedgerStage.STARTUP, TimeClass.STARTUP)

    def _release(self) -> None:
        """No worker is reserved any more."""
        timeline = self.timeline
        cut_off = timeline.stage is LedgerStage.TRAINING and (self._failing or timeline.incidents.open)
        if timeline.stage is LedgerStage.TRAINING:
            timeline.doing = TimeClass.RECOMPUTED if cut_off else TimeClass.IDLE_TAIL
        timeline.close(timeline.now_s, timeline.doing)
        timeline.stop_step()
        timeline.enter(LedgerStage.TAIL, TimeClass.IDLE_TAIL)
        timeline.change_crew(Crew())

    def _change_crew(self, reserved: WorkersReserved) -> None:
        timeline, crew = self.timeline, crew_of(reserved.nodes)
        self._reports_crew = True
        if not crew.workers:
            self._release()
            return
        before = timeline.books.crew
        if not before.members:
            timeline.open_s = timeline.now_s
        elif crew.members != before.members:
            self._leave_training()
            timeline.close(timeline.now_s, timeline.doing)
        timeline.change_crew(crew, reserved.earlier_s)

    def _assume_crew(self, world_size: int) -> None:
        """Records of earlier versions do not say which workers are reserved: as many as train, since the cluster was
        ready."""
        timeline = self.timeline
        if self._reports_crew or timeline.books.crew.members == world_size or world_size < 1:
            return
        if timeline.books.crew.members:
            self._leave_training()
            timeline.close(timeline.now_s, timeline.doing)
        else:
            timeline.open_s = self._ready_s if self._ready_s is not None else self._began_s
            timeline.reserved_s += (timeline.now_s - timeline.open_s) * world_size
            timeline.node_s += timeline.now_s - timeline.open_s
        timeline.change_crew(Crew.of_size(world_size))

    def _enter(self, state: RunState) -> None:
        """The run's state has changed; `running` says nothing that the phases do not say better."""
        timeline = self.timeline
        if state in _FINAL:
            self._failing = self._failing or state is RunState.FAILED
            self._release()
            timeline.incidents.close()
            timeline.driven = False
        elif state is RunState.WAITING:
            if timeline.stage is LedgerStage.TRAINING:
                self._resize()
            timeline.close(timeline.now_s, timeline.doing)
            timeline.doing = TimeClass.WAITING
        elif timeline.doing is TimeClass.WAITING:
            timeline.close(timeline.now_s, TimeClass.WAITING)
            timeline.doing = {
                LedgerStage.RECOVERY: TimeClass.RECOVERY_REBUILD,
                LedgerStage.STARTUP: TimeClass.STARTUP,
            }.get(timeline.stage, TimeClass.RESIZING)
        elif state is RunState.RECOVERING:
            self._failing = True

    def _resize(self) -> None:
        """The gang left training after its last step to change its size."""
        self.timeline.stop_step()
        self.timeline.close(self.timeline.now_s, TimeClass.RESIZING)
        self.timeline.enter(LedgerStage.RESIZING, TimeClass.RESIZING)

    def _leave_training(self) -> None:
        """Another gang is formed. If the fact that says why is missing: after a failure a recovery, else a resize."""
        timeline = self.timeline
        if timeline.stage is LedgerStage.TRAINING and self._failing:
            timeline.stop_step()
            timeline.close(timeline.now_s, TimeClass.RECOVERY_DECISION)
            timeline.enter(LedgerStage.RECOVERY, TimeClass.RECOVERY_REBUILD)
        elif timeline.stage is LedgerStage.TRAINING:
            self._resize()

    def _enter_phase(self, phase: str) -> None:
        timeline = self.timeline
        if phase == "export":
            if timeline.stage is LedgerStage.TRAINING:
                timeline.doing = TimeClass.IDLE_TAIL
            timeline.close(timeline.now_s, timeline.doing)
            timeline.incidents.close()
            timeline.enter(LedgerStage.TAIL, TimeClass.EXPORT)
            return
        self._leave_training()
        if timeline.stage is LedgerStage.RECOVERY and phase != "train":
            timeline.close(timeline.now_s, timeline.doing)
            restores = phase == "restore"
            timeline.doing = TimeClass.RECOVERY_RESTORE if restores else TimeClass.RECOVERY_REBUILD

    def _recover(self, started: RecoveryStarted, time_s: float) -> None:
        """A fault was found, and it is decided from where training continues. What is open is the step that was cut off
        until the last sign of life, then the detection, then the decision."""
        timeline = self.timeline
        off_s = timeline.now_s - time_s  # the event's time was not plausible
        detected_s = started.detected_s + off_s
        alive_s = started.alive_s + off_s if started.alive_s is not None else detected_s
        if detected_s < timeline.open_s:  # a failure during a recovery: the first detection is long over
            detected_s = alive_s
        alive_s = min(alive_s, detected_s)
        node = timeline.books.crew.node_of(started.rank)
        if timeline.stage is not LedgerStage.TRAINING:  # what was done meanwhile is what it was
            timeline.close(alive_s, timeline.doing)
        timeline.incidents.begin(started, max(timeline.open_s, alive_s), node)
        timeline.stop_step()
        timeline.close(alive_s, TimeClass.RECOMPUTED)
        timeline.close(detected_s, TimeClass.RECOVERY_DETECTION)
        timeline.close(timeline.now_s, TimeClass.RECOVERY_DECISION)
        timeline.enter(LedgerStage.RECOVERY, TimeClass.RECOVERY_REBUILD)
        timeline.lineage.go_on_from(started.from_step)
        self._failing, self._checkpoint_s = False, 0.0

    def _at(self, time_s: float, now_s: float) -> float:
        """The time of a fact. It is never before that of the last one."""
        last_s = self.timeline.now_s
        if last_s <= time_s <= now_s:
            return time_s
        return max(last_s, now_s) if isfinite(now_s) else last_s

    def to_json(self) -> JsonObject:
        """The state, for `from_json`."""
        return {
            "timeline": self.timeline.to_json(),
            "began_s": self._began_s,
            "ready_s": self._ready_s,
            "reports_crew": self._reports_crew,
            "failing": self._failing,
            "total_steps": self._total_steps,
            "checkpoint_s": self._checkpoint_s,
        }

    @classmethod
    def from_json(cls, value: JsonFields) -> "Ledger":
        """A ledger that is continued. Raises ValueError if it is none."""
        ledger = cls()
        ledger.timeline = Timeline.from_json(mapping(value, "timeline"))
        ledger._began_s, ledger._ready_s = number(value, "began_s"), optional(number, value, "ready_s")
        ledger._reports_crew, ledger._failing = flag(value, "reports_crew"), flag(value, "failing")
        ledger._total_steps = optional(integer, value, "total_steps")
        ledger._checkpoint_s = number(value, "checkpoint_s")
        return ledger


def _begins(body: EventBody) -> bool:
    """Whether a driver has taken up the run, although the fact that says so is missing."""
    return isinstance(body, StateChanged) and body.state not in _FINAL


def _finite(seconds: float) -> float:
    return seconds if isfinite(seconds) else 0.0

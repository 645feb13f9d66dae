"""The score of a run under faults: what each cost, from the events and steps that follow it."""

from dataclasses import replace

from orchestrator.checkpoint.storage.storage import StorageFault
from orchestrator.domain.events import (
    CheckpointFailed,
    CheckpointSaved,
    Event,
    EventBody,
    FaultInjected,
    GangResized,
    NodeDraining,
    RecoveryFinished,
    RecoveryStarted,
    RunCreated,
    TrainingPlanned,
    WorkerSlow,
)
from orchestrator.domain.policy.scorecard import DrillFault, FaultResult
from orchestrator.domain.step_report import StepReport
from orchestrator.drill.drill_plan import ON_STORAGE

LOSES_NOBODY = (*ON_STORAGE, DrillFault.SLOW_RANK, DrillFault.KILL_DRIVER)
"""A surviving driver forms no new generation for these faults, so the end of a recovery does not end them."""
SAYS = {DrillFault.DISK_FULL: StorageFault.FULL.value, DrillFault.BUCKET_DOWN: StorageFault.UNREACHABLE.value}
"""`fault` of the event that reports it."""


class DrillTally:
    """One fault at a time: `struck` opens it, and an event or step that shows the recovery closes it.

    Most are detected by `recovery.started` and end with `recovery.finished`. A slow worker and a draining node are
    detected by their own events and end with a later step of all workers; a lost driver is detected by the start of the
    next one and ends with its first step. Failing storage is detected by `checkpoint.failed` and ends with the next
    saved checkpoint.
    """

    def __init__(self) -> None:
        self.results: list[FaultResult] = []
        self.struck_s: float | None = None
        """Unix; None while no fault is open."""
        self._world_size = 0
        self._furthest = 0
        self._again = 0
        """Steps made once more since the fault."""
        self._left = False
        """The gang was formed again since a node was announced as draining."""

    @property
    def open(self) -> DrillFault | None:
        """The fault that is not recovered from yet."""
        return None if self.struck_s is None else DrillFault(self.results[-1].fault)

    @property
    def known(self) -> bool:
        """The open fault has been detected."""
        return self.struck_s is not None and self.results[-1].detection_s is not None

    def struck(self, fault: DrillFault, step: int, rank: int | None, time_s: float) -> None:
        """A fault was made after a step; `rank` is that of the worker whose process or node it hit."""
        self.struck_s, self._again, self._left = time_s, 0, False
        self.results.append(FaultResult(fault.value, step, rank, None, None, None, self._world_size, None))

    def give_up(self) -> None:
        """The open fault came to something else than it should."""
        self.struck_s = None

    def on_event(self, event: Event) -> None:
        """Take one event."""
        match event.body:
            case TrainingPlanned() as plan:
                self._world_size = plan.world_size
            case FaultInjected() as made:
                self.struck(DrillFault(made.fault), made.step - 1, made.rank, event.time_s)
            case body if self.open is not None:
                self._follow(body, event.time_s, self.open)

    def _follow(self, body: EventBody, time_s: float, fault: DrillFault) -> None:
        """Take an event while a fault is open."""
        loses = fault not in LOSES_NOBODY
        match body:
            case GangResized():
                self._left = self._left or fault is DrillFault.DRAIN_NODE
            case _ if _tells_of(body, fault, self.results[-1].rank):
                self._detected(time_s)
                if isinstance(body, RunCreated):
                    self._again = max(0, self._furthest - (body.resumed_from_step or 0))
            case RecoveryStarted() as recovery if loses:
                self._detected(recovery.detected_s)
            case RecoveryFinished() as recovered if loses:
                self._over(time_s, recovered.steps_recomputed, recovered.world_size)
            case CheckpointSaved() if fault in ON_STORAGE and self.known:
                self._over(time_s, self._again, self._world_size)

    def on_step(self, report: StepReport) -> None:
        """Take the report of one step."""
        again = self._furthest - report.step + 1
        self._furthest = max(self._furthest, report.step)
        fault = self.open
        if fault in ON_STORAGE and again > 0:
            self._again += 1
        elif fault is DrillFault.KILL_DRIVER and self.known:
            self._over(report.time_s, self._again, report.world_size)
        elif (fault is DrillFault.SLOW_RANK and self.known) or self._left:
            self._over(report.time_s, max(0, again), report.world_size)

    def _detected(self, time_s: float) -> None:
        if self.struck_s is not None and self.results[-1].detection_s is None:
            self.results[-1] = replace(self.results[-1], detection_s=time_s - self.struck_s)

    def _over(self, time_s: float, recomputed: int, world_size: int) -> None:
        if self.struck_s is None:
            return
        self.results[-1] = replace(
            self.results[-1],
            first_step_s=time_s - self.struck_s,
            steps_recomputed=recomputed,
            workers_after=world_size,
        )
        self.struck_s, self._left = None, False


def _tells_of(body: EventBody, fault: DrillFault, rank: int | None) -> bool:
    """Whether it is the event by which a fault without a recovery is known."""
    if fault in ON_STORAGE:  # a checkpoint may fail for another reason, with a lost vault for one
        return isinstance(body, CheckpointFailed) and body.fault == SAYS[fault]
    if fault is DrillFault.KILL_DRIVER:
        return isinstance(body, RunCreated)
    if fault is DrillFault.DRAIN_NODE:
        return isinstance(body, NodeDraining)
    return fault is DrillFault.SLOW_RANK and isinstance(body, WorkerSlow) and body.slow and body.rank == rank

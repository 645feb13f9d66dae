"""How far a run is: steps, checkpoints, the recovery that is under way. The run controller alone changes it."""

from dataclasses import dataclass

from orchestrator.domain.policy.numeric import Injection
from orchestrator.domain.policy.replay import FP32_TOLERANCE, LOW_PRECISION_TOLERANCE, StepRecord
from orchestrator.domain.step_report import StepReport
from orchestrator.spec.job import JobSpec

KEPT_RECORDS = 256
"""How many step results are kept for verifying restores."""


@dataclass(frozen=True)
class Recovery:
    """From a failure to the first step after it."""

    incident: int
    """Counted from 1 in the run."""
    detected_s: float
    """Unix. A failure during a recovery prolongs it: the first detection counts."""
    steps_recomputed: int


class RunProgress:
    """Plain state, without I/O and without a clock."""

    def __init__(self, spec: JobSpec, injections: tuple[Injection, ...] = (), incidents: int = 0) -> None:
        """`incidents`: those that earlier drivers of the run recorded."""
        self.step = 0
        """The last finished step of the state that training has."""
        self.furthest = 0
        """The furthest step that is on record."""
        self.saved_step = 0
        """Of the newest checkpoint; 0: none."""
        self.recovery: Recovery | None = None
        """The one under way."""
        self.injections = injections
        """Arranged faults that have not happened yet."""
        self.incidents = incidents
        self.world_size = 0
        """Of the present plan."""
        self.records: dict[int, StepRecord] = {}
        """Results of the last steps, if restores are verified."""
        self._verifies = spec.checkpoint.verify_restore
        self._tolerance = FP32_TOLERANCE if spec.train.precision == "fp32" else LOW_PRECISION_TOLERANCE

    def take_step(self, report: StepReport) -> None:
        """A step is finished."""
        self.step = report.step
        self.remember(report)

    def remember(self, report: StepReport) -> None:
        """Keep the result of a step, if restores are verified."""
        if not self._verifies:
            return
        self.records[report.step] = StepRecord(report.step, report.loss, report.grad_norm, self._tolerance)
        while len(self.records) > KEPT_RECORDS:
            del self.records[next(iter(self.records))]

    def checkpoint_saved(self, step: int) -> None:
        """A checkpoint is complete. One that was written in the background may be reported after a later one."""
        self.saved_step = max(self.saved_step, step)

    def generation_ended(self, step: int) -> None:
        """`step`: the last one that the gang reported or returned."""
        self.furthest = max(self.furthest, self.step, step)

    def injected(self, kind: str, step: int, rank: int) -> None:
        """An arranged fault has happened."""
        self.injections = tuple(i for i in self.injections if (i.kind, i.step, i.rank) != (kind, step, rank))

    def drop_injections_through(self, step: int, kind: str | None = None) -> None:
        """Arranged faults (of one `kind`) up to a step count as done: the worker may not have lived to report them."""
        self.injections = tuple(i for i in self.injections if i.step > step or kind not in (None, i.kind))

    def begin_recovery(self, from_step: int, detected_s: float) -> Recovery:
        """Training continues from the state of `from_step`."""
        if self.recovery is not None:
            detected_s = self.recovery.detected_s
        self.step = from_step
        self.incidents += 1
        self.recovery = Recovery(self.incidents, detected_s, max(0, self.furthest - from_step))
        return self.recovery

    def end_recovery(self) -> Recovery | None:
        """A step was made, or the export is complete; the recovery that is over by that, if one was under way."""
        recovery, self.recovery = self.recovery, None
        return recovery

    def rolled_back(self, step: int) -> None:
        """Later steps do not count any more."""
        self.saved_step = min(self.saved_step, step)
        self.records = {at: record for at, record in self.records.items() if at <= step}

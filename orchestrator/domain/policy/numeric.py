"""Numeric faults: a loss or gradient that is no number, a loss that jumps. Found here, and decided on here. Pure."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Literal

from orchestrator.domain.errors import ConvoyError
from orchestrator.domain.events import FaultKind, NumericFaultFound
from orchestrator.json_values import JsonFields, JsonObject, integer, mapping, number, optional, text

NORMAL_DEVIATION = 1.4826
"""Makes the median absolute deviation an estimate of a normal distribution's standard deviation (Rousseeuw & Croux,
JASA 1993)."""
LEAST_DEVIATION = 0.01
"""Of the median: losses that hardly differ must not make a spike of the next one."""
WINDOW_STEPS = 1000
"""Rollbacks are counted within as many steps."""
SPIKE_FACTOR = 100.0
"""What an injected spike multiplies one rank's loss by."""


@dataclass(frozen=True)
class NumericFault:
    """A step that must not count."""

    kind: FaultKind
    step: int
    first_position: int
    """Of the step's global batch in the order of the samples."""
    count: int
    """Samples of the global batch."""
    value: float
    """The loss or gradient norm; of a spike the loss."""
    rank: int | None
    """The origin: the first rank whose loss is not finite, or the rank with the highest loss in a spike. None if
    unknown: a gradient norm is of all ranks together."""

    @property
    def text(self) -> str:
        """`the loss is nan at step 7 on rank 1 (samples [72, 84) of the order)`."""
        what = "gradient norm" if self.kind is FaultKind.GRADIENT else "loss"
        shown = f"{self.value:.4g}, a spike," if self.kind is FaultKind.SPIKE else f"{self.value:.4g}"
        where = "" if self.rank is None else f" on rank {self.rank}"
        last = self.first_position + self.count
        return (
            f"the {what} is {shown} at step {self.step}{where} (samples [{self.first_position}, {last}) of the order)"
        )

    def event(self, action: str, skip: "Skip | None" = None) -> NumericFaultFound:
        """The event that reports it. `action`: rollback, stop, give_up or continue; `skip`: of a rollback."""
        return NumericFaultFound(
            fault=self.kind,
            step=self.step,
            first_position=self.first_position,
            count=self.count,
            value=self.value if math.isfinite(self.value) else str(self.value),
            rank=self.rank,
            action=action,
            from_step=skip.from_step if skip is not None else None,
            skipped_first=skip.first if skip is not None else None,
            skipped_count=skip.count if skip is not None else None,
        )

    @classmethod
    def of(cls, found: NumericFaultFound) -> "NumericFault":
        """The fault that an event reports. Raises ValueError if its value is text that is no number."""
        return cls(found.fault, found.step, found.first_position, found.count, float(found.value), found.rank)

    def to_json(self) -> JsonObject:
        """A JSON object; a value that JSON has no number for is text."""
        value: float | str = self.value if math.isfinite(self.value) else str(self.value)
        return {**asdict(self), "kind": self.kind.value, "value": value}

    @classmethod
    def from_json(cls, value: JsonFields) -> "NumericFault":
        """The reverse of `to_json`. Raises ValueError for anything else."""
        return cls(
            kind=FaultKind(text(value, "kind")),
            step=integer(value, "step"),
            first_position=integer(value, "first_position"),
            count=integer(value, "count"),
            value=float(shown) if isinstance(shown := value.get("value"), str) else number(value, "value"),
            rank=optional(integer, value, "rank"),
        )


class TrainingDivergedError(ConvoyError):
    """A worker found a numeric fault and must not continue; every rank raises the same."""

    def __init__(self, fault: NumericFault) -> None:
        super().__init__(
            fault.text,
            "lower train.lr, lengthen train.warmup_steps, or set recovery.on_nan: rollback_and_skip",
        )
        self.fault = fault

    @property
    def details(self) -> JsonObject:
        return {"numeric_fault": self.fault.to_json()}


@dataclass(frozen=True)
class StepNumbers:
    """What is judged of one step, the same on every rank."""

    step: int
    first_position: int
    count: int
    rank_losses: tuple[float, ...]
    """Sum over each rank's target tokens."""
    rank_targets: tuple[int, ...]
    """Target tokens of each rank."""
    loss: float
    """Mean over all target tokens."""
    grad_norm: float


@dataclass(frozen=True)
class SpikeBound:
    """What makes a loss a spike: see `recovery.loss_spike`."""

    deviations: float
    window: int

    def limit(self, losses: Sequence[float]) -> float | None:
        """The highest loss that is none, after these (oldest first); None while they are too few."""
        recent = losses[-self.window :]
        if len(recent) < self.window:
            return None
        middle = median(recent)
        spread = NORMAL_DEVIATION * median(abs(loss - middle) for loss in recent)
        return middle + self.deviations * max(spread, LEAST_DEVIATION * abs(middle))


def find_fault(
    numbers: StepNumbers, losses: Sequence[float], bound: SpikeBound | None, overflow_is_normal: bool
) -> NumericFault | None:
    """What is wrong with a step, if anything. `losses`: of the steps before it that were right, oldest first.

    `overflow_is_normal`: under fp16 a gradient overflow is part of dynamic loss scaling (Micikevicius et al.,
    arXiv:1710.03740): the update is left out and the scale halved.
    """
    at = (numbers.step, numbers.first_position, numbers.count)
    for rank, loss in enumerate(numbers.rank_losses):
        if not math.isfinite(loss):
            return NumericFault(FaultKind.LOSS, *at, loss, rank)
    if not overflow_is_normal and not math.isfinite(numbers.grad_norm):
        return NumericFault(FaultKind.GRADIENT, *at, numbers.grad_norm, None)
    limit = bound.limit(losses) if bound is not None else None
    if limit is None or numbers.loss <= limit:
        return None
    means = [loss / max(1, n) for loss, n in zip(numbers.rank_losses, numbers.rank_targets, strict=True)]
    return NumericFault(FaultKind.SPIKE, *at, numbers.loss, means.index(max(means)))


@dataclass(frozen=True)
class Skip:
    """Positions of the order that a run leaves out: [first, first + count)."""

    first: int
    count: int
    from_step: int
    """The step that training went back to: what was recorded of later steps before is superseded."""
    time_s: float
    """Unix time of the decision."""
    fault: NumericFault | None
    """Why; None: left out from the start."""

    @property
    def end(self) -> int:
        return self.first + self.count

    def to_json(self) -> JsonObject:
        """A JSON object."""
        return {**asdict(self), "fault": None if self.fault is None else self.fault.to_json()}

    @classmethod
    def from_json(cls, value: JsonFields) -> "Skip":
        """The reverse of `to_json`. Raises ValueError for anything else."""
        fault = optional(mapping, value, "fault")
        return cls(
            first=integer(value, "first"),
            count=integer(value, "count"),
            from_step=integer(value, "from_step"),
            time_s=number(value, "time_s"),
            fault=None if fault is None else NumericFault.from_json(fault),
        )


@dataclass(frozen=True)
class Refusal:
    """Why the run cannot continue, and what the user can do."""

    reason: str
    hint: str


HINT_DIVERGED = (
    "training itself diverges: start a new run with a lower train.lr, a longer train.warmup_steps or clip_grad_norm"
)


def refuse(fault: NumericFault, before: Sequence[Skip], max_rollbacks: int) -> Refusal | None:
    """Why the run must not roll back again after its earlier rollbacks (oldest first); None: it may.

    The count is by steps, not by time, so that a resumed run does not start from 0.
    """
    past = [skip.fault for skip in before if skip.fault is not None]
    recent = [old for old in past if abs(fault.step - old.step) < WINDOW_STEPS]
    if len(recent) >= max_rollbacks:
        times = "once" if len(recent) == 1 else f"{len(recent)} times"
        reason = f"{fault.text}, after the run was rolled back {times} within {WINDOW_STEPS} steps"
        return Refusal(f"{reason} (recovery.max_rollbacks is {max_rollbacks})", HINT_DIVERGED)
    last = _same_place(fault, before)
    if last is not None and last.from_step == 0:
        reason = f"{fault.text}, again, with other samples and after a restart from the beginning"
        return Refusal(f"{reason}: the data is not the cause", HINT_DIVERGED)
    return None


def choose_state(fault: NumericFault, saved_steps: Sequence[int], before: Sequence[Skip]) -> int | None:
    """The step to go back to: the newest saved state that can be trusted; 0 (the beginning) if nothing was ever saved;
    None if no saved state is old enough.

    An update from gradients that are not finite is never applied, so the state before the step is good after a fault of
    that kind. The loss of a step depends on the weights of the previous step, so after a spike an older state is
    preferred. If no step succeeded since the last rollback, the state restored then is itself at fault, and an older
    one is chosen.
    """
    newest = fault.step - 1
    last = _same_place(fault, before)
    if last is not None:
        newest = min(newest, last.from_step - 1)
    trusted = [step for step in saved_steps if step <= newest]
    if fault.kind is FaultKind.SPIKE:
        trusted = [step for step in trusted if step <= fault.step - 2] or trusted
    if trusted:
        return max(trusted)
    return None if saved_steps else 0


def _same_place(fault: NumericFault, before: Sequence[Skip]) -> Skip | None:
    """The last rollback, if no later step succeeded since."""
    last = before[-1] if before else None
    return last if last is not None and last.fault is not None and fault.step <= last.fault.step else None


def skip_range(fault: NumericFault, start: int, around: int) -> tuple[int, int]:
    """(first, count) of the positions to leave out: the batch of the fault, and `around` batches on either side.

    `start`: the position at which the restored state continues; earlier positions are in it. The batch before a spike
    produced the weights that show the spike, so it is left out too.
    """
    before = around + (fault.kind is FaultKind.SPIKE)
    first = max(start, fault.first_position - before * fault.count)
    return first, fault.first_position + (around + 1) * fault.count - first


@dataclass(frozen=True)
class Injection:
    """A fault injected for a drill at one step of one rank: `nan` and `spike` turn its loss into another number, `oom`
    takes the memory away that the step needs."""

    kind: Literal["nan", "spike", "oom"]
    step: int
    rank: int

    @property
    def factor(self) -> float:
        """What the loss is multiplied by."""
        return {"nan": math.nan, "spike": SPIKE_FACTOR, "oom": 1.0}[self.kind]

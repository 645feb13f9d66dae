"""A step that is made once more after a restore has to give what it gave before. Pure."""

import math
from dataclasses import dataclass

from orchestrator.domain.errors import ConvoyError
from orchestrator.json_values import JsonObject

FP32_TOLERANCE = 1e-4
"""Relative, for the loss and the gradient norm of one step. Another number of workers sums in another order: a loss
then differs by about 1e-7, the gradient norm, a sum over all gradients, by more. For losses alone see
`scorecard.LOSS_FP32_TOLERANCE`."""
LOW_PRECISION_TOLERANCE = 5e-2
"""bf16 and fp16 keep 8 and 11 bits."""


@dataclass(frozen=True)
class StepRecord:
    """What a step gave."""

    step: int
    loss: float
    grad_norm: float | None
    tolerance: float
    """Relative difference that is none."""


class RestoreMismatchError(ConvoyError):
    """The restored state is not the one that was saved; every rank raises the same."""

    def __init__(self, step: int, message: str) -> None:
        super().__init__(
            message, "resuming from an older state; if it also differs, suspect faulty hardware, or changed code"
        )
        self.step = step

    @property
    def details(self) -> JsonObject:
        return {"restore_mismatch": {"step": self.step}}


def check_replay(expected: StepRecord | None, step: int, loss: float, grad_norm: float) -> None:
    """Raises RestoreMismatchError if this is the step that is expected and it gives something else."""
    if expected is None or step != expected.step:
        return
    pairs = [("loss", loss, expected.loss)]
    if expected.grad_norm is not None:
        pairs.append(("gradient norm", grad_norm, expected.grad_norm))
    for name, found, recorded in pairs:
        difference = abs(found - recorded) / max(abs(recorded), 1e-12)
        if not difference <= expected.tolerance and not (math.isnan(found) and math.isnan(recorded)):
            raise RestoreMismatchError(
                step,
                f"the state restored before step {step} is not what was saved: repeating the step gives a {name} of "
                f"{found:.6g}, but {recorded:.6g} was recorded",
            )

"""What a micro step costs however few samples it has: starting kernels, gathering parameters, Python itself.

The more samples a micro step has, the smaller is this part. It is measured once for each gang, with a forward pass of
one sample of a few tokens, so that `convoy why` can say what a larger micro batch would save.
"""

import time
from statistics import median

import torch

from orchestrator.domain.events import MicroStepMeasured
from orchestrator.domain.policy.hang import Phase
from orchestrator.train.step_reporting import StepOutcome
from orchestrator.train.train_context import TrainContext

MEASURED_STEP = 3
"""After this step of a gang: the first ones warm up."""
PASSES = 3
"""Their median counts."""


def measure_micro_step(context: TrainContext, outcome: StepOutcome) -> None:
    """Measure, after the step of `outcome`, and report it. Collective at stage 3. It changes neither the model nor
    the steps that follow. Not with compiled blocks: they would be compiled again for another shape."""
    if context.spec.train.compile != "off":
        return
    fixed_s = _fixed_forward_s(context, outcome.step)
    context.check_interrupted()
    if context.session.rank == 0:
        forward_s = outcome.ranks[0].phases.forward_s / max(1, context.plan.accumulation)
        context.session.report_event(
            MicroStepMeasured(outcome.step, context.plan.micro_batch, forward_s, min(fixed_s, forward_s))
        )


def _fixed_forward_s(context: TrainContext, step: int) -> float:
    """Seconds of a forward pass of the smallest micro batch."""
    seconds = []
    batch = context.task.empty().to(context.device)
    context.engine.eval()
    try:
        with torch.no_grad():
            for _ in range(PASSES):
                context.session.beat(step, Phase.EVAL)
                _finish(context.device)
                started = time.perf_counter()
                context.task.loss(context.engine, batch)
                _finish(context.device)
                seconds.append(time.perf_counter() - started)
    finally:
        context.engine.train()
    return median(seconds)


def _finish(device: torch.device) -> None:
    """Wait for what the device has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

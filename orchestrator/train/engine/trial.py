"""Two micro steps of the longest samples before training begins on a GPU.

If they do not fit, that shows now and not at the first batch of long samples, perhaps hours later. Their gradients are
zero, so the steps that follow are the same, bit for bit, at every stage and precision (`tests/cluster/test_trial.py`).
An out-of-memory error is handled as in any step: the driver forms the gang again with half the micro batch, which is
then tried. A gang that restores a state makes no trial, because it would prolong a recovery.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch

from orchestrator.data.samples.dataset import Samples
from orchestrator.planner.device_memory import device_need
from orchestrator.train.collectives.exchange import global_sum
from orchestrator.train.engine.build_memory import shape_of
from orchestrator.train.engine.engine import Stepper

if TYPE_CHECKING:
    from orchestrator.train.train_context import TrainContext

MICRO_STEPS = 2
"""The first one makes the buffers of gradients, which the second one finds there."""


def try_longest(context: "TrainContext") -> None:
    """Collective. Raises torch.OutOfMemoryError if the micro batch is too large."""
    device, session = context.device, context.session
    batch = context.task.batch(longest(context.plan.micro_batch, context.dataset.manifest.sequence_length)).to(device)
    stepper = Stepper(context.spec, context.engine, session.world_size)
    moments = torch.empty(_moments_bytes(context), dtype=torch.uint8, device=device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for _ in range(MICRO_STEPS):
            loss = context.task.loss(context.engine, batch)
            # A gradient of zero times a loss that is no number would be none either.
            finite = global_sum(int(torch.isfinite(loss.detach())), device)
            if finite < session.world_size:
                break
            stepper.backward(loss * 0.0, 1)
            del loss
    del moments
    if device.type == "cuda":
        torch.cuda.empty_cache()


def longest(samples: int, tokens: int) -> Samples:
    """So many samples of the full length; what they say does not matter."""
    zeros = np.zeros(samples, dtype=np.int64)
    text = np.zeros((samples, tokens), dtype=np.int32)
    return Samples(zeros, zeros, text, np.full(samples, tokens, dtype=np.int32))


def _moments_bytes(context: "TrainContext") -> int:
    """What the first update will allocate: Adam has no moments before."""
    shape = shape_of(context.engine.module, context.size.parameters)
    return device_need(context.spec, shape, context.session.world_size).zero.moments_bytes

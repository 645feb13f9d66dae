"""The planner's formula of what DeepSpeed allocates, against what the engine allocates in real steps of two workers.

On a CPU the same classes of DeepSpeed hold the same tensors as on a GPU: which one is taken depends on the stage and
the precision (`deepspeed/runtime/engine.py`, `_do_optimizer_sanity_check`).
"""

import pytest

from tests.cluster.memory_steps import measured, peak
from tests.cluster.zero_gang import Gang
from tests.selection import every_day

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize(
    ("stage", "precision", "overlap"),
    every_day(
        [
            (0, "bf16", False),
            (1, "bf16", False),
            (2, "bf16", True),
            (3, "bf16", False),
            (2, "fp32", False),
            (0, "fp32", False),
            (1, "fp32", False),
            (2, "bf16", False),
            (3, "fp32", False),
        ],
        (2, "bf16", True),
        (3, "bf16", False),
    ),
)
def test_deepspeed_allocates_what_the_formula_says(gang: Gang, stage: int, precision: str, overlap: bool) -> None:
    for stays, backward, update, zero in gang.run(2, measured, stage, precision, overlap):
        states = zero.weights_bytes + zero.gradients_bytes + zero.accumulators_bytes + zero.optimizer_bytes
        fixed = states + zero.buckets_bytes
        if (stage, precision) not in ((1, "fp32"), (2, "fp32")):  # there gradients have been given up by then
            assert fixed == pytest.approx(stays, rel=0.02)
        planned = fixed + max(zero.gathered_bytes + zero.reducing_bytes, zero.update_bytes)
        assert planned == pytest.approx(max(backward, update), rel=0.10)


@pytest.mark.parametrize(
    ("stage", "micro_batch", "checkpointing"),
    every_day(
        [(1, 4, False), (2, 8, False), (3, 8, True), (1, 1, True), (3, 4, False)],
        (3, 8, True),
    ),
)
def test_the_peak_of_a_step_is_what_the_planner_expects(
    gang: Gang, stage: int, micro_batch: int, checkpointing: bool
) -> None:
    for measured_bytes, planned_bytes in gang.run(2, peak, stage, micro_batch, checkpointing):
        assert planned_bytes == pytest.approx(measured_bytes, rel=0.10)

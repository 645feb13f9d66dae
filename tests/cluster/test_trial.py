"""A trial of the longest samples leaves no trace in the steps that follow."""

import pytest

from tests.cluster.trial_steps import losses
from tests.cluster.zero_gang import Gang
from tests.selection import every_day

pytestmark = pytest.mark.cluster

CASES = [(stage, precision, micro) for stage in range(4) for precision in ("fp32", "bf16") for micro in (1, 2)]


@pytest.mark.parametrize(
    ("stage", "precision", "accumulation"),
    every_day(CASES, (0, "fp32", 1), (1, "bf16", 2), (2, "bf16", 1), (2, "fp32", 2), (3, "bf16", 2)),
)
def test_a_trial_leaves_no_trace(gang: Gang, stage: int, precision: str, accumulation: int) -> None:
    plain = gang.run(2, losses, stage, precision, accumulation, False)
    tried = gang.run(2, losses, stage, precision, accumulation, True)
    assert tried == plain

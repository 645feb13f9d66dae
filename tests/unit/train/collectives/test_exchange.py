from dataclasses import replace
from typing import Any

import pytest
import torch

from orchestrator.domain.ranks.rank_report import PhaseTimes, RankMemory
from orchestrator.domain.session import Leave
from orchestrator.train.collectives.exchange import RankStep, read_numbers
from orchestrator.train.step_reporting import StepOutcome

pytestmark = pytest.mark.unit

FACTS = RankStep(
    loss_sum=1.0,
    targets=3,
    tokens=4,
    samples=1,
    digest=5,
    phases=PhaseTimes(0.0, 0.0, 0.0, 0.0),
    memory=RankMemory(1, 1),
    leave=Leave.NO,
    save=False,
    replicated_step=-1,
    step_s=0.1,
    targets_ahead=0,
)


def test_numbers_are_read_as_they_are_wherever_they_are() -> None:
    values: list[Any] = [torch.tensor(0.1, dtype=torch.float64), 0.3, torch.tensor([0.2]), torch.tensor(7)]
    assert read_numbers(values, torch.device("cpu")) == [0.1, 0.3, float(torch.tensor(0.2)), 7.0]
    assert read_numbers([torch.tensor(0.5), 2.0], torch.device("cuda")) == [0.5, 2.0]
    assert read_numbers([], torch.device("cpu")) == []


@pytest.mark.parametrize(("ahead", "expected"), [([5, 7], 12), ([0, 7], 7), ([5, -1], None), ([-1, -1], None)])
def test_targets_of_the_next_step_are_known_if_every_rank_knows_its_own(ahead: list[int], expected: int | None) -> None:
    ranks = tuple(replace(FACTS, targets_ahead=each) for each in ahead)
    assert StepOutcome(1, 0, 0.1, 1.0, ranks).targets_ahead == expected

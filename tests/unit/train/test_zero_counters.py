"""Counters of updates that lie on a device are read in one go."""

import pytest
import torch

from orchestrator.train.zero.zero_state import _most

pytestmark = pytest.mark.unit


def test_the_greatest_counter_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[torch.Tensor] = []
    read = torch.Tensor.__float__

    def counted(tensor: torch.Tensor) -> float:
        reads.append(tensor)
        return float(read(tensor))

    monkeypatch.setattr(torch.Tensor, "__float__", counted)
    assert _most([torch.tensor(float(step)) for step in (3, 7, 7, 0)]) == 7.0
    assert len(reads) == 1
    assert _most([torch.tensor(2.0), 9, torch.tensor([4.0])]) == 9.0
    assert _most([5, 6]) == 6.0
    assert _most([]) is None

"""Places of workers: which are empty, and which are left out."""

import pytest

from orchestrator.gang.group.gang_policy import CPU_PATIENCE_S, GPU_PATIENCE_S, patience_s
from orchestrator.gang.group.reservations import FAULTS, Reservations

pytestmark = pytest.mark.unit


def test_a_place_whose_gpu_fails_again_is_left_out() -> None:
    first, second = object(), object()
    places = Reservations([first, second])
    assert [places.blame(first) for _ in range(FAULTS + 1)] == [False] * (FAULTS - 1) + [True, False]
    assert places.left_out(first)
    assert not places.left_out(second)
    assert places.empty([]) == [second]
    assert places.empty([second]) == []


def test_survivors_on_gpus_have_more_time_to_come_out_of_a_collective() -> None:
    assert patience_s(False, 100.0) == CPU_PATIENCE_S
    assert patience_s(True, 0.5) == GPU_PATIENCE_S
    assert patience_s(True, 20.0) == 40.0

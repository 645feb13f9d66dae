"""How far a process is in its sequence of collectives, as torch's flight recorder tells."""

import json

import pytest

from orchestrator.domain.policy.hang import CollectiveCounts
from orchestrator.train.collectives.nccl_sequence import nccl_counts, read_status

pytestmark = pytest.mark.unit


def status(enqueued: int, started: int, completed: int) -> dict[str, int]:
    return {
        "last_enqueued_collective": enqueued,
        "last_started_collective": started,
        "last_completed_collective": completed,
    }


def test_groups_are_added_up() -> None:
    trace = {"version": "2.10", "pg_status": {"0": status(7, 6, 6), "1": status(30, 30, 29), "2": status(-1, -1, -1)}}
    assert read_status(json.dumps(trace).encode()) == CollectiveCounts(37, 36, 35)


def test_a_process_without_groups_has_no_counts() -> None:
    assert read_status('{"version": "2.10", "pg_status": {}}') is None
    assert read_status('{"version": "2.10"}') is None


def test_a_torch_without_nccl_has_none() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this torch has NCCL")
    assert nccl_counts() is None

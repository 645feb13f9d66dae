"""What may be asked of a run, and how the question and its answer travel."""

from pathlib import Path

import pytest

from orchestrator.domain.errors import UsageError
from orchestrator.domain.scaling import (
    ScaleAnswer,
    ScaleRequest,
    ScaleState,
    check_workers,
    fewest_workers,
)
from orchestrator.spec.job import JobSpec
from orchestrator.spec.loading.load import load_job

pytestmark = pytest.mark.unit

JOB = Path(__file__).parents[3] / "jobs" / "quickstart.yaml"


def spec(workers: str) -> JobSpec:
    return load_job(JOB, (f"resources.workers={workers}", "train.global_batch=8", "cluster.nodes=4")).spec


def test_a_plain_number_may_become_any_other_that_the_batch_can_be_shared_by() -> None:
    check_workers(spec("2"), 8, force=False)
    with pytest.raises(UsageError, match="9 workers cannot share a global batch of 8") as raised:
        check_workers(spec("2"), 9, force=True)
    assert "at most 8" in str(raised.value.hint)


def test_a_range_is_left_only_by_force() -> None:
    ranged = spec("{min: 2, max: 4}")
    for workers in (2, 3, 4):
        check_workers(ranged, workers, force=False)
    for workers in (1, 5):
        with pytest.raises(UsageError, match="2 to 4 workers"):
            check_workers(ranged, workers, force=False)
        check_workers(ranged, workers, force=True)


def test_who_asks_for_fewer_than_the_minimum_gets_along_with_them() -> None:
    assert [fewest_workers(3, workers) for workers in (1, 3, 7)] == [1, 3, 3]


def test_both_survive_their_way_through_a_file() -> None:
    request = ScaleRequest("a1", 3, "ann@desk", 12.5, {"pid": 7, "host": "desk"}, force=True)
    assert ScaleRequest.from_json(request.to_json()) == request
    answer = ScaleAnswer("a1", 3, ScaleState.DONE, "3 workers from step 9 on", 9)
    assert ScaleAnswer.from_json(answer.to_json()) == answer


@pytest.mark.parametrize("damaged", [None, {}, {"id": "a"}, {"id": "a", "workers": "many", "by": "x", "driver": 3}])
def test_what_is_damaged_is_nothing(damaged: dict | None) -> None:
    assert ScaleRequest.from_json(damaged) is None
    assert ScaleAnswer.from_json(damaged) is None

"""What a drill plans, before anything is started."""

import random
import threading
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.errors import UsageError
from orchestrator.domain.scorecard import Fault
from orchestrator.drill import REAL, _planned, drill
from orchestrator.spec.load import LoadedJob, load_job
from tests.cluster.gang_runs import write_job

pytestmark = pytest.mark.unit


def a_job(directory: Path, **recovery: Any) -> LoadedJob:
    return load_job(write_job(directory, recovery=recovery))


@pytest.mark.parametrize(("recovery", "most"), [({}, 3), ({"max_rollbacks": 1}, 1), ({"on_nan": "continue"}, 0)])
def test_random_faults_hold_no_more_numeric_ones_than_the_job_gets_over(
    recovery: dict[str, Any], most: int, tmp_path: Path
) -> None:
    planned = _planned(a_job(tmp_path, **recovery), Fault.RANDOM, range(1, 101), random.Random(0))
    kinds = [fault for _, fault in planned]
    assert [step for step, _ in planned] == list(range(1, 101))
    assert kinds.count(Fault.NAN) == most
    assert set(kinds) | {Fault.NAN} == set(REAL) | {Fault.NAN}


@pytest.mark.parametrize(
    ("recovery", "times"), [({"max_rollbacks": 1}, 2), ({"on_nan": "continue"}, 1), ({"on_nan": "stop"}, 2)]
)
def test_more_numeric_faults_than_the_job_gets_over_are_refused_at_once(
    recovery: dict[str, Any], times: int, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="more than the job would get over") as raised:
        drill(a_job(tmp_path, **recovery), tmp_path / "runs", Fault.NAN, times, 0, [], threading.Event())
    assert raised.value.hint == f"--set recovery.on_nan=rollback_and_skip --set recovery.max_rollbacks={times}"
    assert not (tmp_path / "runs").exists()

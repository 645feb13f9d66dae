"""Runs on a local cluster of two nodes: what arrives at the driver, and what is left afterwards."""

import time
from pathlib import Path

import pytest

from orchestrator.domain.events import ClusterReady, DataReady, RunState, StateChanged, WarningIssued, WorkerFailed
from tests.cluster.gang_runs import all_pids, left_in_shared_memory, ray_processes, run, shared_memory, state_of
from tests.selection import every_day

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("temporary_directory")]


def test_two_nodes_run_an_entry_point(tmp_path: Path, temporary_directory: Path) -> None:
    pids, shm = all_pids(), shared_memory()
    outcome, seen = run(tmp_path, "ring")
    assert (outcome.state, outcome.exit_code, outcome.reason, outcome.step) == (RunState.SUCCEEDED, 0, None, 3)
    assert [report.step for report in seen.steps] == [1, 2, 3]
    facts = sorted(fields["message"] for fields in seen.of(WarningIssued) if fields["message"].startswith("facts"))
    assert [fact.split()[:3] for fact in facts] == [["facts", "0", "11"], ["facts", "1", "11"]]
    for rank in (0, 1):
        assert f"python line of rank {rank}" in seen.lines(rank)
        assert f"C line of rank {rank}" in seen.lines(rank)
    states = [fields["state"] for fields in seen.of(StateChanged)]
    assert states == ["preparing", "starting", "running", "succeeded"]
    assert seen.of(ClusterReady)[0]["nodes"] == 2
    assert seen.of(DataReady)
    assert state_of(outcome)["state"] == "succeeded"
    assert ray_processes(pids) == []
    assert left_in_shared_memory(shm) == set()
    assert list(temporary_directory.glob("convoy-*")) == []


def test_exception_arrives_whole_with_its_rank(tmp_path: Path) -> None:
    pids = all_pids()
    outcome, seen = run(tmp_path, "raise_on_last")
    assert (outcome.state, outcome.exit_code) == (RunState.FAILED, 1)
    assert outcome.reason is not None
    assert "rank 1" in outcome.reason
    assert "NotPicklable: unusual failure" in outcome.reason
    (failed,) = seen.of(WorkerFailed)
    assert failed["rank"] == 1
    assert "raise_from_here" in failed["traceback"]
    assert "raise NotPicklable(value, 2)" in failed["traceback"]
    assert "about to fail" in seen.lines(1)
    assert state_of(outcome)["reason"] == outcome.reason
    assert ray_processes(pids) == []


DEATHS = every_day([("kill", "SIGKILL"), ("segv", "SIGSEGV"), ("exit", "_exit")], ("kill", "SIGKILL"))


@pytest.mark.usefixtures("stock_workers")
@pytest.mark.parametrize(("how", "said"), DEATHS)
def test_death_of_a_process_is_named(tmp_path: Path, how: str, said: str) -> None:
    outcome, seen = run(tmp_path, "die_on_last", name=f"die-{how}")
    assert (outcome.state, outcome.exit_code) == (RunState.FAILED, 1)
    assert outcome.reason is not None
    assert "rank 1" in outcome.reason
    assert said in outcome.reason
    assert "last words" in seen.lines(1)


def test_stop_is_graceful_and_quick(tmp_path: Path) -> None:
    pids, shm = all_pids(), shared_memory()
    outcome, seen = run(tmp_path, "until_stopped", stop_early=True)
    assert time.monotonic() - seen.stopped_s < 5.0
    assert (outcome.state, outcome.exit_code) == (RunState.STOPPED, 130)
    assert outcome.step == seen.steps[-1].step > 1
    assert ray_processes(pids) == []
    assert left_in_shared_memory(shm) == set()


def test_stop_does_not_wait_for_the_deaf(tmp_path: Path) -> None:
    pids = all_pids()
    outcome, seen = run(tmp_path, "never_stops", stop_early=True)
    assert time.monotonic() - seen.stopped_s < 5.0
    assert outcome.state is RunState.STOPPED
    assert ray_processes(pids) == []

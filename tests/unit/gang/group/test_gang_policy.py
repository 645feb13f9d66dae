"""What the driver makes of the facts about a gang."""

import pytest

from orchestrator.clusters.ray.worker_death import DeathKind, WorkerDeath
from orchestrator.domain.engine_errors import Cause
from orchestrator.domain.generation import Ending, FailureDetails, WorkerFailure
from orchestrator.gang.group.gang_policy import (
    GATHER_S,
    GRACE_S,
    Action,
    GangFacts,
    Quiet,
    decide,
    explain_death,
    root_cause,
    silent_nodes,
    unseen_lines,
    wants_regroup,
)

pytestmark = pytest.mark.unit

VICTIM = WorkerFailure(
    0, Ending.RAISED, 10.0, "RuntimeError: [gloo] Connection closed by peer", details=FailureDetails(Cause.PEER)
)
CULPRIT = WorkerFailure(2, Ending.RAISED, 10.4, "ValueError: 3 is no good")
DIED = WorkerDeath(DeathKind.PROCESS_DIED, "The actor died unexpectedly before finishing this task.")
KILLED = WorkerFailure(1, Ending.PROCESS_DIED, 10.6, "its process was killed by SIGKILL")


def facts(
    now_s: float = 11.0, returned: int = 0, failures: tuple[WorkerFailure, ...] = (), stop_since_s: float | None = None
) -> GangFacts:
    return GangFacts(now_s, 4, returned, failures, stop_since_s)


def test_goes_on_until_all_have_returned() -> None:
    assert decide(facts()) is Action.CONTINUE
    assert decide(facts(returned=3)) is Action.CONTINUE
    assert decide(facts(returned=4)) is Action.FINISH


def test_a_failure_of_its_own_ends_the_run_at_once() -> None:
    assert decide(facts(10.5, failures=(CULPRIT,))) is Action.FAIL
    assert decide(facts(10.7, failures=(VICTIM, KILLED))) is Action.FAIL


def test_a_failed_collective_waits_for_its_cause() -> None:
    assert decide(facts(10.0 + GATHER_S / 2, failures=(VICTIM,))) is Action.CONTINUE
    assert decide(facts(10.0 + GATHER_S, failures=(VICTIM,))) is Action.FAIL
    assert decide(facts(10.1, returned=3, failures=(VICTIM,))) is Action.FAIL


def test_the_cause_is_not_the_first_to_complain() -> None:
    assert root_cause([VICTIM, CULPRIT]) is CULPRIT
    assert root_cause([VICTIM, KILLED, CULPRIT]) is CULPRIT
    assert root_cause([VICTIM]) is VICTIM


def test_stop_waits_then_kills() -> None:
    assert decide(facts(20.0, stop_since_s=19.9)) is Action.STOP
    assert decide(facts(20.0 + GRACE_S, stop_since_s=20.0)) is Action.KILL
    assert decide(facts(20.1, returned=4, stop_since_s=20.0)) is Action.FINISH


def test_a_failure_while_stopping_is_no_failure_of_the_run() -> None:
    assert decide(facts(20.1, failures=(VICTIM,), stop_since_s=20.0)) is Action.STOP
    assert decide(facts(20.1, returned=3, failures=(VICTIM,), stop_since_s=20.0)) is Action.KILL


@pytest.mark.parametrize(
    ("death", "lines", "oom_kills", "said"),
    [
        (DIED, ["Fatal Python error: Segmentation fault"], 0, "SIGSEGV"),
        (DIED, ["*** SIGABRT received at time=17"], 0, "SIGABRT"),
        (WorkerDeath(DeathKind.PROCESS_DIED, exit_code=3), [], 0, "exit code 3"),
        (DIED, ["step 3"], 0, "SIGKILL"),
        (DIED, ["step 3"], 1, "kernel OOM killer"),
        (WorkerDeath(DeathKind.UNKNOWN), ["step 3"], 0, "SIGKILL"),
        (WorkerDeath(DeathKind.OUT_OF_MEMORY), [], 0, "memory monitor"),
    ],
)
def test_a_death_is_explained(death: WorkerDeath, lines: list[str], oom_kills: int, said: str) -> None:
    assert said in explain_death(death, lines, oom_kills).text


def test_a_death_has_a_cause_if_something_tells_it() -> None:
    aborted = ["CUDA error: an illegal memory access was encountered", "*** SIGABRT received at time=17"]
    assert explain_death(DIED, aborted, 0).cause is Cause.DEVICE
    assert explain_death(DIED, ["*** SIGABRT received at time=17"], 0).cause is None
    assert explain_death(DIED, ["step 3"], 1).cause is Cause.OUT_OF_MEMORY
    assert explain_death(DIED, ["step 3"], 0).cause is None
    assert explain_death(WorkerDeath(DeathKind.OUT_OF_MEMORY), [], 0).cause is Cause.OUT_OF_MEMORY


def test_lines_that_did_not_arrive() -> None:
    assert unseen_lines(["a", "b", "c"], ["a", "b"]) == ["c"]
    assert unseen_lines(["b", "c", "d"], ["a", "b", "c"]) == ["d"]
    assert unseen_lines(["x", "x", "x"], ["x", "x"]) == []
    assert unseen_lines(["a"], []) == ["a"]
    assert unseen_lines([], ["a"]) == []


def test_want_of_memory_is_known_by_its_cause() -> None:
    assert WorkerFailure(0, Ending.RAISED, 1.0, "any", details=FailureDetails(Cause.OUT_OF_MEMORY)).is_out_of_memory
    assert WorkerFailure(
        0, Ending.PROCESS_DIED, 1.0, "any", details=FailureDetails(Cause.OUT_OF_MEMORY)
    ).is_out_of_memory
    assert not any(failure.is_out_of_memory for failure in (VICTIM, CULPRIT, KILLED))


@pytest.mark.parametrize(("cause", "ends"), [(cause, cause.ends_process) for cause in Cause])
def test_a_process_whose_context_is_lost_cannot_go_on(cause: Cause, ends: bool) -> None:
    assert WorkerFailure(0, Ending.RAISED, 1.0, "any", details=FailureDetails(cause)).ends_process is ends
    assert not CULPRIT.ends_process


def test_a_node_is_silent_when_none_of_its_workers_is_heard() -> None:
    assert silent_nodes([Quiet("a", 0.1), Quiet("b", 9.0), Quiet("b", 0.2), Quiet("c", 9.0)]) == ["c"]
    assert silent_nodes([Quiet("a", 9.0), Quiet("b", 9.0)]) == []  # it is the driver that hears nothing
    assert silent_nodes([]) == []


def test_a_gang_is_formed_anew_for_those_who_are_ready() -> None:
    assert not wants_regroup(0, 3, 99.0)
    assert wants_regroup(1, 0, 0.0)
    assert not wants_regroup(1, 1, 0.5)
    assert wants_regroup(1, 1, 5.0)

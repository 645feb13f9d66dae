"""What is made of the end of a worker as Ray tells it."""

import pytest
from ray import exceptions
from ray.core.generated import common_pb2

from orchestrator.clusters.ray.worker_death import DeathKind, classify, fatal_signal

pytestmark = pytest.mark.unit

ACTOR = b"\0" * 16


def actor_died(message: str) -> Exception:
    return exceptions.ActorDiedError(common_pb2.ActorDiedErrorContext(error_message=message, actor_id=ACTOR))


def cause(reason: int) -> common_pb2.ActorDeathCause:
    context = common_pb2.ActorDiedErrorContext(error_message="anything", reason=reason)
    return common_pb2.ActorDeathCause(actor_died_error_context=context)


Reason = common_pb2.ActorDiedErrorContext


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (exceptions.NodeDiedError("anything"), DeathKind.NODE_DIED),
        (exceptions.OutOfMemoryError("anything"), DeathKind.OUT_OF_MEMORY),
        (exceptions.WorkerCrashedError(), DeathKind.PROCESS_DIED),
        (exceptions.ActorUnavailableError("its node has died, perhaps", ACTOR), DeathKind.UNKNOWN),
        (exceptions.RayActorError(preempted=True), DeathKind.NODE_DIED),
    ],
)
def test_the_type_of_an_exception_counts_first(error: Exception, kind: DeathKind) -> None:
    assert classify(error, cause(Reason.WORKER_DIED)).kind is kind


def test_the_recorded_cause_counts_before_words() -> None:
    misleading = actor_died("its node has died")
    assert classify(misleading, cause(Reason.WORKER_DIED)).kind is DeathKind.PROCESS_DIED
    assert classify(misleading, cause(Reason.RAY_KILL)).kind is DeathKind.PROCESS_DIED
    assert classify(actor_died("a process has died"), cause(Reason.NODE_DIED)).kind is DeathKind.NODE_DIED
    memory = common_pb2.ActorDeathCause(oom_context=common_pb2.OomContext(error_message="anything"))
    assert classify(misleading, memory).kind is DeathKind.OUT_OF_MEMORY
    assert classify(misleading, cause(Reason.OUT_OF_SCOPE)).kind is DeathKind.NODE_DIED  # it does not tell


@pytest.mark.parametrize(
    ("message", "kind", "exit_code"),
    [
        ("The actor died because its node has died. Node Id: 0a", DeathKind.NODE_DIED, None),
        ("The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
         "Worker unexpectedly exits with a connection error code 2. End of file.", DeathKind.PROCESS_DIED, None),
        ("Worker exit type: USER_ERROR Worker exit detail: Worker exits with an exit code 3.", DeathKind.PROCESS_DIED,
         3),
        ("1 worker(s) were killed due to the node running low on memory.", DeathKind.OUT_OF_MEMORY, None),
        ("something new", DeathKind.UNKNOWN, None),
    ],
)  # fmt: skip
def test_words_count_last(message: str, kind: DeathKind, exit_code: int | None) -> None:
    death = classify(actor_died(message))
    assert (death.kind, death.exit_code) == (kind, exit_code)
    assert death.message == "The actor died unexpectedly before finishing this task."


def test_the_last_output_names_the_signal() -> None:
    assert fatal_signal(["Fatal Python error: Bus error", "Thread 0x1", "  File x"]) == "SIGBUS"
    assert fatal_signal(["*** SIGABRT received at time=17", "step"]) == "SIGABRT"
    assert fatal_signal(["Fatal Python error: Segmentation fault", "*** SIGSEGV received at time=1"]) == "SIGSEGV"
    assert fatal_signal(["step 3"]) is None

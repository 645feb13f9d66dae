"""What kind of fault a failure is."""

import pytest

from orchestrator.domain.engine_errors import Cause
from orchestrator.domain.events import FaultKind, RecoveryReason
from orchestrator.domain.generation import Ending, FailureDetails, WorkerFailure
from orchestrator.domain.policy.numeric import NumericFault

pytestmark = pytest.mark.unit


def failure(ending: Ending, cause: Cause | None = None) -> WorkerFailure:
    return WorkerFailure(0, ending, 1.0, "any", details=FailureDetails(cause))


@pytest.mark.parametrize(
    ("ending", "cause", "reason"),
    [
        (Ending.PROCESS_DIED, None, RecoveryReason.WORKER_DIED),
        (Ending.PROCESS_DIED, Cause.OUT_OF_MEMORY, RecoveryReason.OUT_OF_MEMORY),
        (Ending.NODE_DIED, None, RecoveryReason.NODE_DIED),
        (Ending.NODE_SILENT, None, RecoveryReason.NODE_SILENT),
        (Ending.HUNG, None, RecoveryReason.HANG),
        (Ending.RAISED, None, RecoveryReason.WORKER_ERROR),
        (Ending.RAISED, Cause.PEER, RecoveryReason.WORKER_ERROR),
        (Ending.RAISED, Cause.DEVICE, RecoveryReason.DEVICE_ERROR),
    ],
)
def test_a_failure_is_a_kind_of_fault(ending: Ending, cause: Cause | None, reason: RecoveryReason) -> None:
    assert failure(ending, cause).reason is reason


def test_numbers_that_must_not_count_are_a_fault_of_their_own() -> None:
    fault = NumericFault(FaultKind.SPIKE, 3, 0, 4, 99.0, None)
    assert WorkerFailure(0, Ending.RAISED, 1.0, "any", details=FailureDetails(None, fault)).reason is (
        RecoveryReason.NUMERIC_FAULT
    )


def test_every_ending_has_a_reason() -> None:
    assert all(failure(ending).reason is not RecoveryReason.UNKNOWN for ending in Ending)

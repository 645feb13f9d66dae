import pytest

from orchestrator.domain.errors import ClusterError, ConvoyError, UsageError, WorkerError

pytestmark = pytest.mark.unit


def test_exit_codes_tell_whose_fault_it_is() -> None:
    assert UsageError("x").exit_code == 2
    assert ClusterError("x").exit_code == 1


def test_a_workers_words_arrive_whole() -> None:
    error = WorkerError(3, "ValueError: boom", "Traceback ...\n  line\nValueError: boom", hint="look")
    assert isinstance(error, ConvoyError)
    assert (error.rank, error.message, error.hint, str(error)) == (3, "ValueError: boom", "look", "ValueError: boom")
    assert error.traceback_text.startswith("Traceback")

import pytest

from orchestrator.domain.errors import ClusterError, UsageError

pytestmark = pytest.mark.unit


def test_exit_codes_tell_whose_fault_it_is() -> None:
    assert UsageError("x").exit_code == 2
    assert ClusterError("x").exit_code == 1

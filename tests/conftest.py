"""What tests of several folders share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.domain.device import ACCELERATOR_VARIABLE, CPU
from tests.cluster.gang_runs import own_temporary_directory


def pytest_configure() -> None:
    """DeepSpeed in this very process uses the CPU, also on a machine with a GPU."""
    os.environ[ACCELERATOR_VARIABLE] = CPU


@pytest.fixture
def temporary_directory(tmp_path: Path) -> Iterator[Path]:
    """See `own_temporary_directory`. After `tmp_path`, which is made under the usual one."""
    with own_temporary_directory() as directory:
        yield directory

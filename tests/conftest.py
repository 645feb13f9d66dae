"""What tests of several folders share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.gang_runs import own_temporary_directory


@pytest.fixture
def temporary_directory(tmp_path: Path) -> Iterator[Path]:
    """See `own_temporary_directory`. After `tmp_path`, which is made under the usual one."""
    with own_temporary_directory() as directory:
        yield directory

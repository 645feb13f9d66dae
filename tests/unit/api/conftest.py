"""A real queue behind the API, in this process."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.served_queue import ServedQueue


@pytest.fixture
def served() -> Iterator[ServedQueue]:
    """In memory, if there is a file system for it: durable writes take no time there."""
    base = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="convoy-api-", dir=base if base.is_dir() else None))
    made = ServedQueue(folder / "home")
    yield made
    made.close()
    shutil.rmtree(folder)

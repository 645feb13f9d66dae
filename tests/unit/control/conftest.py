"""Fixtures of the queue's tests."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.control.scripted import Server

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
def fast_directory() -> Iterator[Path]:
    """A directory in memory if there is one: hundreds of durable writes take no time there."""
    base = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    path = Path(tempfile.mkdtemp(prefix="convoy-queue-", dir=base))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def server(fast_directory: Path) -> Iterator[Server]:
    """A server over a scripted world of two nodes with four CPUs each."""
    made = Server(fast_directory)
    yield made
    made.store.close()

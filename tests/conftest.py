"""What tests of several folders share."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.gang_runs import own_temporary_directory

PRELOADED = (
    "torch",
    "torch.distributed",
    "deepspeed",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
    "orchestrator.train.loop",
    "orchestrator.train.worker",
    "orchestrator.train.rehearsal",
    "orchestrator.data.dataset",
)
FORKED = ("cluster", "faults", "soak")
"""Markers of tests that start workers."""


@pytest.fixture(scope="session", autouse=True)
def fork_server(request: pytest.FixtureRequest) -> Iterator[None]:
    """One fork server for the local clusters of all tests: the imports are paid once. `stock_workers` leaves it out."""
    from orchestrator.gang.cluster import LOCAL_ENV
    from orchestrator.gang.fork_server.launch import VARIABLE, start_fork_server
    from orchestrator.gang.worker_actor import worker_environment

    if VARIABLE in os.environ or not any(
        item.get_closest_marker(name) for item in request.session.items for name in FORKED
    ):
        yield
        return
    directory = Path(tempfile.mkdtemp(prefix="cf-", dir="/tmp"))
    env = {**os.environ, **LOCAL_ENV, **worker_environment(1, 0, os.environ)}
    server = start_fork_server(directory, PRELOADED, env)
    os.environ[VARIABLE] = str(server.socket)
    yield
    del os.environ[VARIABLE]
    server.close()
    reason = server.bypassed()
    shutil.rmtree(directory, ignore_errors=True)
    assert reason is None or "environment" in reason, reason


@pytest.fixture
def stock_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers start as on a cluster that somebody else started: each imports everything itself."""
    monkeypatch.setenv("CONVOY_FORK_SERVER", "0")


@pytest.fixture
def temporary_directory(tmp_path: Path) -> Iterator[Path]:
    """See `own_temporary_directory`. After `tmp_path`, which is made under the usual one."""
    with own_temporary_directory() as directory:
        yield directory

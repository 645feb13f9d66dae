"""The fork server of a test session: one for all test processes, which local clusters get their workers from."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from orchestrator.clusters.ray.fork_server.fork_launch import VARIABLE, ForkServer, start_fork_server
from orchestrator.clusters.ray.ray_settings import LOCAL_ENV
from orchestrator.gang.agent.worker_actor import worker_environment
from tests.cluster.forked import ENGINE_AND_MODELS

PRELOADED = (*ENGINE_AND_MODELS, "orchestrator.train.engine.warmup")
SHARED = "CONVOY_TEST_FORK_SERVER"
"""`pid:status file` of the server that the first test process started for the others."""
NO_WORKERS = ("unit", "contract")
"""Folders whose tests start none."""


def starts_workers(paths: Sequence[str]) -> bool:
    """Whether tests below these paths may start workers."""
    folders = [Path(path.partition("::")[0]).parts for path in paths]
    return not folders or not all(any(name in parts for name in NO_WORKERS) for parts in folders)


@contextlib.contextmanager
def own_server(environ: Mapping[str, str]) -> Iterator[ForkServer]:
    """A server of this process; its socket is named in `os.environ` meanwhile."""
    directory = Path(tempfile.mkdtemp(prefix="cf-", dir="/tmp"))
    server = start_fork_server(directory, PRELOADED, {**environ, **LOCAL_ENV, **worker_environment(1, 0, environ)})
    assert server.process is not None
    os.environ[VARIABLE] = str(server.socket)
    os.environ[SHARED] = f"{server.process.pid}:{server.status}"
    try:
        yield server
    finally:
        del os.environ[VARIABLE], os.environ[SHARED]
        server.close()
        shutil.rmtree(directory, ignore_errors=True)


def shared_server(environ: Mapping[str, str]) -> ForkServer | None:
    """The server that another test process started for this one; None if there is none, or if it is not a test's."""
    if SHARED not in environ:
        return None
    return ForkServer(Path(environ[VARIABLE]), Path(environ[SHARED].partition(":")[2]))


def is_alive(environ: Mapping[str, str]) -> bool:
    """Whether the process of the session's server runs."""
    try:
        return psutil.Process(int(environ[SHARED].partition(":")[0])).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

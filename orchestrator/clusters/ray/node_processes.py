"""The processes of a local node: its raylet, what the raylet started, and what the fork server forked for it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil

from orchestrator.clusters.ray.fork_server.fork_client import FORKED


def descendants(pid: int) -> list[psutil.Process]:
    """Processes below a process: children, theirs, and forked workers, which are children of the fork server but live
    as long as their client, a child of the raylet. Empty if it is gone."""
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        found = psutil.Process(pid).children(recursive=True)
    return [*found, *_forked_for(found)]


def raylet_of(pid: int) -> psutil.Process:
    """The raylet that a worker of a local cluster belongs to. Raises psutil.NoSuchProcess if there is none."""
    for process in (psutil.Process(pid), *_clients_of(pid)):
        for parent in process.parents():
            if parent.name() == "raylet":
                return parent
    raise psutil.NoSuchProcess(pid, msg="it belongs to no raylet")


def raylets_here(gcs_address: str) -> set[psutil.Process]:
    """The raylets of a cluster on this host, as far as its processes can be seen. `gcs_address`: `host:port`."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() == "raylet" and f"--gcs-address={gcs_address}" in process.cmdline():
                found.add(process)
    return found


def is_head(raylet: psutil.Process) -> bool:
    """Whether a raylet is that of the node which holds the cluster's own state."""
    return "--head" in raylet.cmdline()


def node_id_of(raylet: psutil.Process) -> str:
    """The id of a raylet's node."""
    return next(word for word in raylet.cmdline() if word.startswith("--node_id=")).partition("=")[2]


def is_worker(pid: int) -> bool:
    """Whether a process of this host is a worker of Ray, by the title that Ray gives to it. False if it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
    return False


def _forked_for(clients: list[psutil.Process]) -> Iterator[psutil.Process]:
    for client in clients:
        with contextlib.suppress(psutil.Error):
            name = client.name()
            if name.startswith(FORKED) and name.removeprefix(FORKED).isdigit():
                yield psutil.Process(int(name.removeprefix(FORKED)))


def _clients_of(pid: int) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() == f"{FORKED}{pid}":
                yield process

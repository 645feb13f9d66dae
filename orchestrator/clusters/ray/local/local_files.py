"""Directories of local clusters: made with a lock that is held as long as the driver lives, removed with it or by the
next one."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from orchestrator.clusters.ray.local.raylet import ClusterFiles
from orchestrator.domain.errors import ClusterError

DIRECTORY_PREFIX = "convoy-ray-"
LONGEST_SOCKET_PATH = 100
"""Characters; the kernel's limit is 107 bytes."""


def make_directory(nodes: int, sign: str | None) -> tuple[ClusterFiles, int]:
    """The directory of a cluster of so many nodes, and the descriptor of its lock. `sign` becomes part of its name.
    Raises ClusterError if its path is too long for sockets."""
    files = ClusterFiles(Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX + (f"{sign}-" if sign else ""))))
    if len(str(files.store_socket(nodes))) > LONGEST_SOCKET_PATH:
        shutil.rmtree(files.root)
        raise ClusterError(
            f"the directory for temporary files is too deep for sockets: {files.root}", hint="set TMPDIR=/tmp"
        )
    lock = os.open(files.root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    for directory in (files.logs, files.raylet_socket(0).parent, files.runtime):
        directory.mkdir(parents=True)
    return files, lock


def sweep_stale(directory: Path) -> None:
    """Remove what killed drivers left: cluster directories whose lock is not held."""
    for root in directory.glob(f"{DIRECTORY_PREFIX}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(root / "lock", os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(root, ignore_errors=True)
            finally:
                os.close(descriptor)


def log_tail(files: ClusterFiles) -> str:
    """The first lines that the cluster's processes wrote to stderr, in one line."""
    lines: list[str] = []
    for path in sorted(files.logs.glob("*.err")):
        with contextlib.suppress(OSError):
            lines += [line for line in path.read_text(errors="replace").splitlines() if line.strip()][:2]
    return " | ".join(lines)[:1000]

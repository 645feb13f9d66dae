"""A file system of its own for a run's checkpoints, that can be made full.

It is a tmpfs, mounted over the directory before the run writes anything there. Full is its size set to what it holds:
the kernel itself then answers writes with ENOSPC, and nothing else on the machine is short of room. (RLIMIT_FSIZE,
which would need no mount, gives EFBIG or SIGXFSZ: that is not a full disk.) When the run is over its files move to the
directory below, and the mount goes.
"""

import os
import re
import shutil
import subprocess
import threading
from functools import partial
from pathlib import Path

from orchestrator.domain.errors import UsageError
from orchestrator.lasting_thread import LastingThread

SOURCE = "convoy-drill"
MOUNTS = Path("/proc/self/mounts")
ROOM = "50%"
"""Of the machine's memory: the kernel's own default."""
TRIES = 20
LOOK_S = 0.02


class Disk:
    """Mounted over `directory`, which is created if it is missing. Needs root. Raises UsageError."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._emptied: threading.Event | None = None
        self._lock = threading.Lock()
        directory.mkdir(parents=True, exist_ok=True)
        _call("mount", "-t", "tmpfs", "-o", f"size={ROOM},mode=0755", f"{SOURCE}-{os.getpid()}", str(directory))

    def fill(self) -> None:
        """No room from now on: what is freed meanwhile, old checkpoints for one, is taken again within `LOOK_S`."""
        self._shrink()
        self._emptied = threading.Event()
        LastingThread("drill-disk", partial(self._keep_full, self._emptied))

    def empty(self) -> None:
        """Room again."""
        with self._lock:
            emptied, self._emptied = self._emptied, None
            if emptied is not None:
                emptied.set()
            _call("mount", "-o", f"remount,size={ROOM}", str(self.directory))

    def close(self) -> None:
        """Move what it holds below the mount, and unmount it."""
        self.empty()
        settle(self.directory)

    def _keep_full(self, emptied: threading.Event) -> bool:
        if emptied.wait(LOOK_S):
            return False
        with self._lock:
            if not emptied.is_set() and os.statvfs(self.directory).f_bfree:
                self._shrink()
        return True

    def _shrink(self) -> None:
        for left in reversed(range(TRIES)):
            there = os.statvfs(self.directory)
            used_bytes = (there.f_blocks - there.f_bfree) * there.f_frsize
            try:  # size 0 would mean without a limit
                _call("mount", "-o", f"remount,size={max(used_bytes, there.f_frsize)}", str(self.directory))
                return
            except UsageError:  # somebody has written since we looked
                if not left:
                    raise


def settle(directory: Path) -> None:
    """Turn a mounted directory into a plain one of the same files."""
    kept = directory.with_name(f".{directory.name}.{os.getpid()}")
    shutil.copytree(directory, kept, symlinks=True)
    _call("umount", str(directory))
    directory.rmdir()
    kept.rename(directory)


def sweep() -> None:
    """Settle what drills left that were killed."""
    for line in MOUNTS.read_text().splitlines():
        source, place, *_ = line.split(" ")
        found = re.fullmatch(rf"{SOURCE}-(\d+)", source)
        if found is not None and not Path(f"/proc/{found[1]}").exists():
            settle(Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), place)))


def why_not() -> str | None:
    """Why this process cannot mount one; None if it can. It tries."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="convoy-drill-") as directory:
        try:
            _call("mount", "-t", "tmpfs", "-o", "size=4096", f"{SOURCE}-{os.getpid()}", directory)
            _call("umount", directory)
        except UsageError as error:
            return error.message
    return None


def _call(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UsageError(f"{command[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise UsageError(said[0] if said else f"{' '.join(command)} ended with code {done.returncode}")

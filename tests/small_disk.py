"""A small file system, which is soon full."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def mounted_disk(parent: Path, size: str) -> Iterator[Path]:
    """A file system in memory of that size (`64k`, `1m`), mounted below `parent` until the end of the context."""
    disk = parent / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "convoy-test", str(disk)], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)

"""A disk that is slow for real: a file system on a loop device whose writes or reads the kernel throttles."""

import os
import subprocess
from pathlib import Path

import pytest

BLKIO = Path("/sys/fs/cgroup/blkio")
"""Of cgroups 1, where a limit of the root group holds for all processes and for the kernel's own writing."""


class SlowDisk:
    """ext4 at `path`. Needs root, loop devices and the blkio controller; where they are missing the test is skipped."""

    def __init__(self, directory: Path, size_bytes: int) -> None:
        self.path = directory / "slow"
        self.path.mkdir()
        image = directory / "slow.img"
        with image.open("wb") as file:
            file.truncate(size_bytes)
        self._limits = {kind: BLKIO / f"blkio.throttle.{kind}_bps_device" for kind in ("read", "write")}
        if not all(limit.exists() for limit in self._limits.values()):
            pytest.skip("the kernel has no blkio controller of cgroups 1 here")
        _run("mkfs.ext4", "-q", str(image))
        self._device = _run("losetup", "--find", "--show", str(image))
        try:
            self._number = _run("lsblk", "--noheadings", "--nodeps", "--output", "MAJ:MIN", self._device)
            _run("mount", self._device, str(self.path))
        except BaseException:
            _run("losetup", "--detach", self._device)
            raise

    def limit(self, kind: str, bytes_per_s: int) -> None:
        """Throttle `read` or `write`; 0: no longer."""
        try:
            self._limits[kind].write_text(f"{self._number} {bytes_per_s}")
        except OSError as error:
            pytest.skip(f"the kernel does not let us throttle a device: {error}")

    def forget_cached(self) -> None:
        """Empty the page cache of this file system: what is read next comes from the device."""
        subprocess.run(["umount", str(self.path)], check=True)
        subprocess.run(["mount", self._device, str(self.path)], check=True)

    def forget_unmapped(self, file: Path) -> None:
        """As `forget_cached`, of one file that is in use: what no process has touched through a mapping."""
        Path(f"/sys/block/{Path(self._device).name}/queue/read_ahead_kb").write_text("0")
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)

    def close(self) -> None:
        for kind in self._limits:
            self.limit(kind, 0)
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)
        subprocess.run(["losetup", "--detach", self._device], check=True)


def _run(*command: str) -> str:
    """Its output; skips the test where the machine does not permit it."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip(f"{command[0]} is not installed")
    if done.returncode:
        pytest.skip(f"{command[0]} is not permitted here: {done.stderr.strip()}")
    return done.stdout.strip()

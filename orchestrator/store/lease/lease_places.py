"""Where the leases of a run lie: in its directory, and in its bucket if its checkpoints are in one.

Each driver has a file of its own, named by its token. Who creates the file first holds the lease; creating it is atomic
on a shared directory (a hard link, as NFS has it) and in a bucket (a conditional put). Afterwards only the holder
writes it, so a renewal needs no condition. No file is ever removed: a file with a higher number cannot be overlooked.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchestrator.atomic_files import create_file
from orchestrator.checkpoint.storage.storage import Storage, StorageError, StorageFault
from orchestrator.domain.lease import BUCKET_RENEW_S, RENEW_S, Lease
from orchestrator.domain.run_layout import RunLayout
from orchestrator.store.driver_process import DriverProcess

LEASES = "leases"
ENTRY_BYTES = 1024
"""Of every file in a directory, padded with spaces: a renewal overwrites them in place and needs no space on the disk.
A disk that is full must not cost a driver its lease."""
_NAME = re.compile(r"(\d{8})\.json")


@dataclass(frozen=True)
class LeaseEntry:
    """A lease and the process that holds it."""

    lease: Lease
    driver: DriverProcess | None

    def to_bytes(self) -> bytes:
        """The file's content."""
        value: dict[str, object] = {**self.lease.to_json()}
        if self.driver is not None:
            value["driver"] = self.driver.to_json()
        return json.dumps(value).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "LeaseEntry | None":
        """None if it is damaged or not complete yet."""
        try:
            value = json.loads(data)
        except ValueError:
            return None
        lease = Lease.from_json(value) if isinstance(value, Mapping) else None
        return cls(lease, DriverProcess.from_json(value.get("driver"))) if lease is not None else None


class LeasePlace(Protocol):
    """Leases of one run. Methods raise OSError or StorageError if the place does not answer."""

    renew_s: float
    """From one renewal to the next."""

    @property
    def name(self) -> str:
        """For people."""

    def highest(self) -> int:
        """The highest token; 0 if there is none."""

    def read(self, token: int) -> LeaseEntry | None:
        """The entry of a token; None if it cannot be read now, or does not exist."""

    def create(self, entry: LeaseEntry) -> bool:
        """Make the entry of its token; False if there is one."""

    def write(self, entry: LeaseEntry) -> None:
        """Replace the entry that this driver has created."""


class LeaseDirectory:
    """`leases/` of a run's directory, which may be shared by several machines."""

    renew_s = RENEW_S

    def __init__(self, run_directory: Path) -> None:
        self._directory = RunLayout(run_directory).leases

    @property
    def name(self) -> str:
        return str(self._directory)

    def highest(self) -> int:
        # Listed, not looked up by name: clients of a network file system remember for long that a file was not there.
        try:
            return _highest(path.name for path in self._directory.iterdir())
        except FileNotFoundError:
            return 0

    def read(self, token: int) -> LeaseEntry | None:
        try:
            return LeaseEntry.from_bytes(self.path(token).read_bytes())
        except FileNotFoundError:
            return None

    def create(self, entry: LeaseEntry) -> bool:
        self._directory.mkdir(exist_ok=True)
        path = self.path(entry.lease.token)
        data = _padded(entry)
        return create_file(path, data, lambda: _create_without_links(path, data))

    def write(self, entry: LeaseEntry) -> None:
        descriptor = os.open(self.path(entry.lease.token), os.O_WRONLY)
        try:
            os.pwrite(descriptor, _padded(entry), 0)
        finally:
            os.close(descriptor)

    def path(self, token: int) -> Path:
        """The file of a token."""
        return self._directory / _file_name(token)


class LeaseBucket:
    """`leases/` below the prefix of a run's checkpoints in a bucket."""

    renew_s = BUCKET_RENEW_S

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    @property
    def name(self) -> str:
        return self._storage.place(LEASES)

    def highest(self) -> int:
        return _highest(self._storage.sizes(LEASES))

    def read(self, token: int) -> LeaseEntry | None:
        try:
            return LeaseEntry.from_bytes(self._storage.read(LEASES, _file_name(token)))
        except StorageError as error:
            if error.fault is StorageFault.MISSING:
                return None
            raise

    def create(self, entry: LeaseEntry) -> bool:
        return self._storage.put_if(LEASES, _file_name(entry.lease.token), entry.to_bytes(), None)

    def write(self, entry: LeaseEntry) -> None:
        data = entry.to_bytes()
        self._storage.put(LEASES, _file_name(entry.lease.token), [data], len(data))


def _highest(names: Iterable[str]) -> int:
    return max((int(match[1]) for name in names if (match := _NAME.fullmatch(name))), default=0)


def _file_name(token: int) -> str:
    return f"{token:08d}.json"


def _padded(entry: LeaseEntry) -> bytes:
    return entry.to_bytes().ljust(ENTRY_BYTES - 1) + b"\n"


def _create_without_links(path: Path, data: bytes) -> bool:
    """On a file system without hard links. For a moment a reader may find the file empty."""
    try:
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True

"""Storage of checkpoints: a directory or a bucket, with named files under named checkpoints.

A file appears complete or not at all: directories get a temporary name, fsync and rename, buckets show an object only
when its upload is complete. Errors are one type, with a `StorageFault` that callers can react to.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from orchestrator.atomic_files import create_file, locked, sync_path
from orchestrator.checkpoint.storage.flushing import SteadyFlush
from orchestrator.domain.errors import CheckpointError, UsageError
from orchestrator.domain.tick import Tick, no_tick
from orchestrator.spec.resources import BUCKET_SCHEMES

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)")
_SAFE = re.compile(r"\.?[A-Za-z0-9_][A-Za-z0-9._-]*")
_PROBE = "writable"


class StorageFault(StrEnum):
    """Why a storage operation failed."""

    FULL = "full"
    """No space, or over quota."""
    UNREACHABLE = "unreachable"
    """No answer within the time limits, or only server errors."""
    DENIED = "denied"
    """Credentials are wrong, or do not allow it."""
    MISSING = "missing"
    """No such file, directory, or bucket."""
    OTHER = "other"

    @property
    def hint(self) -> str | None:
        """What a person can do."""
        return _HINTS.get(self)


_HINTS = {
    StorageFault.FULL: "free some space, or lower checkpoint.keep_last",
    StorageFault.UNREACHABLE: "check the network and the endpoint (AWS_ENDPOINT_URL for S3)",
    StorageFault.DENIED: "check the credentials in the environment and their permissions",
    StorageFault.MISSING: "create the bucket or container first; everything below it is created as needed",
}


class StorageError(CheckpointError):
    """Storage failed; the checkpoint itself may be valid."""

    def __init__(self, message: str, fault: StorageFault, hint: str | None = None) -> None:
        super().__init__(message, hint or fault.hint)
        self.fault = fault


class Storage(Protocol):
    """Checkpoints under one directory or prefix. Every method raises StorageError and nothing else.

    `name` is a checkpoint, `file` a file of it; neither has a slash. Safe to use from several threads.
    """

    def place(self, name: str = "") -> str:
        """The directory or URL of the storage, or of a named checkpoint: for messages and for `open_storage`."""

    def names(self) -> list[str]:
        """The names of everything here, checkpoints or not; empty if the place does not exist yet."""

    def sizes(self, name: str) -> dict[str, int]:
        """The finished files of a checkpoint and their bytes; empty if there is none."""

    def read(self, name: str, file: str) -> bytes:
        """The content of a small file."""

    def read_into(self, name: str, file: str, offset: int, out: memoryview) -> None:
        """Fill `out` (bytes) from byte `offset` on."""

    def put(self, name: str, file: str, parts: Iterable[bytes | memoryview], size_bytes: int) -> None:
        """Write a file of `size_bytes`, the parts one after the other: complete and durable on return, absent if it
        raises. Exceptions of iterating `parts` are passed on. Replaces a file of that name."""

    def read_version(self, name: str, file: str) -> tuple[bytes, str]:
        """The content of a small file, and a version that identifies this content, for `put_if`."""

    def put_if(self, name: str, file: str, data: bytes, version: str | None) -> bool:
        """Write a small file if there is none of that name (`version` None), or if its content still is that of
        `version`; whether it was written. Of several processes that try the same at once, one succeeds."""

    def remove_file(self, name: str, file: str) -> None:
        """Remove a file if it exists."""

    def remove(self, name: str, first: str, tick: Tick = no_tick) -> None:
        """Remove a checkpoint, the file `first` before all others: cut short, what is left is no checkpoint. `tick`:
        called after each file."""


class LocalStorage:
    """A directory, of this machine or mounted by all. How long its operations take is the kernel's to bound."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def place(self, name: str = "") -> str:
        return str(self.root / name)

    def names(self) -> list[str]:
        with translated(self.place(), "listed"):
            return sorted(path.name for path in self.root.iterdir()) if self.root.is_dir() else []

    def sizes(self, name: str) -> dict[str, int]:
        directory = self.root / checked(name)
        with translated(directory, "listed"):
            if not directory.is_dir():
                return {}
            return {path.name: path.stat().st_size for path in directory.iterdir() if path.is_file()}

    def read(self, name: str, file: str) -> bytes:
        path = self.root / checked(name) / checked(file)
        with translated(path, "read"):
            return path.read_bytes()

    def read_into(self, name: str, file: str, offset: int, out: memoryview) -> None:
        path = self.root / checked(name) / checked(file)
        with translated(path, "read"), path.open("rb", buffering=0) as source:
            source.seek(offset)
            done = 0
            while done < len(out):
                read = source.readinto(out[done : done + (1 << 30)])
                if not read:
                    raise StorageError(f"{path} ends at byte {offset + done}", StorageFault.OTHER)
                done += read

    def put(self, name: str, file: str, parts: Iterable[bytes | memoryview], size_bytes: int) -> None:
        path = self.root / checked(name) / checked(file)
        temporary = path.with_name(f".{file}.tmp")
        with translated(path, "written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("wb", buffering=0) as target:
                    flush = SteadyFlush(target)
                    for part in counted(parts, size_bytes, str(path)):
                        _write_all(target.fileno(), memoryview(part))
                        flush.wrote(len(part))
                    os.fsync(target.fileno())
                temporary.replace(path)
            except BaseException:
                with contextlib.suppress(OSError):  # the error that brought us here is on its way up
                    temporary.unlink(missing_ok=True)
                raise
            sync_path(path.parent)
            sync_path(self.root)

    def read_version(self, name: str, file: str) -> tuple[bytes, str]:
        data = self.read(name, file)
        return data, _version(data)

    def put_if(self, name: str, file: str, data: bytes, version: str | None) -> bool:
        path = self.root / checked(name) / checked(file)
        with translated(path, "written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(path.parent):
                if version is None:
                    made = create_file(path, data, lambda: self._put_new(name, file, data))
                    if made:
                        sync_path(path.parent)
                        sync_path(self.root)
                    return made
                if not path.is_file() or _version(path.read_bytes()) != version:
                    return False
                self.put(name, file, [data], len(data))
                return True

    def _put_new(self, name: str, file: str, data: bytes) -> bool:
        """Without hard links: the lock orders the processes."""
        if (self.root / name / file).exists():
            return False
        self.put(name, file, [data], len(data))
        return True

    def remove_file(self, name: str, file: str) -> None:
        path = self.root / checked(name) / checked(file)
        with translated(path, "removed"):
            path.unlink(missing_ok=True)

    def remove(self, name: str, first: str, tick: Tick = no_tick) -> None:
        directory = self.root / checked(name)
        with translated(directory, "removed"):
            (directory / first).unlink(missing_ok=True)
            remove_tree(directory, tick)


@dataclass(frozen=True)
class StorageLimits:
    """How long a bucket gets. An operation ends within about `retry_s` + `request_s` a request; a shard is many."""

    connect_s: float = 5.0
    request_s: float = 30.0
    """One request, its body included: at 8 MiB a part, less than 0.3 MB/s counts as unreachable."""
    retries: int = 5
    """Further attempts after an error that may pass."""
    retry_s: float = 45.0
    """No further attempt after this long."""


def is_url(place: str) -> bool:
    """Whether it names a bucket rather than a path."""
    return _URL.fullmatch(place) is not None


def open_storage(place: str | Path, limits: StorageLimits | None = None) -> Storage:
    """The storage at a directory or an s3://, gs:// or az:// URL. Makes no connection.

    Credentials come only from the environment. Raises UsageError for any other scheme, a URL without a bucket or with
    credentials or options in it, and if credentials are missing.
    """
    match = _URL.fullmatch(str(place))
    if match is None:
        return LocalStorage(Path(place))
    scheme, rest = match[1], match[2]
    if scheme not in BUCKET_SCHEMES:
        known = ", ".join(f"{name}://bucket/path" for name in BUCKET_SCHEMES)
        raise UsageError(f"checkpoints cannot be kept at {scheme}://", hint=f"use a directory, or one of {known}")
    bucket, _, prefix = rest.partition("/")
    if not bucket or re.search(r"[?#@\s]", rest):
        raise UsageError(
            f"a {scheme}:// URL of checkpoints needs a bucket and a path, and nothing else",
            hint=f"for example {scheme}://bucket/path; credentials belong in the environment",
        )
    from orchestrator.checkpoint.storage.bucket import BucketStorage  # keeps the library off everybody else's path

    return BucketStorage(scheme, bucket, prefix.strip("/"), limits or StorageLimits())


def locate(place: str | Path) -> tuple[Storage, str]:
    """The storage and the name of the checkpoint at a directory or URL. Raises UsageError as `open_storage` does."""
    if isinstance(place, Path) or not is_url(place):
        path = Path(place).absolute()
        return LocalStorage(path.parent), path.name
    parent, _, name = place.rstrip("/").rpartition("/")
    return open_storage(parent), name


def require_writable(storage: Storage) -> None:
    """Write a small file and remove it, so that a run does not fail only at its first checkpoint. Raises
    StorageError."""
    storage.put(_PROBE, _PROBE, [b"ok"], 2)
    storage.remove(_PROBE, _PROBE)


def checked(name: str) -> str:
    """`name` if it is a plain file name: a forged manifest must not name files outside of its directory."""
    if not _SAFE.fullmatch(name):
        raise StorageError(f"{name!r} is not a valid file name in a checkpoint", StorageFault.OTHER)
    return name


def counted(parts: Iterable[bytes | memoryview], size_bytes: int, what: str) -> Iterator[bytes | memoryview]:
    """The parts as they are; raises ValueError if they are not `size_bytes` in all."""
    done = 0
    for part in parts:
        done += len(part)
        yield part
    if done != size_bytes:
        raise ValueError(f"{what}: {done} bytes were given, {size_bytes} announced")


@contextlib.contextmanager
def translated(path: str | Path, what: str) -> Iterator[None]:
    """Context that raises OSErrors as StorageErrors with the file and the operation ("read", "written")."""
    try:
        yield
    except OSError as error:
        message = f"{error.filename or path} cannot be {what}: {error.strerror or error}"
        raise StorageError(message, fault_of(error)) from error


def fault_of(error: OSError) -> StorageFault:
    """What an error of the operating system means for storage."""
    return _ERRNOS.get(error.errno or 0, StorageFault.OTHER)


_ERRNOS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), StorageFault.FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), StorageFault.DENIED),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), StorageFault.MISSING),
    **dict.fromkeys(
        (errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.ENODEV, errno.ENXIO),
        StorageFault.UNREACHABLE,
    ),
}


def remove_tree(directory: Path, tick: Tick) -> None:
    """Remove a directory and all that is in it, if it is there. Deleting a large file takes seconds on some disks, so
    `tick` is called after each. Raises OSError."""
    if not directory.is_dir():
        return
    for path in list(directory.iterdir()):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        tick()
    directory.rmdir()


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write_all(descriptor: int, data: memoryview) -> None:
    while len(data):
        data = data[os.write(descriptor, data[: 1 << 30]) :]

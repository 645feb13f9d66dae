"""Files that clients have uploaded, by their SHA-256: `$CONVOY_HOME/server/files/ab/abcdef...`.

A file that no submission has used for a while is removed; runs have their own copies (hard links, if the file system
has them), so that removing one here takes nothing from a run.
"""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from orchestrator.domain.errors import NotFoundError, UnavailableError, UsageError
from orchestrator.wire.api_version import MAX_FILES, MAX_UPLOAD_BYTES, MAX_UPLOADED_BYTES

SHA256 = re.compile(r"[0-9a-f]{64}")
KEPT_S = 7 * 86400.0
"""How long a file stays after its last use."""
MOST_STORED_BYTES = 8 << 30
"""All files together. Above this the ones that were used longest ago go first, but none of the last hour."""
YOUNG_S = 3600.0
"""A file that was uploaded or used within this time is not removed: its submission may be on its way."""
LONGEST_NAME = 1024
"""Characters of a path relative to a job."""


@dataclass(frozen=True)
class StoredFile:
    """One file of the store."""

    sha256: str
    size_bytes: int
    used_s: float
    """Unix seconds."""


class FileStore:
    """The store. Several threads may use it at once."""

    def __init__(self, directory: Path, max_file_bytes: int = MAX_UPLOADED_BYTES) -> None:
        self._directory, self._max_bytes = directory, max_file_bytes

    def missing(self, digests: list[str]) -> list[str]:
        """Those that are not here. The others count as used now."""
        return [digest for digest in digests if not self._use(digest)]

    def begin(self, sha256: str) -> "Upload":
        """Receive a file. Raises UsageError if `sha256` is none, UnavailableError."""
        if SHA256.fullmatch(sha256) is None:
            raise UsageError(f"{sha256[:80]!r} is no SHA-256", "64 hexadecimal digits in lower case")
        target = self._place(sha256)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            return Upload(sha256, target, self._max_bytes)
        except OSError as error:
            raise UnavailableError(f"the file cannot be stored: {error.strerror}") from error

    def size_bytes(self, sha256: str) -> int | None:
        """Of a stored file; None if it is not here."""
        try:
            return self._place(sha256).stat().st_size
        except (OSError, ValueError):
            return None

    def place(self, files: Mapping[str, str], directory: Path) -> None:
        """Put files beside a job. `files`: SHA-256 by path relative to `directory`. Raises UsageError if a path leads
        out of the directory or the files are too many, NotFoundError if one was not uploaded, UnavailableError."""
        check_names(files)
        total_bytes = 0
        for name, sha256 in files.items():
            size_bytes = self.size_bytes(sha256) if SHA256.fullmatch(sha256) else None
            if size_bytes is None or not self._use(sha256):
                raise NotFoundError(
                    f"the file {name} was not uploaded (no file {sha256[:12]}... on this server)",
                    "submit again: the client uploads what is missing",
                )
            total_bytes += size_bytes
        if total_bytes > MAX_UPLOAD_BYTES:
            raise UsageError(
                f"the files of the job have {total_bytes >> 20} MiB together, at most {MAX_UPLOAD_BYTES >> 20} MiB "
                "may be uploaded",
                "put them on storage that the cluster reads",
            )
        try:
            for name, sha256 in files.items():
                _link(self._place(sha256), directory / PurePosixPath(name))
        except OSError as error:
            raise UnavailableError(f"the files of the job cannot be written: {error.strerror}") from error

    def stored(self) -> Iterator[StoredFile]:
        """Every file."""
        for path in self._directory.glob("??/*"):
            if SHA256.fullmatch(path.name):
                with contextlib.suppress(OSError):
                    status = path.stat()
                    yield StoredFile(path.name, status.st_size, status.st_mtime)

    def clean(self, now_s: float) -> list[str]:
        """Remove what has not been used for long, and partial uploads that were given up; which."""
        for stray in self._directory.glob("??/.*.part"):
            with contextlib.suppress(OSError):
                if now_s - stray.stat().st_mtime > YOUNG_S:
                    stray.unlink()
        removed = []
        for each in to_remove(list(self.stored()), now_s):
            with contextlib.suppress(OSError):
                self._place(each).unlink()
                removed.append(each)
        return removed

    def _use(self, sha256: str) -> bool:
        try:
            os.utime(self._place(sha256))
        except (OSError, ValueError):
            return False
        return True

    def _place(self, sha256: str) -> Path:
        return self._directory / sha256[:2] / sha256


class Upload:
    """A file that is being received: `write` its bytes, then `finish`, or `abandon` it."""

    def __init__(self, sha256: str, target: Path, max_bytes: int) -> None:
        self._sha256, self._target, self._max_bytes = sha256, target, max_bytes
        self._hash, self._size_bytes = hashlib.sha256(), 0
        self._part = target.with_name(f".{target.name[:16]}.{secrets.token_hex(4)}.part")
        self._file = self._part.open("xb")

    def write(self, data: bytes) -> bool:
        """Add bytes; False if the file is too large. Raises UnavailableError."""
        self._size_bytes += len(data)
        if self._size_bytes > self._max_bytes:
            return False
        self._hash.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            raise UnavailableError(f"the file cannot be stored: {error.strerror}") from error
        return True

    def finish(self) -> StoredFile:
        """Keep the file. Raises UsageError if its content is not what its name says, UnavailableError."""
        found = self._hash.hexdigest()
        if found != self._sha256:
            raise UsageError(
                f"the content has the SHA-256 {found}, expected {self._sha256}", "the file changed, or was cut off"
            )
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._part.chmod(0o444)
            self._part.replace(self._target)
        except OSError as error:
            raise UnavailableError(f"the file cannot be stored: {error.strerror}") from error
        return StoredFile(found, self._size_bytes, time.time())

    def abandon(self) -> None:
        """Remove what was received; harmless after `finish`."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._part.unlink(missing_ok=True)


def check_names(files: Mapping[str, str]) -> None:
    """Raises UsageError if there are too many files, or if a path is absolute or leads out of the job's directory."""
    if len(files) > MAX_FILES:
        raise UsageError(f"the job names {len(files)} files, at most {MAX_FILES} can be uploaded")
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or not path.parts or ".." in path.parts or "\0" in name or len(name) > LONGEST_NAME:
            raise UsageError(
                f"{name[:80]!r} cannot be the path of an uploaded file",
                "files are uploaded with paths below the directory of the job file",
            )


def to_remove(stored: list[StoredFile], now_s: float) -> list[str]:
    """Which files go: those not used for `KEPT_S`, and the oldest while all together exceed `MOST_STORED_BYTES`."""
    total_bytes = sum(each.size_bytes for each in stored)
    gone = []
    for each in sorted(stored, key=lambda each: each.used_s):
        unused_s = now_s - each.used_s
        if unused_s > KEPT_S or (total_bytes > MOST_STORED_BYTES and unused_s > YOUNG_S):
            gone.append(each.sha256)
            total_bytes -= each.size_bytes
    return gone


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)

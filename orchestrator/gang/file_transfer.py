"""Copies files between the driver's host and workers' hosts that do not share a file system.

Whether they do is not guessed from addresses: the driver writes a file with a random word into the run directory,
and a worker that reads the same word there uses paths directly. Otherwise files travel in chunks through a server
on the driver's host, which opens nothing outside the run's directory and the data directory.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchestrator.atomic_files import replace_directory, sync_path
from orchestrator.checkpoint.storage.flushing import SteadyFlush
from orchestrator.clusters.ray.processes import die_with_parent
from orchestrator.domain.tick import Tick, no_tick

CHUNK_BYTES = 4 * 1024 * 1024
CHECKED_BYTES = 16 * CHUNK_BYTES
"""Most bytes that one call reads for a checksum: a call reports no progress, so it must be short."""
FLUSHED_BYTES = 4 * CHUNK_BYTES
"""Most unwritten bytes in the server's page cache, so that no write and no commit waits for more."""
TRANSPORT_VARIABLE = "CONVOY_FILE_TRANSPORT"
"""`remote` in a worker's environment: never use the driver's paths, even where they are visible."""
ATTEMPTS = 3


@dataclass(frozen=True)
class FileEntry:
    """One file under a fetched path. `relative` is empty if the path itself is the file."""

    relative: str
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Chunk:
    """A piece of a file and the CRC-32 of the file up to its end."""

    data: bytes
    crc: int


class FileService(Protocol):
    """The driver's side as a worker calls it. Every call moves or reads a bounded number of bytes."""

    def listing(self, path: str) -> list[FileEntry]: ...
    def read(self, path: str, offset: int, crc: int) -> Chunk: ...
    def checksum(self, path: str, offset: int, end: int, crc: int) -> tuple[int, int]: ...
    def write(self, path: str, token: str, offset: int, data: bytes) -> int: ...
    def commit(self, path: str, token: str, size_bytes: int) -> None: ...
    def move_into_place(self, path: str, final: str) -> None: ...


class FileServer:
    """Reads and writes under `roots`, and nowhere else. Runs on the driver's host."""

    def __init__(self, roots: tuple[str, ...], writable: str) -> None:
        """`writable`: the one root that workers may write under."""
        self._roots = tuple(Path(root).resolve() for root in roots)
        self._writable = Path(writable).resolve()

    def listing(self, path: str) -> list[FileEntry]:
        """Every file under `path`, sorted. Raises FileNotFoundError, PermissionError."""
        root = self._readable(Path(path))
        if root.is_file():
            return [_entry(root, "")]
        if not root.is_dir():
            raise FileNotFoundError(path)
        found = (Path(directory) / name for directory, _, names in os.walk(root, followlinks=True) for name in names)
        return sorted((_entry(file, str(file.relative_to(root))) for file in found), key=lambda entry: entry.relative)

    def read(self, path: str, offset: int, crc: int) -> Chunk:
        """The next chunk from `offset`; `crc` is that of the bytes before it."""
        with self._readable(Path(path)).open("rb") as file:
            file.seek(offset)
            data = file.read(CHUNK_BYTES)
        return Chunk(data, zlib.crc32(data, crc))

    def checksum(self, path: str, offset: int, end: int, crc: int) -> tuple[int, int]:
        """The checksum of this side's own bytes up to `end`, which do not travel: how far this call got, and the CRC-32
        up to there. `crc` is that of the bytes before `offset`."""
        with self._readable(Path(path)).open("rb") as file:
            file.seek(offset)
            last = min(end, offset + CHECKED_BYTES)
            while offset < last and (data := file.read(min(CHUNK_BYTES, last - offset))):
                offset, crc = offset + len(data), zlib.crc32(data, crc)
        return offset, crc

    def write(self, path: str, token: str, offset: int, data: bytes) -> int:
        """Write a chunk of a file that is being stored; return the CRC-32 of what arrived."""
        partial = self._partial(path, token)
        partial.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("r+b" if partial.exists() else "wb") as file:
            file.seek(offset)
            file.write(data)
            file.truncate()
            file.flush()
            if offset // FLUSHED_BYTES != (offset + len(data)) // FLUSHED_BYTES:
                os.fdatasync(file.fileno())
        return zlib.crc32(data)

    def commit(self, path: str, token: str, size_bytes: int) -> None:
        """Make the file durable and give it its name. Raises OSError if it is incomplete."""
        partial = self._partial(path, token)
        with partial.open("rb") as file:
            found_bytes = os.fstat(file.fileno()).st_size
            if found_bytes != size_bytes:
                raise OSError(f"{path}: {found_bytes} bytes arrived, {size_bytes} were sent")
            os.fsync(file.fileno())
        partial.replace(self._inside(Path(path), (self._writable,)))
        sync_path(partial.parent)

    def move_into_place(self, path: str, final: str) -> None:
        """See `Session.move_into_place`."""
        replace_directory(self._inside(Path(path), (self._writable,)), self._inside(Path(final), (self._writable,)))

    def _readable(self, path: Path) -> Path:
        # Data directories are links into the token cache: those targets are named by our own manifest.
        return self._inside(path, self._roots)

    def _partial(self, path: str, token: str) -> Path:
        if not token.isalnum():
            raise PermissionError("bad token")
        target = self._inside(Path(path), (self._writable,))
        return target.with_name(f".{target.name}.{token}.partial")

    @staticmethod
    def _inside(path: Path, roots: tuple[Path, ...]) -> Path:
        resolved = path.resolve()
        if ".." in path.parts or not any(resolved == root or root in resolved.parents for root in roots):
            raise PermissionError(f"{path} is outside the run's and the data's directories")
        return resolved


class BoundFileServer(FileServer):
    """The file server of a local cluster: its process dies with its raylet."""

    def __init__(self, roots: tuple[str, ...], writable: str) -> None:
        die_with_parent()
        super().__init__(roots, writable)


class Files:
    """A worker's view: `fetch` and `store` of `Session`."""

    def __init__(self, service: FileService, marker: str, word: str, cache: Path, env: Mapping[str, str]) -> None:
        """`marker`: the file that contains `word` if the driver's file system is shared."""
        self._service = service
        self._cache = cache
        self.shared = env.get(TRANSPORT_VARIABLE) != "remote" and _reads(Path(marker), word)

    def fetch(self, path: str, tick: Tick = no_tick) -> Path:
        """See `Session.fetch`. A remote copy is made once per host and checked by size and checksum. `tick`: called
        after each chunk."""
        if self.shared:
            local = Path(path)
            if not local.exists():
                raise FileNotFoundError(path)
            return local
        entries = self._service.listing(path)
        local = self._cache / path.lstrip("/")
        local.parent.mkdir(parents=True, exist_ok=True)
        with _lock(local.with_name(f".{local.name}.lock")):
            for entry in entries:
                self._download(path, entry, local / entry.relative if entry.relative else local, tick)
        if not entries:
            local.mkdir(parents=True, exist_ok=True)
        return local

    def store(self, local: Path, path: str, tick: Tick = no_tick) -> None:
        """See `Session.store`. `tick`: called after each chunk."""
        if not self.shared:
            self._upload(local, path, tick)
            return
        target = Path(path)
        if target.exists() and local.samefile(target):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial")
        with local.open("rb") as source, partial.open("wb") as file:
            flush = SteadyFlush(file)
            while data := source.read(CHUNK_BYTES):
                file.write(data)
                flush.wrote(len(data))
                tick()
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
        sync_path(target.parent)

    def move_into_place(self, path: str, final: str) -> None:
        """See `Session.move_into_place`."""
        if self.shared:
            replace_directory(Path(path), Path(final))
        else:
            self._service.move_into_place(path, final)

    def _download(self, path: str, entry: FileEntry, target: Path, tick: Tick) -> None:
        """Fetch one file, continuing after the last complete chunk of an interrupted attempt."""
        source = str(Path(path) / entry.relative) if entry.relative else path
        for _ in range(ATTEMPTS):
            if target.is_file() and _same(target, entry):
                return
            partial = target.with_name(f".{target.name}.{entry.size_bytes}-{entry.mtime_ns}.partial")
            target.parent.mkdir(parents=True, exist_ok=True)
            copied = self._copy(source, partial, tick)
            (now,) = self._service.listing(source)
            if copied and _alike(now, entry) and partial.stat().st_size == entry.size_bytes:
                os.utime(partial, ns=(entry.mtime_ns, entry.mtime_ns))
                partial.replace(target)
                return
            partial.unlink(missing_ok=True)
            entry = now
        raise OSError(f"{source} could not be copied: it changed meanwhile, or arrived damaged")

    def _copy(self, source: str, partial: Path, tick: Tick) -> bool:
        """Append what `partial` lacks; False if a part of it is damaged. Each chunk comes with the driver's checksum
        of all up to its end, so only what an earlier attempt left must be compared with the driver's bytes."""
        with partial.open("a+b") as file:
            file.seek(0)
            offset, crc = _checksum(file.read, tick)
            if self._service_crc(source, offset, tick) != crc:
                return False
            flush = SteadyFlush(file)
            while True:
                chunk = self._service.read(source, offset, crc)
                if zlib.crc32(chunk.data, crc) != chunk.crc:
                    return False
                if not chunk.data:
                    file.flush()
                    os.fsync(file.fileno())
                    return True
                file.write(chunk.data)
                offset, crc = offset + len(chunk.data), chunk.crc
                flush.wrote(len(chunk.data))
                tick()

    def _service_crc(self, source: str, end: int, tick: Tick) -> int:
        """The checksum of a file up to `end` as the driver computes it from its own bytes."""
        offset, crc = 0, 0
        while offset < end:
            before = offset
            offset, crc = self._service.checksum(source, offset, end, crc)
            if offset == before:  # the file has become shorter
                break
            tick()
        return crc

    def _upload(self, local: Path, path: str, tick: Tick) -> None:
        token = secrets.token_hex(8)
        offset = 0
        with local.open("rb") as file:
            while True:
                data = file.read(CHUNK_BYTES)
                if not data and offset:
                    break
                if not any(self._service.write(path, token, offset, data) == zlib.crc32(data) for _ in range(ATTEMPTS)):
                    raise OSError(f"{path} could not be stored: it arrived damaged")
                offset += len(data)
                tick()
                if not data:
                    break
        self._service.commit(path, token, offset)


def write_marker(run_dir: Path) -> tuple[Path, str]:
    """The file that tells workers whether they see the run's directory, and its word."""
    word = secrets.token_hex(16)
    marker = run_dir / ".visible"
    marker.write_text(word)
    return marker, word


def host_cache(run_id: str) -> Path:
    """Directory for copies of a run on a host without the driver's file system."""
    return Path(tempfile.gettempdir()) / f"convoy-files-{os.getuid()}" / run_id


def remove_host_cache(run_id: str) -> None:
    """Delete this host's copies for a run."""
    cache = host_cache(run_id)
    shutil.rmtree(cache, ignore_errors=True)
    with contextlib.suppress(OSError):  # other runs' copies are there, or none ever were
        cache.parent.rmdir()


def _reads(path: Path, word: str) -> bool:
    try:
        return path.read_text() == word
    except OSError:
        return False


def _entry(path: Path, relative: str) -> FileEntry:
    stat = path.stat()
    return FileEntry(relative, stat.st_size, stat.st_mtime_ns)


def _same(path: Path, entry: FileEntry) -> bool:
    return _alike(_entry(path, ""), entry)


def _alike(one: FileEntry, other: FileEntry) -> bool:
    return (one.size_bytes, one.mtime_ns) == (other.size_bytes, other.mtime_ns)


def _checksum(read: Callable[[int], bytes], tick: Tick) -> tuple[int, int]:
    """Length and CRC-32 of what `read` gives."""
    size, crc = 0, 0
    while data := read(CHUNK_BYTES):
        size, crc = size + len(data), zlib.crc32(data, crc)
        tick()
    return size, crc


class _lock:  # noqa: N801  # used like a function
    """Hold an advisory lock on a file: one worker of a host copies, the others find the copy."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

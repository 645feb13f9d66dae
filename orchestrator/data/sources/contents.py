"""The content of source files: digests, and the list of them that a run keeps.

A file is read once, right after it was tokenised. Later it is read again only if its size or its stamp differs. Some
file systems assign new inodes and change times at each mount: if more than `READ_MAX_BYTES` would have to be read of
files whose size and modification time are unchanged, samples of these are compared.
"""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from orchestrator.data.sources.source_scan import PresentFile, PresentSource
from orchestrator.domain.errors import DataError
from orchestrator.domain.fingerprints import DIGEST_HEX, FileContent, SourceContents, Stamp

CONTENTS_FILE = "contents.jsonl"
CHUNK_BYTES = 1 << 20
THREADS = 8
"""Files that are read at once."""
TICK_S = 0.2
APPENDED_MAX_BYTES = 256 << 20
"""A longer file is not read a second time to distinguish text added at its end from an edit."""
GROWN_MAX = 20
"""Files of a source that are looked at for text added at their end."""
WHOLE_MAX_BYTES = 256 << 20
"""Of a longer file of weights, `SAMPLES` chunks are read, spread evenly from its first to its last."""
SAMPLES = 64
READ_MAX_BYTES = 16 << 30
PIECES, PIECE_BYTES = 16, 4096
"""The sample of a file: so many pieces of it, spread evenly."""

Watch = Callable[[int], None]
"""Called every `TICK_S` by the reading thread with the number of bytes read. An exception of it ends the reading."""


def stamp_of(status: os.stat_result) -> Stamp:
    """See `FileContent`."""
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def read_content(path: Path, name: str, kind: str = "", count: Callable[[int], None] | None = None) -> FileContent:
    """Read a whole file; `count` is called with each chunk. Raises DataError if it cannot be read, or changes
    meanwhile."""
    return _digested(path, name, kind, count, sampled=False)


def read_weights(path: Path, name: str) -> FileContent:
    """As `read_content`, of a file of any size in a bounded time: see `WHOLE_MAX_BYTES`."""
    return _digested(path, name, "", None, sampled=True)


def _digested(path: Path, name: str, kind: str, count: Callable[[int], None] | None, sampled: bool) -> FileContent:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            before = os.fstat(stream.fileno())
            for offset in _offsets(before.st_size) if sampled else (0,):
                stream.seek(offset)
                while chunk := stream.read(CHUNK_BYTES):
                    digest.update(chunk)
                    if count is not None:
                        count(len(chunk))
                    if sampled and before.st_size > WHOLE_MAX_BYTES:
                        break
            sample = "" if sampled else _sample(stream, before.st_size)
            after = os.fstat(stream.fileno())
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error} ({path})") from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise DataError(
            f"{name} changed while it was being read ({path})", hint="wait for the program that writes it to finish"
        )
    return FileContent(name, after.st_size, digest.hexdigest()[:DIGEST_HEX], kind, stamp_of(after), sample)


def _offsets(size_bytes: int) -> Iterable[int]:
    return (0,) if size_bytes <= WHOLE_MAX_BYTES else _spread(size_bytes, SAMPLES, CHUNK_BYTES)


def _spread(size_bytes: int, count: int, piece_bytes: int) -> Iterable[int]:
    """Offsets of `count` pieces that are spread evenly from the first byte to the last."""
    return sorted({max(0, i * (size_bytes - piece_bytes) // (count - 1)) for i in range(count)})


def _sample(stream: BinaryIO, size_bytes: int) -> str:
    digest = hashlib.sha256()
    for offset in _spread(size_bytes, PIECES, PIECE_BYTES):
        stream.seek(offset)
        digest.update(stream.read(PIECE_BYTES))
    return digest.hexdigest()[:DIGEST_HEX]


def begins_with(path: Path, before: FileContent) -> bool:
    """Whether a file, longer than it was, begins with all that it had. False if it is too long to read for that."""
    if before.size_bytes > APPENDED_MAX_BYTES:
        return False
    digest, left = hashlib.sha256(), before.size_bytes
    try:
        with path.open("rb") as stream:
            while left and (chunk := stream.read(min(left, CHUNK_BYTES))):
                digest.update(chunk)
                left -= len(chunk)
    except OSError:
        return False
    return left == 0 and digest.hexdigest()[:DIGEST_HEX] == before.digest


def look(sources: Sequence[PresentSource], known: Sequence[SourceContents], watch: Watch) -> tuple[SourceContents, ...]:
    """The contents of what is there now. `known`: what was there before, source by source; a file of the same size
    and stamp is not read, the others are, several at once. Raises DataError, and what `watch` raises."""
    files = [(index, file) for index, source in enumerate(sources) for file in source.files]
    names = [{file.name: file for file in source.files} for source in known] + [{}] * len(sources)
    before = [names[index].get(file.name) for index, file in files]
    found = [_unchanged(file, old, by_sample=False) for (_, file), old in zip(files, before, strict=True)]
    same_time = {
        at: old
        for at, old in enumerate(before)
        if found[at] is None and old is not None and _same_time(files[at][1], old)
    }
    if sum(old.size_bytes for old in same_time.values()) > READ_MAX_BYTES:
        for at, old in same_time.items():
            found[at] = _unchanged(files[at][1], old, by_sample=True)
    to_read = [at for at, content in enumerate(found) if content is None]
    for at, content in zip(to_read, _read_all([files[at][1] for at in to_read], watch), strict=True):
        found[at] = content
    rest = iter(found)
    return tuple(
        SourceContents(
            source.name,
            tuple(content for content in islice(rest, len(source.files)) if content is not None),
            known[index].revision if index < len(known) else None,
        )
        for index, source in enumerate(sources)
    )


def _same_time(file: PresentFile, before: FileContent) -> bool:
    """Size and modification time are as they were, whatever the rest of the stamp says."""
    try:
        status = file.path.stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (before.size_bytes, before.stamp[0])


def _unchanged(file: PresentFile, before: FileContent | None, by_sample: bool) -> FileContent | None:
    """What is known of a file, if its stamp, or a sample of its content, says that this still holds."""
    same = unread(file.path, before)
    if same is None and by_sample and before is not None:
        with suppress(OSError), file.path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if _sample(stream, status.st_size) == before.sample:
                same = replace(before, stamp=stamp_of(status))
    return None if same is None else replace(same, name=file.name, kind=file.kind)


def unread(path: Path, before: FileContent | None) -> FileContent | None:
    """What is known of a file, if its size and stamp say that this still holds."""
    if before is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return None  # reading it says what is wrong
    return before if (before.size_bytes, before.stamp) == (status.st_size, stamp_of(status)) else None


def _read_all(files: Sequence[PresentFile], watch: Watch) -> list[FileContent]:
    ended, done_bytes = threading.Event(), 0

    def count(size: int) -> None:
        nonlocal done_bytes
        done_bytes += size  # for show: a count that is lost between threads does no harm
        if ended.is_set():
            raise DataError("not read: another file could not be read")

    with ThreadPoolExecutor(THREADS, thread_name_prefix="contents") as pool:
        reading = [pool.submit(read_content, file.path, file.name, file.kind, count) for file in files]
        try:
            for future in reading:
                while not wait([future], timeout=TICK_S).done:
                    watch(done_bytes)
            return [future.result() for future in reading]
        finally:
            ended.set()
            pool.shutdown(wait=False, cancel_futures=True)


def grown(
    sources: Sequence[PresentSource], before: Sequence[SourceContents], now: Sequence[SourceContents]
) -> set[str]:
    """Names of files that have more at their end and are otherwise as they were. Looks at as many as are shown."""
    found: set[str] = set()
    for source, old, new in zip(sources, before, now, strict=False):
        paths = {file.name: file.path for file in source.files}
        known = {file.name: file for file in old.files}
        longer = [f for f in new.files if f.name in known and f.size_bytes > known[f.name].size_bytes]
        found |= {file.name for file in longer[:GROWN_MAX] if begins_with(paths[file.name], known[file.name])}
    return found


def write_contents(path: Path, sources: Iterable[SourceContents]) -> None:
    """Replace the list: a line for each source, then a line for each of its files. Raises OSError."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as out:
        for source in sources:
            out.write(json.dumps({"source": source.name, "revision": source.revision}) + "\n")
            out.writelines(json.dumps(asdict(file)) + "\n" for file in source.files)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)


def read_contents(path: Path) -> tuple[SourceContents, ...] | None:
    """The list; None if there is none, or it is damaged."""
    try:
        with path.open(encoding="utf-8") as lines:
            return tuple(_sources(map(json.loads, lines)))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _sources(lines: Iterator[Mapping[str, object]]) -> Iterator[SourceContents]:
    head: Mapping[str, object] | None = None
    files: list[FileContent] = []
    for line in lines:
        if "source" in line:
            if head is not None:
                yield _source(head, files)
            head, files = line, []
        elif head is None:
            raise ValueError("a file without a source")
        else:
            files.append(_file(line))
    if head is not None:
        yield _source(head, files)


def _source(head: Mapping[str, object], files: Sequence[FileContent]) -> SourceContents:
    revision = head["revision"]
    return SourceContents(str(head["source"]), tuple(files), None if revision is None else str(revision))


def _file(line: Mapping[str, object]) -> FileContent:
    stamp, size = line["stamp"], line["size_bytes"]
    if not isinstance(stamp, list) or not isinstance(size, int):
        raise TypeError("not a file's line")
    mtime_ns, ctime_ns, inode = (int(part) for part in stamp)
    stamp_now = (mtime_ns, ctime_ns, inode)
    return FileContent(str(line["name"]), size, str(line["digest"]), str(line["kind"]), stamp_now, str(line["sample"]))

"""Whether prepared data is still what was prepared: nothing missing, nothing cut off, nothing overwritten.

Sizes are always compared. Content is read only in files whose modification time differs from the one recorded: tokens
are compared with the checksums of the journal, the rest is computed again.
"""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.data_manifest import MANIFEST_FILE, TOKENIZER_DIRECTORY, DataManifest, SourceCounts, StreamCounts
from orchestrator.data.samples.prepared_view import sample_starts
from orchestrator.data.tokens.token_store import JOURNAL_FILE, read_journal
from orchestrator.data.tokens.tokenise import read_counts
from orchestrator.data.tokens.tokenizer import TOKENIZER_FILE
from orchestrator.domain.errors import DataError

FileState = tuple[int, int]
"""Size in bytes, modification time in nanoseconds since 1970. Only Convoy writes these files."""

Known = Mapping[str, FileState] | None
"""The states of the files when they were whole. Those that are as they were are not read; None: none are."""


def file_states(directory: Path) -> dict[str, FileState]:
    """Of every file that training reads, for `problem`."""
    found = {}
    for path in sorted(directory.iterdir()):
        if path.is_file():
            status = path.stat()
            found[path.name] = (status.st_size, status.st_mtime_ns)
    return found


def problem(directory: Path, fingerprint: str, known: Known) -> str | None:
    """What is wrong with a prepared directory, if anything."""
    try:
        manifest = DataManifest.read(directory)
    except (DataError, OSError, KeyError, TypeError) as error:
        return error.message if isinstance(error, DataError) else f"{directory / MANIFEST_FILE} is damaged: {error}"
    if manifest.fingerprint != fingerprint:
        return f"{directory} holds other data: {manifest.fingerprint}, not {fingerprint}"
    length = None if manifest.packing else manifest.sequence_length
    return _problem(directory, manifest.sources, manifest.dtype, length, known)


def tokens_problem(directory: Path, known: Known) -> str | None:
    """The same of a complete directory of token files."""
    try:
        counts = read_counts(directory)
    except DataError as error:
        return error.message
    return _problem(directory, counts.sources, counts.dtype, None, known)


def _problem(
    directory: Path, sources: Sequence[SourceCounts], dtype: str, length: int | None, known: Known
) -> str | None:
    if not (directory / TOKENIZER_DIRECTORY / TOKENIZER_FILE).is_file():
        return f"{directory / TOKENIZER_DIRECTORY} holds no tokenizer"
    try:
        states = file_states(directory)
        streams = [stream for source in sources for stream in (source.train, source.validation) if stream is not None]
        found = (_stream_problem(directory, each, np.dtype(dtype).itemsize, length, states, known) for each in streams)
        return next((what for what in found if what), None)
    except OSError as error:
        return f"{error.filename or directory} cannot be read: {error.strerror or error}"


def _stream_problem(
    directory: Path,
    counts: StreamCounts,
    token_bytes: int,
    length: int | None,
    states: Mapping[str, FileState],
    known: Known,
) -> str | None:
    """`length`: of a sample, if there is a file of sample starts."""
    tokens, documents, starts = (directory / f"{counts.name}.{end}" for end in ("tokens", "documents", "starts"))
    sizes = {tokens: counts.tokens * token_bytes, documents: counts.documents * 8}
    if length is not None:
        sizes[starts] = (counts.samples + 1) * 8
    for path, size in sizes.items():
        if path.name not in states and size > 0:
            return f"{path} is missing"
        if states.get(path.name, (0,))[0] != size:
            return f"{path} has {states[path.name][0]:,} bytes instead of {size:,}"
    if known is None:
        return None
    touched = {path for path in sizes if states.get(path.name) != known.get(path.name)}
    if tokens in touched and not tokens_whole(directory, counts.name, token_bytes):
        return f"{tokens} is damaged: its checksums differ"
    if documents in touched and int(_map(documents).sum(dtype=np.uint64)) != counts.tokens:
        return f"{documents} is damaged: its document lengths do not add up"
    if starts in touched and length is not None and not _starts_whole(directory, counts, length):
        return f"{starts} is damaged: samples do not start where they should"
    return None


def tokens_whole(directory: Path, stream: str, item_bytes: int) -> bool:
    """Whether the tokens of a stream have the checksums that the journal gives. Reads them all, a block at a time.
    True if there is no journal to compare with: directories of older versions have none."""
    if not (directory / JOURNAL_FILE).is_file():
        return True
    end = 0
    path = directory / f"{stream}.tokens"
    if not path.is_file():
        return True  # a stream without tokens
    with path.open("rb") as file:
        for entry in read_journal(directory):
            if entry.stream == stream:
                data = file.read(entry.block_tokens * item_bytes)
                if len(data) != entry.block_tokens * item_bytes or zlib.crc32(data) != entry.tokens_crc:
                    return False
                end = entry.tokens * item_bytes
        return file.seek(0, 2) == end


def _starts_whole(directory: Path, counts: StreamCounts, length: int) -> bool:
    found, at = _map(directory / f"{counts.name}.starts"), 0
    for starts in sample_starts(_map(directory / f"{counts.name}.documents"), length):
        if not np.array_equal(found[at : at + len(starts)], starts):
            return False
        at += len(starts)
    return at == counts.samples and int(found[at]) == counts.tokens


def _map(path: Path) -> NDArray[np.uint64]:
    if not path.is_file() or path.stat().st_size < 8:
        return np.zeros(0, dtype="<u8")
    return np.memmap(path, dtype="<u8", mode="r")

"""Token files being written: they only grow, and a journal records how far they are complete.

Tokens of a stream (one source and split) are appended to `<stream>.tokens`, document lengths to `<stream>.documents`.
After both are on disk, a line per block goes to `journal.jsonl`. After a kill, the files are truncated to what the
journal records, and work continues with the next block. `tokens.json`, written last, marks that everything is complete.
"""

import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np

from orchestrator.atomic_files import write_json
from orchestrator.data.tokens.encode import EncodedBlock
from orchestrator.domain.fingerprints import DIGEST_HEX
from orchestrator.json_values import JsonObject

JOURNAL_FILE = "journal.jsonl"
COMPLETE_FILE = "tokens.json"
COMMIT_INTERVAL_S = 0.5
COMMIT_BLOCKS = 32


@dataclass(frozen=True)
class StreamTotal:
    """Progress of a stream."""

    text_bytes: int = 0
    tokens: int = 0
    documents: int = 0
    open_tokens: int = 0


@dataclass(frozen=True)
class JournalEntry:
    """One block, and its stream's totals with it."""

    stream: str
    text_crc: int
    tokens_crc: int
    text_bytes: int
    """Of the stream so far."""
    block_tokens: int
    tokens: int
    documents: int
    """Whole documents of the stream so far."""
    open_tokens: int
    """Tokens of the document that continues in the next block."""

    @property
    def total(self) -> StreamTotal:
        """Progress of the stream after this block."""
        return StreamTotal(self.text_bytes, self.tokens, self.documents, self.open_tokens)


def read_journal(directory: Path) -> Iterator[JournalEntry]:
    """The journal of a directory, a line at a time: it has one for every block. A line that a kill cut off ends it."""
    try:
        journal = (directory / JOURNAL_FILE).open()
    except FileNotFoundError:
        return
    with journal:
        for line in journal:
            try:
                entry = JournalEntry(**json.loads(line))
            except (ValueError, TypeError):
                return
            yield entry


def journal_digest(directory: Path) -> str | None:
    """Stands for the tokens of a complete directory, whatever their key was: equal tokens in equal blocks give equal
    digests. None if there is no journal."""
    digest, empty = hashlib.sha256(), True
    for entry in read_journal(directory):
        digest.update(json.dumps(asdict(entry), sort_keys=True).encode())
        empty = False
    return None if empty else digest.hexdigest()[:DIGEST_HEX]


class TokenStore:
    """Appends blocks to the token files of one directory. Not thread-safe; the caller holds the directory's lock."""

    def __init__(self, directory: Path, dtype: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.directory = directory
        self.dtype = np.dtype(dtype)
        self._clock = clock
        directory.mkdir(parents=True, exist_ok=True)
        for leftover in directory.glob("*.tmp"):
            leftover.unlink()
        self._totals: dict[str, StreamTotal] = {}
        self.done_blocks = self._vouched()
        """Blocks that were finished before this object was made."""
        self._files: dict[str, IO[bytes]] = {}
        self._pending: list[JournalEntry] = []
        self._last_commit = clock()
        self.rewind(self.done_blocks)

    def entries(self) -> Iterator[JournalEntry]:
        """What the journal says, see `read_journal`."""
        return read_journal(self.directory)

    def rewind(self, blocks: int) -> None:
        """Keep the first `blocks` blocks, cut everything else off. Before the first `append` only."""
        self._totals = {}
        temporary = self.directory / f"{JOURNAL_FILE}.tmp"
        with temporary.open("w") as journal:
            for entry in islice(self.entries(), blocks):
                self._totals[entry.stream] = entry.total
                journal.write(json.dumps(asdict(entry)) + "\n")
            journal.flush()
            os.fsync(journal.fileno())
        temporary.replace(self.directory / JOURNAL_FILE)
        self.done_blocks = blocks
        for path in [*self.directory.glob("*.tokens"), *self.directory.glob("*.documents")]:
            total = self._totals.get(path.stem, StreamTotal())
            wanted = total.tokens * self.dtype.itemsize if path.suffix == ".tokens" else total.documents * 8
            os.truncate(path, wanted)

    def append(self, block: EncodedBlock) -> None:
        """Add the next block. On disk after the next `commit`, which comes by itself at least every
        `COMMIT_BLOCKS` blocks."""
        before = self._totals.get(block.stream, StreamTotal())
        lengths = block.lengths.copy()
        lengths[0] += np.uint64(before.open_tokens)
        open_tokens = int(lengths[-1]) if block.open_end else 0
        closed = lengths[:-1] if block.open_end else lengths
        self._file(f"{block.stream}.tokens").write(block.tokens.tobytes())
        self._file(f"{block.stream}.documents").write(closed.tobytes())
        total = StreamTotal(
            before.text_bytes + block.text_bytes,
            before.tokens + len(block.tokens),
            before.documents + len(closed),
            open_tokens,
        )
        self._totals[block.stream] = total
        self._pending.append(
            JournalEntry(
                block.stream, block.text_crc, block.tokens_crc, block_tokens=len(block.tokens), **asdict(total)
            )
        )
        if len(self._pending) >= COMMIT_BLOCKS or self._clock() - self._last_commit >= COMMIT_INTERVAL_S:
            self.commit()

    def commit(self) -> None:
        """Make everything appended survive a kill."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        if self._pending:
            with (self.directory / JOURNAL_FILE).open("a") as journal:
                journal.writelines(json.dumps(asdict(entry)) + "\n" for entry in self._pending)
                journal.flush()
                os.fsync(journal.fileno())
        self._pending = []
        self._last_commit = self._clock()

    def finish(self, facts: JsonObject) -> None:
        """Commit, and declare the directory complete."""
        self.commit()
        self.close()
        write_json(self.directory / COMPLETE_FILE, facts)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._files = {}

    def total(self, stream: str) -> StreamTotal:
        """Present progress of a stream."""
        return self._totals.get(stream, StreamTotal())

    @property
    def documents(self) -> int:
        """Whole documents of all streams."""
        return sum(total.documents for total in self._totals.values())

    @property
    def tokens(self) -> int:
        """Tokens of all streams."""
        return sum(total.tokens for total in self._totals.values())

    def text_bytes(self, *streams: str) -> int:
        """UTF-8 bytes of the text of some streams."""
        return sum(self._totals[stream].text_bytes for stream in streams if stream in self._totals)

    def _file(self, name: str) -> IO[bytes]:
        if name not in self._files:
            self._files[name] = (self.directory / name).open("ab")
        return self._files[name]

    def _vouched(self) -> int:
        """Blocks up to the first that the token files do not bear out."""
        blocks = 0
        for entry in self.entries():
            if not self._on_disk(entry):
                break
            blocks += 1
        return blocks

    def _on_disk(self, entry: JournalEntry) -> bool:
        size = self.dtype.itemsize
        path = self.directory / f"{entry.stream}.tokens"
        try:
            with path.open("rb") as file:
                file.seek((entry.tokens - entry.block_tokens) * size)
                data = file.read(entry.block_tokens * size)
            documents = (self.directory / f"{entry.stream}.documents").stat().st_size // 8
        except FileNotFoundError:
            return False
        return zlib.crc32(data) == entry.tokens_crc and documents >= entry.documents

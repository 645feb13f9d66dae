"""Documents to blocks: the unit of tokenising, of resuming, and of memory.

Blocks are a pure function of the content and the settings: never of timing, workers or the point at which a killed run
stopped.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from orchestrator.data.data_manifest import Skipped
from orchestrator.data.samples.order import mix64
from orchestrator.data.sources.readers import Bad, Item, TextPiece
from orchestrator.domain.errors import DataError

Split = Literal["train", "validation"]

BLOCK_CHARS = 1 << 20
BLOCK_DOCUMENTS = 1 << 16
"""A block is closed once it has this many characters or documents; the last piece may take it up to twice that."""

SPLIT_SEED = 0x436F6E766F79
"""Seeds the choice of validation documents. Fixed: runs that differ in `train.seed` alone share their validation
set, so that their losses compare, and their token files."""


@dataclass(frozen=True)
class Block:
    """Raw text of one source and split."""

    stream: str
    texts: list[str]
    open_end: bool
    """The last text continues in the next block of the stream."""
    position_bytes: int
    """How far the reader of the whole corpus was, for progress."""

    def crc(self) -> int:
        """CRC-32 of the text and its cuts: recognises the block when a killed preparation continues."""
        value = zlib.crc32(np.array([len(text) for text in self.texts], dtype=np.uint32).tobytes())
        return zlib.crc32("".join(self.texts).encode("utf-8"), value)


@dataclass
class BlockTally:
    """What was read of one source. Mutable: it counts."""

    records: int = 0
    bad_records: int = 0
    empty_documents: int = 0
    documents: dict[Split, int] = field(default_factory=lambda: {"train": 0, "validation": 0})
    text_bytes: int = 0
    skipped: dict[str, Skipped] = field(default_factory=dict)

    def skip(self, bad: Bad) -> None:
        """Count a record that cannot be read."""
        self.records += 1
        self.bad_records += 1
        before = self.skipped.get(bad.reason)
        self.skipped[bad.reason] = Skipped(
            bad.reason, before.count + 1 if before else 1, before.first if before else bad.place
        )


@dataclass
class _Open:
    """The block being filled."""

    texts: list[str] = field(default_factory=list)
    chars: int = 0


class Splitter:
    """Chooses the split of a document by a hash of its place among the documents of its source."""

    def __init__(self, source: int, fraction: float | None, role: Split) -> None:
        self._role = role
        self._limit = int(fraction * 2**64) if fraction else 0
        self._key = int(mix64(np.asarray([SPLIT_SEED + source], dtype=np.uint64))[0])
        self._first = 0
        self._chunk: list[bool] = []

    def of(self, ordinal: int) -> Split:
        """The split of the `ordinal`-th document; ordinals come in order."""
        if not self._limit:
            return self._role
        if ordinal >= self._first + len(self._chunk):
            self._first, size = ordinal, 4096
            hashes = mix64(np.arange(ordinal, ordinal + size, dtype=np.uint64) ^ np.uint64(self._key))
            self._chunk = (hashes < np.uint64(self._limit)).tolist()
        return "validation" if self._chunk[ordinal - self._first] else "train"


@dataclass(frozen=True)
class BadRecordRule:
    """`data.bad_records` and `data.max_bad_fraction`."""

    stop_at_first: bool
    max_fraction: float

    def on_bad(self, bad: Bad) -> None:
        """Raises DataError if the rule says so."""
        if self.stop_at_first:
            raise DataError(
                f"{bad.place}: {bad.reason}",
                hint="`data.bad_records: skip` counts such records and continues",
            )

    def check(self, source: str, records: int, bad: int, skipped: Iterable[Skipped]) -> None:
        """Raises DataError if a source holds more unreadable records than allowed."""
        reasons = list(skipped)
        if bad and self.stop_at_first:
            self.on_bad(Bad(reasons[0].reason, reasons[0].first))
        if records and bad > self.max_fraction * records:
            listed = "; ".join(f"{item.count} x {item.reason}, first at {item.first}" for item in reasons[:5])
            raise DataError(
                f"{bad} of {records} records of {source} cannot be read: {listed}",
                hint=f"`data.max_bad_fraction` allows {self.max_fraction:g}; fix the records, or raise it",
            )


@dataclass(frozen=True)
class SourcePlan:
    """How one source is cut into blocks."""

    index: int
    role: Split
    fraction: float | None
    rule: BadRecordRule

    def stream(self, split: Split) -> str:
        """The name of the token files of one split."""
        return f"s{self.index}.{split}"


def documents(items: Iterable[Item], plan: SourcePlan, tally: BlockTally) -> Iterator[tuple[Split, TextPiece]]:
    """The pieces of all documents with their split; bad records and empty documents are counted and left out.

    Raises DataError at a bad record if the rule says so.
    """
    splitter = Splitter(plan.index, plan.fraction, plan.role)
    ordinal = 0
    split: Split = plan.role
    starting = True
    for item in items:
        if isinstance(item, Bad):
            plan.rule.on_bad(item)
            tally.skip(item)
            continue
        if starting:
            tally.records += 1
            if item.last and not item.text.strip():
                tally.empty_documents += 1
                continue
            split = splitter.of(ordinal)
            ordinal += 1
            tally.documents[split] += 1
        starting = item.last
        yield split, item


def blocks(
    items: Iterable[Item], plan: SourcePlan, tally: BlockTally, position_bytes: Callable[[], int]
) -> Iterator[Block]:
    """Cut one source into blocks, in the order in which they fill up; the rest of each split comes last."""
    filling: dict[Split, _Open] = {"train": _Open(), "validation": _Open()}
    for split, piece in documents(items, plan, tally):
        current = filling[split]
        current.texts.append(piece.text)
        current.chars += len(piece.text)
        full = current.chars >= BLOCK_CHARS or len(current.texts) >= BLOCK_DOCUMENTS
        if full or not piece.last:  # only the last text of a block may go on
            yield Block(plan.stream(split), current.texts, not piece.last, position_bytes())
            filling[split] = _Open()
    for split, current in filling.items():
        if current.texts:
            yield Block(plan.stream(split), current.texts, False, position_bytes())

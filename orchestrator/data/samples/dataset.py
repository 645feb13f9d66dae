"""Prepared data as samples: token files mapped into memory, any position of the endless order at the same cost."""

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.data_manifest import DataManifest, StreamCounts
from orchestrator.data.samples.mixture import Drawn, Mixture
from orchestrator.data.samples.order import keys, mix64, permute
from orchestrator.data.sources.blocks import SPLIT_SEED
from orchestrator.domain.errors import DataError

DIGEST_BITS = 62
"""Of a digest of samples."""
DIGEST_MODULUS = 1 << DIGEST_BITS

_UNLOCKED_TOKENS = 512
"""So many tokens are copied out of the mapped file at least: numpy copies more than 500 items without the interpreter's
lock. With the lock, a page that comes from a slow disk would stop all threads of a worker, and training would seem slow
everywhere except where it waits for data."""

VALIDATION_STREAM = 1 << 32
"""Keeps the key of the validation order apart from those of training."""


@dataclass(frozen=True)
class Samples:
    """Some samples, in the order asked for."""

    ids: NDArray[np.int64]
    """[n] global sample ids."""
    epochs: NDArray[np.int64]
    """[n] pass over the pool, or over the sample's source if sources have weights."""
    tokens: NDArray[np.int32]
    """[n, L], padded with the pad id."""
    lengths: NDArray[np.int32]
    """[n] real tokens of each."""

    def digest(self) -> int:
        """Sum over the samples of a 63-bit hash of (id, CRC-32 of its real tokens as little-endian int32), modulo
        2**62. The order does not matter, and the digests of the shares of a batch add up to the batch's."""
        crcs = [
            zlib.crc32(row[:length].astype("<i4", copy=False).tobytes())
            for row, length in zip(self.tokens, self.lengths, strict=True)
        ]
        hashes = mix64(mix64(self.ids.astype(np.uint64)) ^ np.array(crcs, dtype=np.uint64)) >> np.uint64(1)
        return int(hashes.sum(dtype=np.uint64)) % DIGEST_MODULUS


class _TokenStream:
    """The samples of one source and split."""

    def __init__(self, directory: Path, counts: StreamCounts, manifest: DataManifest) -> None:
        self.samples = counts.samples
        self._length = manifest.sequence_length
        self._total = counts.tokens
        self._tokens = _map(directory / f"{counts.name}.tokens", manifest.dtype, counts.tokens)
        starts = directory / f"{counts.name}.starts"
        self._starts = None if manifest.packing else _map(starts, "uint64", counts.samples + 1)

    def read(self, index: int, row: NDArray[np.int32]) -> int:
        """Copy a sample into the front of `row`; how many tokens it has."""
        if self._starts is None:
            start, end = index * self._length, min((index + 1) * self._length, self._total)
        else:
            start, end = int(self._starts[index]), int(self._starts[index + 1])
        first = max(0, min(start, self._total - _UNLOCKED_TOKENS))
        tokens = self._tokens[first : max(end, first + _UNLOCKED_TOKENS)].astype(np.int32)
        row[: end - start] = tokens[start - first : end - first]
        return end - start


class TokenDataset:
    """The prepared data of a job. Thread-safe: reading changes nothing."""

    def __init__(self, directory: Path, manifest: DataManifest) -> None:
        self.manifest = manifest
        train = [source.train for source in manifest.sources if source.train is not None]
        held = [source.validation for source in manifest.sources if source.validation is not None]
        self._train = [_TokenStream(directory, counts, manifest) for counts in train]
        self._validation = [_TokenStream(directory, counts, manifest) for counts in held]
        self._validation_offsets = np.concatenate([[0], np.cumsum([s.samples for s in self._validation])]).astype(
            np.int64
        )
        self.mixture = Mixture.of([stream.samples for stream in self._train], manifest.weights, manifest.seed)

    @classmethod
    def open(cls, directory: Path) -> "TokenDataset":
        """Map the files of a prepared directory. Raises DataError if one is missing or has the wrong size."""
        return cls(directory, DataManifest.read(directory))

    def train(self, first_position: int, count: int) -> Samples:
        """The samples at positions [first_position, first_position + count) of the global order. Any position >= 0:
        epochs follow one another for ever."""
        drawn = self.mixture.draw(first_position, count)
        return self._gather(self._train, self.mixture.offsets, drawn)

    def validation(self, first: int, count: int) -> Samples:
        """Validation samples [first, first + count) of `manifest.validation_samples`, in an order that is fixed, the
        same for every seed. Raises ValueError outside that range."""
        if first < 0 or count < 0 or first + count > self.manifest.validation_samples:
            raise ValueError(f"validation samples [{first}, {first + count}) of {self.manifest.validation_samples}")
        positions = np.arange(first, first + count, dtype=np.uint64)
        key = keys(SPLIT_SEED, VALIDATION_STREAM, np.zeros(count, dtype=np.uint64))
        ids = permute(positions, max(1, self.manifest.validation_samples_total), key).astype(np.int64)
        sources = np.searchsorted(self._validation_offsets, ids, side="right") - 1
        return self._gather(self._validation, self._validation_offsets, Drawn(sources, np.zeros_like(ids), ids))

    def epoch_at(self, position: int) -> float:
        """Passes over the training samples after `position` samples."""
        return position / self.manifest.train_samples

    def _gather(self, streams: list[_TokenStream], offsets: NDArray[np.int64], drawn: Drawn) -> Samples:
        count = len(drawn.ids)
        tokens = np.full((count, self.manifest.sequence_length), self.manifest.pad_id, dtype=np.int32)
        lengths = np.empty(count, dtype=np.int32)
        indices = drawn.ids - offsets[drawn.sources]
        for row, (source, index) in enumerate(zip(drawn.sources.tolist(), indices.tolist(), strict=True)):
            lengths[row] = streams[source].read(index, tokens[row])
        return Samples(drawn.ids, drawn.epochs, tokens, lengths)


def _map(path: Path, dtype: str, count: int) -> NDArray[np.uint16 | np.uint32 | np.uint64]:
    kind = np.dtype(dtype).newbyteorder("<")
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise DataError(f"{path} is missing", hint=f"delete {path.parent} and prepare the data again") from None
    if size != count * kind.itemsize:
        raise DataError(
            f"{path} has {size} bytes, the manifest says {count * kind.itemsize}",
            hint=f"delete {path.parent} and prepare the data again",
        )
    if count == 0:
        return np.zeros(0, dtype=kind)
    # A plain array over the mapping: slicing the memmap subclass costs several times as much.
    return np.asarray(np.memmap(path, dtype=kind, mode="r")).view(np.ndarray)

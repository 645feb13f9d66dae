"""`manifest.json`: what the prepared data is, and the proof that nothing was lost on the way."""

from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.domain.errors import DataError
from orchestrator.json_values import (
    JsonFields,
    JsonObject,
    flag,
    integer,
    mapping,
    number,
    objects,
    optional,
    parse_object,
    text,
)

FORMAT_VERSION = 1
"""Of token files and manifest. Part of the cache key: a change makes old caches miss."""

MANIFEST_FILE = "manifest.json"
TOKENIZER_DIRECTORY = "tokenizer"


@dataclass(frozen=True)
class StreamCounts:
    """The tokens of one source and split. They lie in `<name>.tokens`, the end-of-text tokens included; the
    token counts of its documents in `<name>.documents` (uint64); unpacked, the first token of each sample, and
    the end, in `<name>.starts` (uint64)."""

    name: str
    documents: int
    tokens: int
    samples: int = 0
    """Filled in for a sequence length: 0 in `tokens.json`."""


@dataclass(frozen=True)
class Skipped:
    """Records left out for one reason, and the location of the first one (`path:line`)."""

    reason: str
    count: int
    first: str


@dataclass(frozen=True)
class SourceCounts:
    """One source: what was read, what was kept. records = documents + bad_records + empty_documents."""

    name: str
    weight: float | None
    bytes: int
    """Bytes of its files on disk; for a hub dataset, of the text read."""
    records: int
    documents: int
    bad_records: int
    empty_documents: int
    skipped: tuple[Skipped, ...]
    train: StreamCounts | None
    validation: StreamCounts | None

    @property
    def train_tokens(self) -> int:
        """Tokens to train on."""
        return self.train.tokens if self.train else 0

    @property
    def validation_tokens(self) -> int:
        """Tokens held back."""
        return self.validation.tokens if self.validation else 0


@dataclass(frozen=True)
class DataManifest:
    """The prepared data of one job. Equal inputs give equal manifests: there is no time and no path in it."""

    format_version: int
    fingerprint: str
    """Of everything that determines the samples and their order."""
    tokens_fingerprint: str
    """Of what determines the token files alone: the cache key of the expensive part."""
    sequence_length: int
    packing: bool
    seed: int
    dtype: str
    """`uint16` or `uint32`, little-endian."""
    vocab_size: int
    """Length of the tokenizer: every id is below it."""
    eos_id: int
    pad_id: int
    mask_id: int | None
    train_samples: int
    validation_samples: int
    """Samples that are evaluated: at most `data.validation.max_samples`."""
    validation_samples_total: int
    train_tokens: int
    validation_tokens: int
    documents: int
    bad_records: int
    sources: tuple[SourceCounts, ...]

    @property
    def weights(self) -> tuple[float, ...] | None:
        """Weights of the training sources, or None if they are one pool."""
        found = [source.weight for source in self.sources if source.train is not None]
        return None if any(weight is None for weight in found) else tuple(w for w in found if w is not None)

    def to_json(self) -> JsonObject:
        """A JSON object; the reverse of `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: JsonFields) -> "DataManifest":
        """Raises JsonShapeError if it is not a manifest."""
        return cls(
            format_version=integer(value, "format_version"),
            fingerprint=text(value, "fingerprint"),
            tokens_fingerprint=text(value, "tokens_fingerprint"),
            sequence_length=integer(value, "sequence_length"),
            packing=flag(value, "packing"),
            seed=integer(value, "seed"),
            dtype=text(value, "dtype"),
            vocab_size=integer(value, "vocab_size"),
            eos_id=integer(value, "eos_id"),
            pad_id=integer(value, "pad_id"),
            mask_id=optional(integer, value, "mask_id"),
            train_samples=integer(value, "train_samples"),
            validation_samples=integer(value, "validation_samples"),
            validation_samples_total=integer(value, "validation_samples_total"),
            train_tokens=integer(value, "train_tokens"),
            validation_tokens=integer(value, "validation_tokens"),
            documents=integer(value, "documents"),
            bad_records=integer(value, "bad_records"),
            sources=tuple(source_from_json(source) for source in objects(value, "sources")),
        )

    @classmethod
    def read(cls, directory: Path) -> "DataManifest":
        """The manifest of a prepared directory. Raises DataError if there is none, or none we can read."""
        path = directory / MANIFEST_FILE
        try:
            value = parse_object(path.read_bytes())
            if value.get("format_version") == FORMAT_VERSION:
                return cls.from_json(value)
        except FileNotFoundError:
            raise DataError(f"{directory} holds no prepared data: {MANIFEST_FILE} is missing") from None
        except ValueError as error:
            raise DataError(f"{path} is damaged: {error}", hint=f"delete {directory} and prepare again") from error
        raise DataError(
            f"{path} has format {value.get('format_version')}, this version reads {FORMAT_VERSION}",
            hint="prepare the data again",
        )


def source_from_json(value: JsonFields) -> SourceCounts:
    """The reverse of `asdict`. Raises JsonShapeError if it is not one."""
    return SourceCounts(
        name=text(value, "name"),
        weight=optional(number, value, "weight"),
        bytes=integer(value, "bytes"),
        records=integer(value, "records"),
        documents=integer(value, "documents"),
        bad_records=integer(value, "bad_records"),
        empty_documents=integer(value, "empty_documents"),
        skipped=tuple(
            Skipped(text(item, "reason"), integer(item, "count"), text(item, "first"))
            for item in objects(value, "skipped")
        ),
        train=optional(_stream, value, "train"),
        validation=optional(_stream, value, "validation"),
    )


def _stream(source: JsonFields, split: str) -> StreamCounts:
    value = mapping(source, split)
    samples = optional(integer, value, "samples") or 0
    return StreamCounts(text(value, "name"), integer(value, "documents"), integer(value, "tokens"), samples)

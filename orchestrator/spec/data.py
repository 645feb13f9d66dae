"""`data`: which text is read, how it is cut into samples, what is held back for validation."""

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.spec.spec_base import SpecModel

NonEmpty = Annotated[str, Field(min_length=1)]


class SourceSpec(SpecModel):
    """One source of text: local `files`, or a `hub` dataset."""

    files: Annotated[list[NonEmpty], Field(min_length=1)] | None = None
    """Paths and globs (`**` recurses), relative to the job file. Excludes `hub`."""

    exclude: list[str] = Field(default_factory=list)
    """Globs of files to leave out, matched against the whole path."""

    hub: NonEmpty | None = None
    """Hugging Face dataset id. Excludes `files`."""

    config: str | None = None
    """Configuration name of the hub dataset, e.g. `wikitext-2-raw-v1`."""

    split: str = "train"
    """Split of the hub dataset, slices included (`train[:10%]`; a slice needs `streaming: false`)."""

    streaming: bool = True
    """Read the hub dataset as a stream instead of downloading it whole."""

    format: Literal["auto", "text", "lines", "jsonl", "csv", "parquet"] = "auto"
    """`text`: a file is one document. `lines`: a line is one document. `auto`: by the file name extension
    (`.jsonl`, `.csv`, `.tsv`, `.parquet`, a trailing `.gz` is allowed for text formats; anything else is `text`)."""

    field: str = "text"
    """Column or key that holds the text, for JSONL, CSV, Parquet and hub datasets. `column:0` is the first column
    of a CSV or TSV file whose first row is not a header."""

    weight: float | None = Field(default=None, gt=0)
    """Share of this source in the mix, relative to the other weights. Give a weight to all sources or to
    none: without weights every sample of every source is used once per epoch."""


class ValidationSpec(SpecModel):
    """What is held back: `fraction` of the documents of every source, or separate `sources`."""

    fraction: float | None = Field(default=None, gt=0, lt=1)
    """Share of documents held back, chosen by a seeded hash of the document's place in the corpus."""

    sources: Annotated[list[SourceSpec], Field(min_length=1)] | None = None
    """Sources read only for validation. Excludes `fraction`."""

    max_samples: int = Field(default=512, ge=1)
    """At most this many validation samples are evaluated, the first ones of a seeded order."""


class DataSpec(SpecModel):
    """Text in, samples of `sequence_length` tokens out."""

    sources: list[SourceSpec] = Field(min_length=1)
    """Where the text comes from."""

    sequence_length: int = Field(ge=8, le=1_048_576)
    """Tokens in a sample."""

    packing: bool = True
    """True: documents are joined, an end-of-text token after each, and cut every `sequence_length` tokens.
    False: a document is one sample, padded; a longer one is cut into several. No token is lost either way."""

    validation: ValidationSpec | None = None
    """What is held back to measure validation loss. Without it there is no evaluation."""

    bad_records: Literal["skip", "error"] = "skip"
    """A record that cannot be read (broken JSON, a missing field, text that is not UTF-8): `skip` counts it,
    reports the count and the first location; `error` stops the job there."""

    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """With `bad_records: skip`, more than this share of unreadable records stops the job."""

    cache_dir: str | None = None
    """Where token shards are cached. Default: `$CONVOY_HOME/cache`."""

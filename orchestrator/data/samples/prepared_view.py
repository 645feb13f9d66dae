"""The prepared directory of one job: links to shared token files, the starts of samples, and the manifest."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.atomic_files import write_json
from orchestrator.data.data_manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    TOKENIZER_DIRECTORY,
    DataManifest,
    SourceCounts,
    StreamCounts,
)
from orchestrator.data.tokens.token_store import JOURNAL_FILE
from orchestrator.data.tokens.tokenise import TokenCounts
from orchestrator.domain.errors import DataError
from orchestrator.spec.job import JobSpec

DOCUMENTS_AT_ONCE = 1 << 20


def build_view(
    spec: JobSpec, counts: TokenCounts, tokens_fingerprint: str, fingerprint: str, tokens_dir: Path, view_dir: Path
) -> None:
    """Make the directory a job trains on, whole or not at all. Raises DataError if there is nothing to train on,
    nothing to validate on although it was asked for, or a token would be lost."""
    temporary = view_dir.with_name(view_dir.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    shutil.copytree(tokens_dir / TOKENIZER_DIRECTORY, temporary / TOKENIZER_DIRECTORY)
    if (tokens_dir / JOURNAL_FILE).is_file():
        _link(tokens_dir / JOURNAL_FILE, temporary / JOURNAL_FILE)  # has the checksums of the token files
    length = spec.data.sequence_length if spec.data.packing else None
    weights = [source.weight for source in spec.data.sources]
    sources = tuple(
        _with_samples(source, weights[i] if i < len(weights) else None, spec, tokens_dir, temporary)
        for i, source in enumerate(counts.sources)
    )
    train = [source.train for source in sources if source.train]
    held = [source.validation for source in sources if source.validation]
    _check_not_empty(spec, sources)
    held_samples = sum(stream.samples for stream in held)
    manifest = DataManifest(
        format_version=FORMAT_VERSION,
        fingerprint=fingerprint,
        tokens_fingerprint=tokens_fingerprint,
        sequence_length=spec.data.sequence_length,
        packing=length is not None,
        seed=spec.train.seed,
        dtype=counts.dtype,
        vocab_size=counts.vocab_size,
        eos_id=counts.eos_id,
        pad_id=counts.pad_id,
        mask_id=counts.mask_id,
        train_samples=sum(stream.samples for stream in train),
        validation_samples=min(spec.data.validation.max_samples, held_samples) if spec.data.validation else 0,
        validation_samples_total=held_samples,
        train_tokens=sum(stream.tokens for stream in train),
        validation_tokens=sum(stream.tokens for stream in held),
        documents=sum(source.documents for source in sources),
        bad_records=sum(source.bad_records for source in sources),
        sources=sources,
    )
    write_json(temporary / MANIFEST_FILE, manifest.to_json())
    shutil.rmtree(view_dir, ignore_errors=True)
    temporary.rename(view_dir)


def _with_samples(
    source: SourceCounts, weight: float | None, spec: JobSpec, tokens_dir: Path, directory: Path
) -> SourceCounts:
    """The source as this job sees it: its weight, and samples of this length."""

    def cut(stream: StreamCounts | None) -> StreamCounts | None:
        return None if stream is None else _samples(stream, spec, tokens_dir, directory)

    return replace(source, weight=weight, train=cut(source.train), validation=cut(source.validation))


def _samples(stream: StreamCounts, spec: JobSpec, tokens_dir: Path, directory: Path) -> StreamCounts:
    """Link the files of one stream and cut it into samples; checks that the samples' lengths add up to its tokens."""
    for ending in ("tokens", "documents"):
        source = tokens_dir / f"{stream.name}.{ending}"
        if source.exists():
            _link(source, directory / source.name)
        else:
            (directory / source.name).touch()
    length = spec.data.sequence_length
    if spec.data.packing:
        return replace(stream, samples=-(-stream.tokens // length))
    samples, covered = _write_starts(directory, stream.name, length)
    if covered != stream.tokens:
        raise DataError(f"{stream.name}: {stream.tokens} tokens were written, the samples hold {covered}")
    return replace(stream, samples=samples)


def _write_starts(directory: Path, name: str, length: int) -> tuple[int, int]:
    """Write the first token of each sample, then the end. Returns samples and tokens."""
    path = directory / f"{name}.documents"
    lengths = np.memmap(path, dtype="<u8", mode="r") if path.stat().st_size else np.zeros(0, dtype="<u8")
    samples = 0
    covered = int(lengths.sum(dtype=np.uint64))
    with (directory / f"{name}.starts").open("wb") as file:
        for starts in sample_starts(lengths, length):
            file.write(starts.tobytes())
            samples += len(starts)
        file.write(np.array([covered], dtype="<u8").tobytes())
    return samples, covered


def sample_starts(lengths: NDArray[np.uint64], length: int) -> Iterator[NDArray[np.uint64]]:
    """The first token of each sample, for documents of these lengths cut every `length` tokens. A part of the
    documents is in memory at a time."""
    covered = 0
    for first in range(0, len(lengths), DOCUMENTS_AT_ONCE):
        part = np.asarray(lengths[first : first + DOCUMENTS_AT_ONCE]).astype(np.int64)
        begins = covered + np.cumsum(part) - part
        chunks = -(-part // length)
        within = np.arange(int(chunks.sum())) - np.repeat(np.cumsum(chunks) - chunks, chunks)
        yield (np.repeat(begins, chunks) + within * length).astype("<u8")
        covered += int(part.sum())


def _link(source: Path, target: Path) -> None:
    """A hard link if the file system supports them, so that the directory is complete by itself; else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _check_not_empty(spec: JobSpec, sources: tuple[SourceCounts, ...]) -> None:
    for source in sources:
        stream = source.train or source.validation
        if source.documents == 0 or (source.train is not None and source.train.tokens == 0):
            kept = f"{source.records} records: {source.empty_documents} empty, {source.bad_records} unreadable"
            held = ", all documents held back for validation" if source.documents else ""
            if source.weight is not None or stream is None or not any(s.train and s.train.tokens for s in sources):
                raise DataError(f"there is no training text in {source.name} ({kept}{held})")
    validation = spec.data.validation
    if validation is None or any(source.validation and source.validation.tokens for source in sources):
        return
    documents = sum(source.documents for source in sources)
    if validation.fraction is not None:
        raise DataError(
            f"`data.validation.fraction: {validation.fraction:g}` of {documents} documents holds back none",
            hint="raise it, name `data.validation.sources`, or split the text into more documents (`format: lines`)",
        )
    raise DataError("`data.validation.sources` contain no text")

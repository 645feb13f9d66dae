"""The expensive part: every block through the executor into the token store, from the point at which the last attempt
stopped."""

from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from orchestrator.data.data_manifest import SourceCounts, StreamCounts, source_from_json
from orchestrator.data.executor import Executor
from orchestrator.data.prepare_progress import PrepareProgress
from orchestrator.data.sources.blocks import Block, Split
from orchestrator.data.sources.contents import CONTENTS_FILE, write_contents
from orchestrator.data.sources.corpus import Corpus, SourceReading
from orchestrator.data.tokens.encode import Encoder
from orchestrator.data.tokens.token_store import COMPLETE_FILE, TokenStore
from orchestrator.data.tokens.tokenizer import JobTokenizer
from orchestrator.domain.errors import DataError
from orchestrator.json_values import integer, objects, optional, parse_object, text


@dataclass(frozen=True)
class TokenCounts:
    """`tokens.json`: what the token files of one directory hold."""

    dtype: str
    vocab_size: int
    eos_id: int
    pad_id: int
    mask_id: int | None
    sources: tuple[SourceCounts, ...]


def read_counts(directory: Path) -> TokenCounts:
    """Read `tokens.json`. Raises DataError if it is damaged."""
    try:
        value = parse_object((directory / COMPLETE_FILE).read_bytes())
        return TokenCounts(
            dtype=text(value, "dtype"),
            vocab_size=integer(value, "vocab_size"),
            eos_id=integer(value, "eos_id"),
            pad_id=integer(value, "pad_id"),
            mask_id=optional(integer, value, "mask_id"),
            sources=tuple(source_from_json(item) for item in objects(value, "sources")),
        )
    except (ValueError, OSError) as error:
        raise DataError(f"{directory / COMPLETE_FILE} is damaged: {error}", hint=f"delete {directory}") from error


def tokenise(
    corpus: Corpus,
    tokenizer: JobTokenizer,
    directory: Path,
    executor: Executor,
    threads: bool,
    progress: PrepareProgress,
) -> None:
    """Write the token files of a corpus. Blocks that are on disk from an earlier try are not tokenised again; their
    text is read again, and compared. Raises DataError."""
    encoder = Encoder(tokenizer.text, tokenizer.eos_id, tokenizer.dtype, threads)
    store = TokenStore(directory, tokenizer.dtype)
    readings = corpus.readings()
    documents, tokens = store.documents, store.tokens
    results = executor.map(encoder, _fresh(corpus.blocks(readings), store, progress))
    try:
        for encoded in results:
            store.append(encoded)
            documents += len(encoded.lengths) - encoded.open_end
            tokens += len(encoded.tokens)
            progress.update("tokenize", encoded.position_bytes, documents, tokens)
        counts = tuple(_source_counts(reading, store) for reading in readings)
        write_contents(directory / CONTENTS_FILE, [reading.contents() for reading in readings])
        store.finish(
            {
                "dtype": tokenizer.dtype,
                "vocab_size": tokenizer.vocab_size,
                "eos_id": tokenizer.eos_id,
                "pad_id": tokenizer.pad_id,
                "mask_id": tokenizer.mask_id,
                "sources": [asdict(item) for item in counts],
            }
        )
    finally:
        if isinstance(results, Generator):
            results.close()  # ends the tasks under way now, not when the exception is forgotten
        store.close()
    progress.update("tokenize", corpus.total_bytes, documents, tokens, last=True)


def _fresh(found: Iterator[Block], store: TokenStore, progress: PrepareProgress) -> Iterator[Block]:
    """The blocks that are not in the store. From the first that differs from the store's, all are fresh."""
    for kept, entry in enumerate(islice(store.entries(), store.done_blocks)):
        block = next(found, None)
        if block is None or (entry.stream, entry.text_crc) != (block.stream, block.crc()):
            store.rewind(kept)
            if block is not None:
                yield block
            break
        progress.update("tokenize", block.position_bytes, store.documents, store.tokens)
    yield from found


def _source_counts(reading: SourceReading, store: TokenStore) -> SourceCounts:
    """The counts of one source, after checking that every record is accounted for. Raises DataError."""
    tally, plan, source = reading.tally, reading.plan, reading.source
    streams: dict[Split, StreamCounts | None] = {"train": None, "validation": None}
    for split, read in tally.documents.items():
        total = store.total(plan.stream(split))
        if total.documents != read or total.open_tokens:
            raise DataError(f"{source.name}: {read} {split} documents were read, {total.documents} were written")
        if split == plan.role or read:
            streams[split] = StreamCounts(plan.stream(split), total.documents, total.tokens)
    documents = sum(tally.documents.values())
    if tally.records != documents + tally.bad_records + tally.empty_documents:
        raise DataError(f"{source.name}: {tally.records} records were read, but not all are accounted for")
    return SourceCounts(
        name=source.name,
        weight=source.spec.weight,
        bytes=source.size_bytes or store.text_bytes(plan.stream("train"), plan.stream("validation")),
        records=tally.records,
        documents=documents,
        bad_records=tally.bad_records,
        empty_documents=tally.empty_documents,
        skipped=tuple(tally.skipped.values()),
        train=streams["train"],
        validation=streams["validation"],
    )

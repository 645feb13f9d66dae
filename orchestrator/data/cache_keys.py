"""What makes two preparations the same: the cache keys."""

import hashlib
import json
from importlib.metadata import version

from orchestrator.data.data_manifest import FORMAT_VERSION
from orchestrator.data.sources import blocks, readers
from orchestrator.data.sources.source_scan import Source
from orchestrator.json_values import JsonObject, JsonValue
from orchestrator.spec.job import JobSpec

FINGERPRINT_HEX = 20


def _hash(value: JsonValue) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:FINGERPRINT_HEX]


def tokens_fingerprint(spec: JobSpec, sources: tuple[Source, ...], tokenizer_key: str) -> str:
    """Of the token files: content, cutting, tokenizer, versions. Not the seed, the sequence length, packing, weights
    or the rule for bad records, which is checked again at every use."""
    validation = spec.data.validation
    return _hash(
        {
            "format": FORMAT_VERSION,
            "block": [blocks.BLOCK_CHARS, blocks.BLOCK_DOCUMENTS, readers.PIECE_CHARS, readers.MAX_RECORD_BYTES],
            "tokenizers": version("tokenizers"),
            "tokenizer": tokenizer_key,
            "sources": [_source(source) for source in sources],
            "fraction": validation.fraction if validation else None,
        }
    )


def _source(source: Source) -> JsonObject:
    content = hashlib.sha256("".join(file.identity + file.format for file in source.files).encode()).hexdigest()
    hub: list[JsonValue] | None = None
    if source.spec.hub is not None:
        directory = source.directory
        files = sorted(path for path in directory.rglob("*") if path.is_file()) if directory else []
        state: list[JsonValue] = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
        hub = [source.spec.hub, source.spec.config, source.spec.split, source.revision, state]
    return {"role": source.role, "field": source.spec.field, "content": content, "hub": hub}


def trained_tokenizer_key(spec: JobSpec) -> str:
    """Stands for the tokenizer that would be trained; the corpus is in the fingerprint already."""
    return "train " + json.dumps(spec.tokenizer.model_dump(mode="json"), sort_keys=True)


def view_fingerprint(spec: JobSpec, tokens: str) -> str:
    """Of the prepared directory: the token files, and how samples are made of them."""
    data = spec.data
    return _hash(
        {
            "tokens": tokens,
            "sequence_length": data.sequence_length,
            "packing": data.packing,
            "seed": spec.train.seed,
            "weights": [source.weight for source in data.sources],
            "names": [[source.files, source.hub] for source in data.sources],
            "max_samples": data.validation.max_samples if data.validation else None,
        }
    )

"""Blocks to tokens: the function that runs in a process of its own, or as a task on another node."""

import os
import zlib
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from orchestrator.data.sources.blocks import Block


@dataclass(frozen=True)
class EncodedBlock:
    """The tokens of one block."""

    stream: str
    tokens: NDArray[np.uint16] | NDArray[np.uint32]
    """All texts one after another, an end-of-text token after each document that ends here."""
    lengths: NDArray[np.uint64]
    """Tokens of each text, its end-of-text token included."""
    open_end: bool
    text_crc: int
    tokens_crc: int
    text_bytes: int
    position_bytes: int


@dataclass(frozen=True)
class TokenizerText:
    """A `tokenizer.json`, known by its hash: a node needs no file of the driver's."""

    key: str
    json: str = field(compare=False, repr=False)


@dataclass(frozen=True)
class Encoder:
    """Tokenises a block. Picklable; it carries the tokenizer, so executors ship it once."""

    tokenizer: TokenizerText
    eos_id: int
    dtype: str
    threads: bool
    """Whether the tokenizer may use all cores. False if the executor runs one task per core."""

    def __call__(self, block: Block) -> EncodedBlock:
        """Special tokens are not added, except the end-of-text token after each document."""
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if self.threads else "false"  # read at every call
        encodings = _load(self.tokenizer).encode_batch_fast(block.texts, add_special_tokens=False)
        ids: list[int] = []
        lengths = np.empty(len(encodings), dtype=np.uint64)
        before = 0
        for number, encoding in enumerate(encodings):
            ids += encoding.ids
            if number + 1 < len(encodings) or not block.open_end:
                ids.append(self.eos_id)
            lengths[number] = len(ids) - before
            before = len(ids)
        tokens = np.array(ids, dtype=self.dtype)
        text_bytes = sum(len(text) if text.isascii() else len(text.encode()) for text in block.texts)
        return EncodedBlock(
            block.stream,
            tokens,
            lengths,
            block.open_end,
            block.crc(),
            zlib.crc32(tokens.tobytes()),
            text_bytes,
            block.position_bytes,
        )


@lru_cache(maxsize=2)
def _load(text: TokenizerText) -> Tokenizer:
    tokenizer = Tokenizer.from_str(text.json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer

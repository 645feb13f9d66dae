"""How many tokens at a time the loss computes logits for. Pure arithmetic, for planner and trainer."""

from typing import Literal

LossChunk = int | Literal["auto", "off"]

AUTO_LOGITS_BYTES = 256 << 20
"""`auto` computes at most so many bytes of fp32 logits at once. With a vocabulary of 128k these are 512 tokens: enough
rows to keep a GPU's matrix units busy."""
LEAST_TOKENS, ALIGNMENT = 128, 128
"""Chunks are multiples of the tile that GPU matrix kernels compute at once."""


def loss_chunk_tokens(setting: LossChunk, micro_batch_tokens: int, vocab_size: int) -> int | None:
    """Tokens whose logits are computed at once; None: those of the whole micro batch, the plain way.

    `micro_batch_tokens`: the most that a micro batch can hold (samples times sequence length).
    """
    if setting == "off":
        return None
    if setting != "auto":
        return setting
    most = max(LEAST_TOKENS, AUTO_LOGITS_BYTES // (4 * vocab_size) // ALIGNMENT * ALIGNMENT)
    return None if micro_batch_tokens <= most else most

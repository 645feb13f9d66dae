"""`model` and `tokenizer`: the model to train, and how text becomes token ids."""

from typing import Literal

from pydantic import Field, JsonValue

from orchestrator.spec.spec_base import SpecModel

Architecture = Literal["gpt2", "gpt_neo", "llama", "mistral", "qwen2", "qwen3", "bert", "rwkv", "mamba"]


class ModelSpec(SpecModel):
    """A model from scratch (`architecture` and `config`) or from weights (`pretrained`)."""

    architecture: Architecture | None = None
    """Hugging Face architecture to build with fresh weights, e.g. `gpt2`. Excludes `pretrained`."""

    config: dict[str, JsonValue] = Field(default_factory=dict)
    """Fields of the architecture's Hugging Face config, under their own names (`n_layer`, `hidden_size`, ...).
    Unknown names are errors. The vocabulary size, the special token ids and, unless given, the number of
    positions come from the tokenizer and `data.sequence_length`. Dropout is 0 unless set here."""

    pretrained: str | None = None
    """Path of a Hugging Face model directory, relative to the job file, or a hub id such as `gpt2`. Its weights must
    be exactly those of the model that its config.json describes. Excludes `architecture`."""

    revision: str | None = None
    """Branch, tag or commit of the hub repository in `pretrained`."""

    attention: Literal["auto", "sdpa", "flash", "eager"] = "auto"
    """How attention is computed. `sdpa`: torch's fused kernels. `flash`: the package flash-attn, on GPUs in bf16 or
    fp16. `eager`: plain matrix products, slow. `auto`: `sdpa` if the architecture has it, else `eager`."""


class TokenizerTrainSpec(SpecModel):
    """Train a byte-level BPE tokenizer on the training corpus."""

    vocab_size: int = Field(default=8192, ge=260, le=1_000_000)
    """Number of tokens, the 256 bytes and the special tokens included."""

    min_frequency: int = Field(default=2, ge=1)
    """A pair of tokens is merged only if it occurs at least this often."""

    sample_bytes: int = Field(default=64_000_000, ge=1)
    """At most this much text is read to train the tokenizer, spread evenly over the corpus."""


class TokenizerSpec(SpecModel):
    """Exactly one of `pretrained` and `train`; with neither, the one of `model.pretrained` is used."""

    pretrained: str | None = None
    """Path of a tokenizer directory or `tokenizer.json`, or a hub id."""

    train: TokenizerTrainSpec | None = None
    """Train a tokenizer on the corpus of this job."""

"""The sizes of a model that memory depends on, from the fields of a Hugging Face config. Pure."""

from dataclasses import dataclass

from orchestrator.json_values import JsonFields, JsonObject
from orchestrator.spec.job import JobSpec


@dataclass(frozen=True)
class ModelShape:
    """What the estimates depend on."""

    parameters: int
    layers: int
    width: int
    heads: int
    vocab_size: int
    inner: int = 0
    """Width of the feed-forward layers; 0: four times `width`."""
    query_width: int = 0
    """Heads times their size; 0: `width`."""
    key_value_width: int = 0
    """Key-value heads times their size; 0: `query_width`."""
    architecture: str = ""
    """Hugging Face's `model_type`; empty if it is not known."""

    @property
    def feed_forward_width(self) -> int:
        return self.inner or 4 * self.width

    @property
    def attention_widths(self) -> tuple[int, int]:
        """Of the queries, and of the keys (the values are as wide)."""
        query = self.query_width or self.width
        return query, self.key_value_width or query

    @property
    def largest_parameter(self) -> int:
        """Elements of the largest matrix."""
        return self.width * max(self.vocab_size, self.feed_forward_width)


WIDTH = ("n_embd", "hidden_size", "d_model")
LAYERS = ("n_layer", "num_layers", "num_hidden_layers")
HEADS = ("n_head", "num_heads", "num_attention_heads")
INNER = ("n_inner", "intermediate_size")
KEY_VALUE_HEADS = ("num_key_value_heads",)
HEAD_SIZE = ("head_dim",)

GATED = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Architectures whose feed-forward layers have three matrices instead of two."""


@dataclass(frozen=True)
class Defaults:
    """What an architecture's Hugging Face config takes for fields that are not given."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    inner: int | None = None
    key_value_heads: int | None = None
    head_size: int | None = None
    inner_times: int = 4
    """Widths of the feed-forward layers in terms of `width`, if `inner` is None."""
    tied: bool | None = None
    """Whether the embeddings are the head's weights too; None: unless the feed-forward layers are gated."""


ARCHITECTURES = {
    "gpt2": Defaults(),
    "bert": Defaults(inner=3072),
    "gpt_neo": Defaults(2048, 24, 16),
    "llama": Defaults(4096, 32, 32, 11008),
    "mistral": Defaults(4096, 32, 32, 14336, 8),
    "qwen2": Defaults(4096, 32, 32, 22016, 32),
    "qwen3": Defaults(4096, 32, 32, 22016, 32, 128),
    "rwkv": Defaults(4096, 32, tied=False),
    "mamba": Defaults(768, 32, inner_times=2),
}


def model_shape(config: JsonFields, vocab_size: int) -> ModelShape:
    """Shape from a Hugging Face config's fields. What is missing has the default of the architecture in `model_type`,
    or GPT-2 small's without one.

    Parameters: embeddings V h (twice if they are not tied), and per layer attention h (2 q + 2 k), with q and k the
    widths of queries and keys, and a feed-forward of two matrices h x i, or three if it is gated (Llama's kind, known
    by its name, or else its key-value heads or `hidden_act: silu`). Biases, norms and positions are left out.
    """
    architecture = str(config.get("model_type") or "")
    default = ARCHITECTURES.get(architecture, ARCHITECTURES["gpt2"])
    width = _first(config, WIDTH, default.width)
    layers = _first(config, LAYERS, default.layers)
    heads = max(1, _first(config, HEADS, default.heads))
    head_size = _first(config, HEAD_SIZE, default.head_size or max(1, width // heads))
    inner = _first(config, INNER, default.inner or default.inner_times * width)
    query = heads * head_size
    key_value = _first(config, KEY_VALUE_HEADS, default.key_value_heads or heads) * head_size
    if architecture in ARCHITECTURES:
        gated = architecture in GATED
    else:
        gated = "num_key_value_heads" in config or config.get("hidden_act") == "silu"
    tied = config.get("tie_word_embeddings", not gated if default.tied is None else default.tied)
    embeddings = vocab_size * width * (1 if tied else 2)
    parameters = embeddings + layers * width * (2 * query + 2 * key_value + (3 if gated else 2) * inner)
    return ModelShape(parameters, layers, width, heads, vocab_size, inner, query, key_value, architecture)


def known_config(spec: JobSpec, found: JsonFields | None) -> JsonObject:
    """The model's config as far as it is known without loading a library. `found`: of the pretrained model's
    config.json, if it is here; the spec's own fields win."""
    named: JsonObject = {"model_type": spec.model.architecture} if spec.model.architecture is not None else {}
    return {**(found or {}), **named, **spec.model.config}


def known_vocab_size(spec: JobSpec, config: JsonFields) -> int | None:
    """Tokens of the vocabulary, if they are known before the tokenizer is loaded or trained."""
    if spec.tokenizer.train is not None:
        return spec.tokenizer.train.vocab_size
    found = config.get("vocab_size")
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def _first(config: JsonFields, names: tuple[str, ...], default: int) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return default

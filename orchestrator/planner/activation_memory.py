"""What autograd keeps of a forward pass of a transformer, and what the loss takes. Pure arithmetic.

Counted of the eager implementations in transformers 5, by the tensors that each operation saves for its backward pass,
in bytes of one token: b bytes a value, width h, feed-forward width i, widths q of queries and k of keys, a heads, n
tokens a sample. (Korthikanti et al., arXiv:2205.05198, equation 1, count the same for a GPT with dropout, without what
eager mode adds.)

- Normalisation: input and output, 2 b h; an RMS norm keeps an fp32 copy of its input and the normalised values too,
  (4 + 2 b) h. Two of them in a layer. Those on queries and keys (qwen3): (4 + b) (q + k).
- Attention without a matrix (`sdpa`, which is flash attention on CUDA): queries, keys, values and the output, and a
  number for each head: b (2 q + 2 k) + 4 a. `eager` keeps n probabilities for each head, a n b; Llama's kind computes
  them in fp32 and keeps that too, a n 4, and keys and values that are copied for each query head, 2 b (q - k).
- Feed-forward: gated 4 b i (gate, its activation, the other half, their product); with `gelu_new`, which transformers
  writes in Python, 5 b i; with torch's gelu 2 b i.

Loss: cross entropy in fp32 of all logits (`train.tasks.summed_cross_entropy`).
"""

from dataclasses import dataclass

from orchestrator.planner.model_shape import ModelShape
from orchestrator.spec.job import JobSpec


@dataclass(frozen=True)
class Layer:
    """How one layer of an architecture is computed."""

    rms_norm: bool
    feed_forward_tensors: int
    """Tensors of the feed-forward's width that are kept."""
    query_key_norm: bool = False
    fused_attention: bool = True
    """There is an implementation without a matrix of tokens times tokens."""
    fp32_probabilities: bool = False
    """Eager attention computes its probabilities in fp32."""
    fp32_products: bool = False
    """Eager attention multiplies queries and keys in fp32."""
    recurrent: tuple[int, int] | None = None
    """Of a layer without attention: for each token and each element of the width, bytes in fp32, and values in the
    precision of training."""


LAYERS = {
    "gpt2": Layer(False, 5),
    "gpt_neo": Layer(False, 5, fused_attention=False, fp32_probabilities=True, fp32_products=True),
    "bert": Layer(False, 2),
    "llama": Layer(True, 4, fp32_probabilities=True),
    "mistral": Layer(True, 4, fp32_probabilities=True),
    "qwen2": Layer(True, 4, fp32_probabilities=True),
    "qwen3": Layer(True, 4, query_key_norm=True, fp32_probabilities=True),
    # Measured, of transformers' own implementations, without the kernels of mamba_ssm and rwkv.
    "mamba": Layer(True, 0, recurrent=(512, 0)),
    "rwkv": Layer(False, 0, recurrent=(48, 25)),
}
UNKNOWN = Layer(True, 5, fused_attention=False, fp32_probabilities=True)
"""Of an architecture that is not in the table: rather too much."""
FP32 = 4
WORKING_LAYERS = 1.35
"""What a layer's backward pass takes besides what is kept, as a multiple of what the layer keeps: measured on CPUs,
0.45 (gpt2) to 1.35 (llama)."""


@dataclass(frozen=True)
class Activations:
    """Bytes of one sample."""

    kept_bytes: int
    """From the forward to the backward pass."""
    working_bytes: int
    """While a layer's backward pass runs; with checkpointing that layer's own activations too."""
    logits_bytes: int
    """While the loss is computed; of a chunked loss only the part that grows with the micro batch."""
    loss_bytes: int
    """Of a chunked loss, whatever the micro batch: one chunk's logits and their gradients."""


def activations(
    spec: JobSpec, shape: ModelShape, attention: str = "sdpa", loss_chunk_tokens: int | None = None
) -> Activations:
    """What one sample takes. `attention`: `sdpa`, `flash` or `eager`. `loss_chunk_tokens`: the loss is computed of so
    many tokens at a time, and no more than one chunk's logits exist; None: of all at once."""
    value = FP32 if spec.train.precision == "fp32" else 2
    layer = LAYERS.get(shape.architecture, UNKNOWN)
    fused = layer.fused_attention and attention != "eager"
    tokens, width = spec.data.sequence_length, shape.width
    of_layer = tokens * _layer_bytes(layer, shape, value, tokens, fused)
    stream = tokens * value * width
    norm = tokens * _norm_bytes(layer, width, value)
    working = int(WORKING_LAYERS * of_layer)
    if spec.train.activation_checkpointing:
        kept, working = shape.layers * stream + norm, of_layer + working
    else:
        kept = shape.layers * of_layer + norm
    logits, loss = tokens * shape.vocab_size * logits_bytes(value), 0
    if loss_chunk_tokens is not None:
        # Kept while the chunks are gone through: the gradients of what goes into the head and, in fp32, of its weight.
        # Of one chunk: the logarithms of the probabilities, and the gradient that is made of them.
        logits = stream
        loss = shape.vocab_size * FP32 * (2 * loss_chunk_tokens + width)
    return Activations(kept, working, logits, loss)


def logits_bytes(value: int) -> int:
    """Of one token and one entry of the vocabulary, at the peak: the fp32 logarithms of the probabilities, the gradient
    with respect to them, and the gradient with respect to the logits."""
    return 3 * FP32


def _layer_bytes(layer: Layer, shape: ModelShape, value: int, tokens: int, fused: bool) -> int:
    query, key = shape.attention_widths
    if layer.recurrent is not None:
        return (layer.recurrent[0] + value * layer.recurrent[1]) * shape.width
    kept = 2 * _norm_bytes(layer, shape.width, value)
    kept += value * (2 * query + 2 * key) + (FP32 * shape.heads if fused else 0)
    if layer.query_key_norm:
        kept += (FP32 + value) * (query + key)
    if not fused:
        probability = value + (FP32 if layer.fp32_probabilities and value != FP32 else 0)
        kept += probability * shape.heads * tokens + 2 * value * (query - key)
        kept += (FP32 - value) * (query + key) if layer.fp32_products else 0
    return kept + layer.feed_forward_tensors * value * shape.feed_forward_width


def _norm_bytes(layer: Layer, width: int, value: int) -> int:
    return width * (2 * value + (FP32 if layer.rms_norm else 0))

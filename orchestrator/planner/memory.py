"""How much memory a worker needs, and the largest micro batch that fits. Pure arithmetic over a job spec.

Model state, per worker, P parameters, W workers (Rajbhandari et al., arXiv:1910.02054, section 3): weights 4 P bytes
in fp32, 2 P in 16 bits; gradients as much; optimizer (fp32 master where weights are 16 bits, and two moments) 8 P or
12 P. Stage 1 divides the optimizer's part by W, stage 2 gradients too, stage 3 weights too. What is offloaded to the
host counts there, not on the device.

Activations of one sample, L layers, width h, n tokens, a heads, b bytes a value (Korthikanti et al.,
arXiv:2205.05198, equation 1, without tensor parallelism): L n h b (17 + 2.5 a n / h), or with checkpointing L n h b
and one layer in full. The logits and their gradient, and the fp32 copy the loss makes, come on top: n V (2 b + 8).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.spec.job import JobSpec

USABLE = 0.8
"""Share of memory that may be planned for: the rest is fragmentation, collectives' buffers, the estimate's error."""
PROCESS_BYTES = 700 * 1024 * 1024
"""A worker with torch and DeepSpeed imported, before it has a model."""
MAX_MICRO_BATCH = 1024


@dataclass(frozen=True)
class ModelShape:
    """What the estimate depends on."""

    parameters: int
    layers: int
    width: int
    heads: int
    vocab_size: int


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes on the device of one worker."""

    fixed_bytes: int
    """Weights, gradients, optimizer."""
    per_sample_bytes: int
    """Activations of one sample of a micro batch."""

    def total_bytes(self, micro_batch: int) -> int:
        return self.fixed_bytes + micro_batch * self.per_sample_bytes


WIDTH = ("n_embd", "hidden_size", "d_model")
LAYERS = ("n_layer", "num_layers", "num_hidden_layers")
HEADS = ("n_head", "num_heads", "num_attention_heads")
INNER = ("n_inner", "intermediate_size")
KEY_VALUE_HEADS = ("num_key_value_heads",)


def model_shape(config: Mapping[str, Any], vocab_size: int) -> ModelShape:
    """Shape from a Hugging Face config's fields; what is missing counts as GPT-2 small's.

    Parameters: embeddings V h (twice where they are not tied), and per layer attention 2 h^2 (1 + k / a) and a
    feed-forward of two matrices h x i, or three where it is gated (Llama's kind, known by its key-value heads or
    `hidden_act: silu`).
    """
    width = _first(config, WIDTH, 768)
    layers = _first(config, LAYERS, 12)
    heads = max(1, _first(config, HEADS, 12))
    inner = _first(config, INNER, 4 * width)
    key_value = _first(config, KEY_VALUE_HEADS, heads)
    gated = "num_key_value_heads" in config or config.get("hidden_act") == "silu"
    attention = 2 * width * width * (1 + key_value / heads)
    embeddings = vocab_size * width * (1 if config.get("tie_word_embeddings", not gated) else 2)
    parameters = embeddings + layers * int(attention + (3 if gated else 2) * width * inner)
    return ModelShape(int(parameters), layers, width, heads, vocab_size)


def memory_need(spec: JobSpec, shape: ModelShape, workers: int) -> MemoryNeed:
    """The formula of this module's docstring."""
    value = 4 if spec.train.precision == "fp32" else 2
    stage, parameters = spec.zero.stage, shape.parameters
    weights = value * parameters / (workers if stage >= 3 else 1)
    gradients = value * parameters / (workers if stage >= 2 else 1)
    optimizer = (8 if value == 4 else 12) * parameters / (workers if stage >= 1 else 1)
    on_gpu = spec.resources.gpus_per_worker > 0
    if on_gpu and spec.zero.offload_optimizer.device != "none":
        optimizer = 0.0
    if on_gpu and spec.zero.offload_params.device != "none":
        weights = 0.0
    tokens = spec.data.sequence_length
    layer = tokens * shape.width * value * (17 + 2.5 * shape.heads * tokens / shape.width)
    kept = tokens * shape.width * value
    activations = shape.layers * kept + layer if spec.train.activation_checkpointing else shape.layers * layer
    logits = tokens * shape.vocab_size * (2 * value + 8)
    process = 0 if on_gpu else PROCESS_BYTES
    return MemoryNeed(int(weights + gradients + optimizer) + process, int(activations + logits))


def largest_micro_batch(need: MemoryNeed, memory_bytes: int, share: int) -> int:
    """The largest micro batch that fits, at most a worker's share of the global batch; of those that need the same
    number of micro steps, the smallest, so that they are even. At least 1: the estimate may be wrong."""
    fits = (USABLE * memory_bytes - need.fixed_bytes) // max(1, need.per_sample_bytes)
    most = int(max(1, min(fits, share, MAX_MICRO_BATCH)))
    steps = -(-share // most)
    return -(-share // steps)


def _first(config: Mapping[str, Any], names: tuple[str, ...], default: int) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return default

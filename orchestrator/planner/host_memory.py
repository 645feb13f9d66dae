"""How much host memory a worker on CPUs needs, and the largest micro batch that fits. Pure arithmetic over a job spec.

Workers on GPUs are planned by `device_memory`, which counts what DeepSpeed allocates on a device one by one.

Model state, per worker, P parameters, W workers (Rajbhandari et al., arXiv:1910.02054, section 3): weights 4 P bytes
in fp32, 2 P in 16 bits; gradients as much; optimizer (fp32 master where weights are 16 bits, and two moments) 8 P or
12 P. Stage 1 divides the optimizer's part by W, stage 2 gradients too, stage 3 weights too.

Activations of one sample, L layers, width h, n tokens, a heads, b bytes a value (Korthikanti et al.,
arXiv:2205.05198, equation 1, without tensor parallelism): L n h b (17 + 2.5 a n / h), or with checkpointing L n h b
and one layer in full. The logits and their gradient, and the fp32 copy the loss makes, come on top: n V (2 b + 8).
"""

from dataclasses import dataclass

from orchestrator.planner.model_shape import ModelShape
from orchestrator.spec.job import JobSpec

USABLE = 0.8
"""Share of memory that may be planned for: the rest is fragmentation, collectives' buffers, the estimate's error."""
PROCESS_BYTES = 700 * 1024 * 1024
"""A worker with torch and DeepSpeed imported, before it has a model."""
MAX_MICRO_BATCH = 1024


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of host memory of one worker."""

    fixed_bytes: int
    """Weights, gradients, optimizer."""
    per_sample_bytes: int
    """Activations of one sample of a micro batch."""

    def total_bytes(self, micro_batch: int) -> int:
        return self.fixed_bytes + micro_batch * self.per_sample_bytes


def memory_need(spec: JobSpec, shape: ModelShape, workers: int) -> MemoryNeed:
    """The formula of this module's docstring, for a worker on CPUs."""
    value = 4 if spec.train.precision == "fp32" else 2
    stage, parameters = spec.zero.stage, shape.parameters
    weights = value * parameters / (workers if stage >= 3 else 1)
    gradients = value * parameters / (workers if stage >= 2 else 1)
    optimizer = (8 if value == 4 else 12) * parameters / (workers if stage >= 1 else 1)
    tokens = spec.data.sequence_length
    layer = tokens * shape.width * value * (17 + 2.5 * shape.heads * tokens / shape.width)
    kept = tokens * shape.width * value
    activations = shape.layers * kept + layer if spec.train.activation_checkpointing else shape.layers * layer
    logits = tokens * shape.vocab_size * (2 * value + 8)
    return MemoryNeed(int(weights + gradients + optimizer) + PROCESS_BYTES, int(activations + logits))


def largest_micro_batch(need: MemoryNeed, memory_bytes: int, share: int) -> int:
    """The largest micro batch that fits, at most a worker's share of the global batch; of those that need the same
    number of micro steps, the smallest, so that they are even. At least 1: the estimate may be wrong."""
    fits = (USABLE * memory_bytes - need.fixed_bytes) // max(1, need.per_sample_bytes)
    most = int(max(1, min(fits, share, MAX_MICRO_BATCH)))
    steps = -(-share // most)
    return -(-share // steps)

"""How much memory a worker needs on its GPU, part by part, and the largest micro batch that fits. Pure arithmetic.

Three moments count: the end of the forward pass (all activations and the logits), the backward pass (activations, one
layer's work, buckets of gradients), and the end of the step (no activations, but copies that the reduction and the
update make). What is not a tensor of DeepSpeed or of autograd comes on top: the CUDA context, and NCCL's buffers.
"""

from dataclasses import dataclass

from orchestrator.domain.devices.device_room import CONTEXT_BYTES, DeviceRoom
from orchestrator.domain.loss_chunks import loss_chunk_tokens
from orchestrator.planner.activation_memory import Activations, activations
from orchestrator.planner.host_memory import MAX_MICRO_BATCH
from orchestrator.planner.model_shape import ModelShape
from orchestrator.planner.zero_memory import WHOLE_MODEL_AT_BUILD, ZeroMemory, zero_memory
from orchestrator.spec.job import JobSpec

USABLE = 0.92
"""Share of a GPU's memory that is planned for; the rest is fragmentation and the error of the estimate."""
COMMUNICATOR_BYTES = 480 << 20
"""Of one NCCL communicator: 10 MiB of buffers a connection (https://github.com/NVIDIA/nccl/issues/1685), a ring of 24
channels with two connections each."""
COMMUNICATORS = 2
"""torch's default group, and DeepSpeed's clone of it (`deepspeed/utils/groups.py`, `_clone_world_group`)."""


@dataclass(frozen=True)
class DeviceNeed:
    """Bytes on the GPU of one worker."""

    context_bytes: int
    communicators_bytes: int
    zero: ZeroMemory
    sample: Activations

    @property
    def fixed_bytes(self) -> int:
        """What is there all the time, from the first step on."""
        return sum(self.fixed_parts.values())

    @property
    def states_bytes(self) -> int:
        """Weights, gradients and optimizer state: known to the byte."""
        zero = self.zero
        return zero.weights_bytes + zero.gradients_bytes + zero.accumulators_bytes + zero.optimizer_bytes

    @property
    def build_bytes(self) -> int:
        """The most that there is at a time while the engine is built: no micro batch makes it smaller."""
        return self.context_bytes + self.communicators_bytes + self.zero.build_bytes

    def forward_bytes(self, micro_batch: int) -> int:
        """Beside `fixed_bytes` at the end of the forward pass."""
        sample = self.sample
        return micro_batch * (sample.kept_bytes + sample.logits_bytes) + sample.loss_bytes

    def backward_bytes(self, micro_batch: int) -> int:
        """Beside `fixed_bytes` in the backward pass."""
        return micro_batch * (self.sample.kept_bytes + self.sample.working_bytes) + self.zero.reducing_bytes

    def total_bytes(self, micro_batch: int) -> int:
        """The peak of a step, or of building the engine."""
        moments = (self.forward_bytes(micro_batch), self.backward_bytes(micro_batch), self.zero.update_bytes)
        return max(self.build_bytes, self.fixed_bytes + max(moments))

    @property
    def fixed_parts(self) -> dict[str, int]:
        """`fixed_bytes` by part."""
        zero = self.zero
        return {
            "context": self.context_bytes,
            "communicators": self.communicators_bytes,
            "weights": zero.weights_bytes,
            "gradients": zero.gradients_bytes,
            "gradient accumulators": zero.accumulators_bytes,
            "optimizer": zero.optimizer_bytes,
            "buckets": zero.buckets_bytes,
            "gathered weights": zero.gathered_bytes,
        }

    def parts(self, micro_batch: int) -> dict[str, int]:
        """Bytes by part, without those that are nothing; they add up to `total_bytes`."""
        zero, sample, found = self.zero, self.sample, self.fixed_parts
        forward, backward = self.forward_bytes(micro_batch), self.backward_bytes(micro_batch)
        if self.build_bytes > self.fixed_bytes + max(forward, backward, zero.update_bytes):
            building = {"context": self.context_bytes, "communicators": self.communicators_bytes}
            found = {**building, "building the engine": zero.build_bytes}
        elif zero.update_bytes >= max(forward, backward):
            found["copies for the update"] = zero.update_bytes
        else:
            found["activations"] = micro_batch * sample.kept_bytes
            if forward >= backward:
                found["logits and loss"] = micro_batch * sample.logits_bytes + sample.loss_bytes
            else:
                found["backward pass"] = micro_batch * sample.working_bytes
                found["reducing gradients"] = zero.reducing_bytes
        return {name: size for name, size in found.items() if size}


@dataclass(frozen=True)
class Assumptions:
    """What a need depends on besides the job."""

    attention: str = "sdpa"
    """`sdpa`, `flash` or `eager`."""
    loss_chunk_tokens: int | None = None
    """See `activation_memory`."""
    whole_model_at_build: bool = WHOLE_MODEL_AT_BUILD
    context_bytes: int = CONTEXT_BYTES
    communicator_bytes: int = COMMUNICATOR_BYTES


EVERYTHING_TOKENS = 1 << 40
"""More than any micro batch has."""


def assumed_of(spec: JobSpec, shape: ModelShape) -> Assumptions:
    """What a job's own settings say of its execution."""
    attention = "sdpa" if spec.model.attention == "auto" else spec.model.attention
    chunk = loss_chunk_tokens(spec.train.loss_chunk_tokens, EVERYTHING_TOKENS, shape.vocab_size)
    return Assumptions(attention, chunk)


def device_need(spec: JobSpec, shape: ModelShape, workers: int, assumed: Assumptions | None = None) -> DeviceNeed:
    """What one of `workers` needs on its GPU. `assumed`: default, as the job says."""
    assumed = assumed if assumed is not None else assumed_of(spec, shape)
    return DeviceNeed(
        context_bytes=assumed.context_bytes,
        # A group of one connects to nobody.
        communicators_bytes=COMMUNICATORS * assumed.communicator_bytes if workers > 1 else 0,
        zero=zero_memory(spec, shape, workers, assumed.whole_model_at_build),
        sample=activations(spec, shape, assumed.attention, assumed.loss_chunk_tokens),
    )


def largest_device_batch(need: DeviceNeed, usable_bytes: int, share: int) -> int:
    """The largest micro batch that fits in `usable_bytes`, at most a worker's share of the global batch; of those that
    need the same number of micro steps, the smallest. At least 1: the estimate may be wrong."""
    low, high = 1, max(1, min(share, MAX_MICRO_BATCH))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if need.total_bytes(middle) <= usable_bytes else (low, middle - 1)
    steps = -(-share // low)
    return -(-share // steps)


def plannable_bytes(room: DeviceRoom) -> int:
    """What may be planned for on a GPU: of what others leave, all but a reserve."""
    return int(USABLE * room.usable_bytes)

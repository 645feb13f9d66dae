"""`train` and `zero`: the optimisation itself, and how its state is sharded."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, JsonValue

from orchestrator.spec.spec_base import SpecModel

Beta = Annotated[float, Field(ge=0, lt=1)]


def _list_to_tuple(value: object) -> object:
    """YAML and JSON know lists only."""
    return tuple(value) if isinstance(value, list) else value


class OptimizerSpec(SpecModel):
    """The optimizer. Weight decay is applied to matrices only, never to biases and norms."""

    name: Literal["adamw"] = "adamw"
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101)."""

    betas: Annotated[tuple[Beta, Beta], BeforeValidator(_list_to_tuple)] = (0.9, 0.95)
    """Decay rates of the first and second moment, each in [0, 1)."""

    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator of the update."""

    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay."""


class TrainSpec(SpecModel):
    """How long training lasts, the batch sizes and the learning rate."""

    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps to train. Exactly one of `steps`, `tokens` and `epochs`."""

    tokens: int | None = Field(default=None, ge=1)
    """Tokens to train, rounded up to a whole step."""

    epochs: float | None = Field(default=None, gt=0)
    """Passes over the training samples, rounded up to a whole step."""

    global_batch: int = Field(ge=1)
    """Samples per optimizer step over all workers. It does not depend on the number of workers."""

    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Samples that a worker computes at once; the rest is gradient accumulation.
    `auto`: the largest that the planner expects to fit in memory."""

    optimizer: OptimizerSpec = Field(default_factory=OptimizerSpec)
    """The optimizer."""

    lr: float = Field(gt=0)
    """Peak learning rate."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate after warm-up: falls to `min_lr_ratio` x `lr` at the last step, or remains constant."""

    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises linearly from 0."""

    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    """Learning rate at the last step as a share of `lr`."""

    clip_grad_norm: float | None = Field(default=1.0, gt=0)
    """Gradients are scaled down to this global L2 norm; `null` turns clipping off."""

    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Seed of weights, data order and dropout."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the forward and backward pass; masters and moments are fp32. fp16 needs a GPU. On GPUs bf16 is
    several times faster than fp32."""

    tf32: bool = True
    """On GPUs, compute matrix products of `precision: fp32` in TF32: several times faster, with 10 bits of mantissa
    instead of 23. `false`: full fp32. No effect on CPUs and in other precisions."""

    deterministic: bool = False
    """Use deterministic kernels only, so that on GPUs the same job gives bit-identical numbers on the same number of
    GPUs of the same kind with the same software, also when it continues from a checkpoint. Slower. An operation that
    has no such kernel ends the run. CPUs compute deterministically without it."""

    compile: Literal["off", "blocks"] = "off"
    """`blocks`: compile the repeated blocks of the model with torch's compiler. The first step takes up to a minute
    longer, as does the first one after a recovery. Not at `zero.stage: 3`. Needs a C++ compiler on every node."""

    activation_checkpointing: bool = False
    """Keep only the inputs of the model's blocks, and recompute a block's activations in its backward pass."""

    loss_chunk_tokens: Annotated[int, Field(ge=1)] | Literal["auto", "off"] = "auto"
    """Compute the loss from the last hidden states this many tokens at a time, so that the logits of all tokens are
    never in memory together. `off`: all tokens of a micro batch at once. `auto`: in chunks of 256 MiB of fp32 logits if
    the micro batch's logits are larger than that. The losses are the same up to rounding."""

    eval_interval_steps: int | None = Field(default=None, ge=1)
    """Measure the validation loss every this many steps. Default: before the first and after the last step only."""

    mlm_probability: float = Field(default=0.15, gt=0, lt=1)
    """Share of tokens masked when the model is a masked language model (BERT)."""


class OffloadSpec(SpecModel):
    """Where a part of the state is kept instead of on the device."""

    device: Literal["none", "cpu"] = "none"
    """`cpu`: host memory. DeepSpeed's `nvme` is not supported: state on a disk can be neither saved nor restored."""


class ZeroSpec(SpecModel):
    """ZeRO (Rajbhandari et al., arXiv:1910.02054): how training state is sharded over the workers."""

    stage: int = Field(default=1, ge=0, le=3)
    """What is sharded. 0: nothing. 1: optimizer state. 2: also gradients. 3: also parameters."""

    offload_optimizer: OffloadSpec = Field(default_factory=OffloadSpec)
    """Where optimizer state is kept. Stages 1 to 3. With `cpu`, a worker that has a GPU updates the parameters with its
    share of the host's cores, whatever `resources.cpus_per_worker` is, unless `OMP_NUM_THREADS` is set."""

    offload_params: OffloadSpec = Field(default_factory=OffloadSpec)
    """Where parameters are kept. Stage 3."""

    deepspeed: dict[str, JsonValue] = Field(default_factory=dict)
    """Passed through to DeepSpeed's config. A key that the spec itself decides is an error."""


def steps_for_tokens(tokens: int, global_batch: int, sequence_length: int) -> int:
    """Optimizer steps that use at least that many tokens."""
    return max(1, -(-tokens // (global_batch * sequence_length)))

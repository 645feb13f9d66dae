"""What DeepSpeed 0.19.8 allocates on a worker's device besides activations. Pure arithmetic over a job spec.

Each formula follows the class that DeepSpeed takes for a stage and a precision
(`deepspeed/runtime/engine.py`, `_do_optimizer_sanity_check`); its module names it. P parameters, W workers, v bytes a
weight, R elements of `reduce_bucket_size`.
"""

from dataclasses import dataclass, replace

from orchestrator.json_values import JsonFields
from orchestrator.planner.model_shape import ModelShape
from orchestrator.spec.job import JobSpec

FP32, FP16 = 4, 2
MOMENTS = 8
"""Bytes of Adam's two fp32 moments."""
MASTER = 4
DOUBLE = 8
GRADIENTS_AT_ONCE = 3
"""Of the largest parameter, before they are reduced: one that is used twice (tied embeddings) has two, and a sum."""
STAGE_0_BUCKET_ELEMENTS = 500_000_000
"""`MEMORY_OPT_ALLREDUCE_SIZE` of engine.py: of the all-reduce that is not a ZeRO optimizer's own."""
DTYPE_BYTES = {"fp32": FP32, "fp16": FP16, "bf16": FP16, "bfp16": FP16}
WHOLE_MODEL_AT_BUILD = False
"""At stage 3 each rank's model holds only the rank's share of each parameter (`train.shares`). A model that was built
plainly would be moved to the device as a whole before it is partitioned
(`DeepSpeedEngine._configure_distributed_model`)."""


@dataclass(frozen=True)
class ZeroSettings:
    """Sizes of DeepSpeed's buffers, with its defaults (`deepspeed/runtime/zero/config.py`)."""

    reduce_elements: int = 500_000_000
    overlap_comm: bool | None = None
    """None: at stage 3, and at stages 1 and 2 of several workers on GPUs that offload nothing."""
    max_live_elements: int = 1_000_000_000
    sub_group_elements: int = 1_000_000_000
    contiguous_gradients: bool = True
    communication_bytes: int | None = None
    """Of a gradient's value while it is reduced; None: as many as a weight has (`engine.communication_data_type`)."""

    @classmethod
    def of(cls, passed: JsonFields) -> "ZeroSettings":
        """From `zero.deepspeed` of a job."""
        found = passed.get("zero_optimization")
        zero = found if isinstance(found, dict) else {}
        overlap, contiguous = zero.get("overlap_comm"), zero.get("contiguous_gradients")
        return cls(
            reduce_elements=_elements(zero, "reduce_bucket_size", cls.reduce_elements),
            overlap_comm=overlap if isinstance(overlap, bool) else None,
            max_live_elements=_elements(zero, "stage3_max_live_parameters", cls.max_live_elements),
            sub_group_elements=_elements(zero, "sub_group_size", cls.sub_group_elements),
            contiguous_gradients=contiguous if isinstance(contiguous, bool) else True,
            communication_bytes=DTYPE_BYTES.get(str(passed.get("communication_data_type"))),
        )


@dataclass(frozen=True)
class ZeroMemory:
    """Bytes on one device."""

    weights_bytes: int
    """What forward and backward use, in the precision of training."""
    gradients_bytes: int
    """`parameter.grad`, in the precision of training, from the first backward pass on."""
    accumulators_bytes: int
    """The buffer in which gradients of the micro steps are added up, if that is not `parameter.grad`."""
    optimizer_bytes: int
    """fp32 masters and moments."""
    moments_bytes: int
    """Of these, what the first update allocates."""
    buckets_bytes: int
    """Buffers of the gradients' reduction that stay from one micro step to the next."""
    gathered_bytes: int
    """Stage 3: weights of other workers that are here at a time."""
    reducing_bytes: int
    """Beside the rest while gradients are reduced during a backward pass."""
    update_bytes: int
    """Beside the rest at the end of a step, when there are no activations any more."""
    build_bytes: int
    """The most that there is at a time while the engine is built, all in all."""
    host_bytes: int
    """In host memory: what is offloaded."""


def zero_memory(
    spec: JobSpec, shape: ModelShape, workers: int, whole_model_at_build: bool = WHOLE_MODEL_AT_BUILD
) -> ZeroMemory:
    """What DeepSpeed allocates for this job's stage, precision and offload, as one of `workers`."""
    stage, precision = spec.zero.stage, spec.train.precision
    offload = spec.zero.offload_optimizer.device != "none"
    settings = ZeroSettings.of(spec.zero.deepspeed)
    if settings.overlap_comm is None and stage in (1, 2):  # as `train.deepspeed_config` sets it
        overlaps = spec.resources.gpus_per_worker > 0 and workers > 1 and not offload
        settings = replace(settings, overlap_comm=overlaps)
    inputs = _Inputs(
        shape.parameters,
        shape.largest_parameter,
        workers,
        FP32 if precision == "fp32" else FP16,
        settings,
    )
    if stage == 0:
        return _torch_optimizer(inputs) if precision == "fp32" else _unfused_optimizer(inputs)
    if stage == 1 and precision == "bf16" and not offload:
        return _bf16_optimizer(inputs)
    # For bf16 gradients are added up in fp32 (`train.deepspeed_config`), for fp16 in fp16.
    accumulated = FP32 if precision in ("fp32", "bf16") else FP16
    if stage <= 2:
        return _stage_1_and_2(inputs, stage, accumulated, offload)
    return _stage_3(inputs, accumulated, offload, spec.zero.offload_params.device != "none", whole_model_at_build)


@dataclass(frozen=True)
class _Inputs:
    parameters: int
    largest: int
    workers: int
    value: int
    """Bytes a weight."""
    settings: ZeroSettings

    @property
    def share(self) -> int:
        """Parameters of one partition."""
        return -(-self.parameters // self.workers)

    @property
    def communication(self) -> int:
        return self.settings.communication_bytes or self.value

    @property
    def bucket(self) -> int:
        """Elements that are reduced at a time."""
        return min(self.settings.reduce_elements, self.parameters)


def _reduced_alone(inputs: _Inputs, dtype_bytes: int) -> int:
    """`engine.allreduce_no_retain`: a bucket takes gradients until it has more than 500 M elements, is copied into one
    tensor (`flatten`), and that once more if it is sent in another precision."""
    elements = min(inputs.parameters, STAGE_0_BUCKET_ELEMENTS + inputs.largest)
    converted = inputs.communication if inputs.communication != dtype_bytes else 0
    return (dtype_bytes + converted) * elements


def _torch_optimizer(inputs: _Inputs) -> ZeroMemory:
    """Stage 0 in fp32: torch's AdamW itself, moments of every parameter on every worker."""
    p = inputs.parameters
    return ZeroMemory(
        weights_bytes=FP32 * p,
        gradients_bytes=FP32 * p,
        accumulators_bytes=0,
        optimizer_bytes=MOMENTS * p,
        moments_bytes=MOMENTS * p,
        buckets_bytes=0,
        gathered_bytes=0,
        reducing_bytes=0,
        update_bytes=_reduced_alone(inputs, FP32),
        build_bytes=FP32 * p,
        host_bytes=0,
    )


def _unfused_optimizer(inputs: _Inputs) -> ZeroMemory:
    """Stage 0 in 16 bits: `runtime/fp16/unfused_optimizer.py`, masters and moments of every parameter on every worker;
    a step makes an fp32 copy of all gradients."""
    p = inputs.parameters
    return ZeroMemory(
        weights_bytes=inputs.value * p,
        gradients_bytes=inputs.value * p,
        accumulators_bytes=0,
        optimizer_bytes=(MASTER + MOMENTS) * p,
        moments_bytes=MOMENTS * p,
        buckets_bytes=0,
        gathered_bytes=0,
        reducing_bytes=0,
        update_bytes=max(FP32 * p, _reduced_alone(inputs, inputs.value)),
        build_bytes=(2 * inputs.value + MASTER + MOMENTS + FP32) * p,  # it makes an update of zeros
        host_bytes=0,
    )


def _bf16_optimizer(inputs: _Inputs) -> ZeroMemory:
    """Stage 1 in bf16: `runtime/bf16_optimizer.py`. `_setup_for_real_optimizer` allocates fp32 gradients of all
    parameters on every worker (`fp32_groups_gradients_flat`, 4 P) beside those in bf16, which are zeroed and never
    freed (`clear_lp_grads`). They are reduced as one tensor for each of the two parameter groups, so of nearly all
    parameters at once, converted to bf16 for that (2 P) unless `communication_data_type` is fp32."""
    p, value = inputs.parameters, inputs.value
    converted = inputs.communication if inputs.communication != FP32 else 0
    masters = MASTER * inputs.share
    joined = FP32 if p <= STAGE_0_BUCKET_ELEMENTS else 0  # both groups in one bucket are copied into one tensor
    return ZeroMemory(
        weights_bytes=value * p,
        gradients_bytes=value * p,
        accumulators_bytes=FP32 * p,
        optimizer_bytes=(MASTER + MOMENTS) * inputs.share,
        moments_bytes=MOMENTS * inputs.share,
        buckets_bytes=0,
        gathered_bytes=0,
        reducing_bytes=0,
        update_bytes=max((converted + joined) * p, FP32 * inputs.largest),  # `lp.grad.to(fp32)`, one at a time
        build_bytes=value * p + max(value * p, value * inputs.share + masters, FP32 * p + masters),
        host_bytes=0,
    )


def _stage_1_and_2(inputs: _Inputs, stage: int, accumulated: int, offload: bool) -> ZeroMemory:
    """`runtime/zero/stage_1_and_2.py`. Masters are copies in fp32 too. `setup_buckets` allocates a whole
    `reduce_bucket_size`, twice with `overlap_comm`, however small the model is; `allreduce_bucket` copies it once
    (`flatten`), and once more if it is sent in another precision. The norm is computed in double precision, of one
    parameter at a time (`get_grad_norm_direct`)."""
    p, share, value, settings = inputs.parameters, inputs.share, inputs.value, inputs.settings
    # `use_grad_accum_attribute`: stage 1 whose gradients are added up in another precision than weights have.
    beside = stage == 1 and accumulated != value
    staged = accumulated if beside else value
    buffers = staged * settings.reduce_elements * (2 if settings.overlap_comm else 1)
    converted = inputs.communication if inputs.communication != staged else 0
    copies = (staged + converted) * inputs.bucket
    compact = accumulated == FP32 and accumulated != value  # `_use_compact_grad_partition_buffer`
    if stage == 1:
        gradients, accumulators = (0, accumulated * p) if beside else (value * p, 0)
    else:
        gradients, accumulators = 0, 0 if offload else (FP32 if compact else 2 * value) * share
    # `step` makes one tensor of what was added up, and an fp32 copy of it. Of two buffers at stage 2 one is free then.
    flattened = (accumulated if stage == 1 else 0) + (MASTER if accumulated != MASTER else 0)
    flattened = 0 if compact else flattened * share
    norm = DOUBLE * min(inputs.largest, share)
    moved = inputs.value * inputs.largest if offload else 0  # `temp_grad_buffer_for_gpu_offload`
    optimizer = (MASTER + MOMENTS) * share
    return ZeroMemory(
        weights_bytes=value * p,
        gradients_bytes=gradients,
        accumulators_bytes=accumulators,
        optimizer_bytes=0 if offload else optimizer,
        moments_bytes=0 if offload else MOMENTS * share,
        buckets_bytes=moved + (buffers if stage == 1 and settings.contiguous_gradients else 0),
        gathered_bytes=0,
        reducing_bytes=copies + buffers + GRADIENTS_AT_ONCE * value * inputs.largest if stage == 2 else 0,
        update_bytes=max(copies if stage == 1 else 0, 0 if offload else flattened, norm),
        build_bytes=max(2 * value * p, value * p + (0 if offload else (MASTER + FP32) * share)),
        host_bytes=optimizer + (FP32 + value) * share if offload else 0,
    )


def _stage_3(
    inputs: _Inputs, accumulated: int, offload: bool, offload_params: bool, whole_model_at_build: bool
) -> ZeroMemory:
    """`runtime/zero/stage3.py` and `partitioned_param_coordinator.py`. Masters are copies in fp32 too: the case in
    `_create_fp32_partitions` that would do without compares a torch.device with a name. One bucket is allocated when
    the engine is built (`_setup_for_real_optimizer`), `reduce_scatter_coalesced` copies it. Weights are fetched ahead
    until there are `stage3_max_live_parameters` (`fetch_sub_module`); a module's own are fetched in any case."""
    p, share, value, settings = inputs.parameters, inputs.share, inputs.value, inputs.settings
    optimizer = (MASTER + MOMENTS) * share
    bucket = inputs.communication * settings.reduce_elements if settings.contiguous_gradients else 0
    group = min(share, settings.sub_group_elements)
    live = min(p, settings.max_live_elements + inputs.largest) if inputs.workers > 1 or offload_params else 0
    weights = 0 if offload_params else value * share
    whole = value * p if whole_model_at_build else value * inputs.largest
    return ZeroMemory(
        weights_bytes=weights,
        gradients_bytes=0,
        accumulators_bytes=0 if offload else accumulated * share,
        optimizer_bytes=0 if offload else optimizer,
        moments_bytes=0 if offload else MOMENTS * share,
        buckets_bytes=bucket,
        gathered_bytes=value * live,
        reducing_bytes=inputs.communication * inputs.bucket + GRADIENTS_AT_ONCE * value * inputs.largest,
        update_bytes=0 if offload else accumulated * group + (MASTER * group if accumulated != MASTER else 0),
        # Partitions are made one parameter after the other, then put into one buffer (`defragment`).
        build_bytes=max(
            whole + weights,
            2 * weights + value * inputs.largest,
            weights + (0 if offload else MASTER * share + max(MASTER * group, accumulated * share)) + bucket,
        ),
        host_bytes=(optimizer + MASTER * share if offload else 0) + (value * share if offload_params else 0),
    )


def _elements(zero: JsonFields, name: str, default: int) -> int:
    """DeepSpeed takes `5e8` too, and `auto` is none of its own."""
    value = zero.get(name, default)
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else default

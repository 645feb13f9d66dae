"""The DeepSpeed config of a run: a pure function of the spec and the shape of the batch."""

from dataclasses import dataclass

from orchestrator.domain.devices.device import CUDA
from orchestrator.domain.errors import UsageError
from orchestrator.json_values import JsonFields, JsonObject, mapping, optional
from orchestrator.spec.job import JobSpec

# Keys of `zero.deepspeed` that change what the loss curve is, or that state capture cannot follow.
FORBIDDEN_ZERO_KEYS = frozenset({"round_robin_gradients"})


@dataclass(frozen=True)
class EngineShape:
    """What the config depends on besides the spec."""

    world_size: int
    micro_batch: int
    accumulation: int
    device: str
    """`cpu` or `cuda`: the type of the accelerator the parameters live on."""


def deepspeed_config(spec: JobSpec, shape: EngineShape) -> JsonObject:
    """The dict for `deepspeed.initialize(config=...)`.

    DeepSpeed asserts train_batch_size = micro batch x accumulation x world size, which an unequal share of the
    global batch does not meet; the number only serves that assertion, since the loop normalises the loss by the
    true count of target tokens. Raises UsageError if `zero.deepspeed` contradicts the spec.
    """
    train = spec.train
    config: JsonObject = {
        "train_batch_size": shape.micro_batch * shape.accumulation * shape.world_size,
        "train_micro_batch_size_per_gpu": shape.micro_batch,
        "gradient_accumulation_steps": shape.accumulation,
        "optimizer": _optimizer(spec),
        "zero_optimization": _zero(spec, shape),
        # The engine reports every step itself; DeepSpeed's own progress line would only repeat it.
        "steps_per_print": 2**31 - 1,
        "gradient_clipping": 0.0 if clips_outside_engine(spec) else (train.clip_grad_norm or 0.0),
    }
    if train.precision == "bf16":
        config["bf16"] = {"enabled": True}
        if spec.zero.stage > 0:
            # Otherwise gradients of the micro steps would be added up in bf16, which loses small ones. Stage 0's
            # optimizer knows no such option.
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    elif train.precision == "fp16":
        # Dynamic loss scale (Micikevicius et al., arXiv:1710.03740).
        config["fp16"] = {"enabled": True, "loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000}
    return _merged(config, spec.zero.deepspeed, "zero.deepspeed")


def clips_outside_engine(spec: JobSpec) -> bool:
    """True if DeepSpeed hands the step to the plain torch optimizer: there it clips without keeping the norm,
    so the loop measures and clips itself."""
    return spec.zero.stage == 0 and spec.train.precision == "fp32"


def _optimizer(spec: JobSpec) -> JsonObject:
    """torch's own fused AdamW, on the device of the masters.

    DeepSpeed's FusedAdam and DeepSpeedCPUAdam are compiled at first use (half a minute to two minutes); torch's fused
    kernels for CPU and CUDA come compiled.
    """
    optimizer = spec.train.optimizer
    return {
        "type": "AdamW",
        "params": {
            "torch_adam": True,
            "fused": True,
            # The loop sets it before every update. Some of DeepSpeed's optimizers make an update of their own when
            # they are built, to allocate the moments: at rate 0 its weight decay changes nothing.
            "lr": 0.0,
            "betas": list(optimizer.betas),
            "eps": optimizer.eps,
            "weight_decay": optimizer.weight_decay,
        },
    }


def _zero(spec: JobSpec, shape: EngineShape) -> JsonObject:
    zero = spec.zero
    result: JsonObject = {"stage": zero.stage}
    if zero.stage >= 1 and zero.offload_optimizer.device != "none":
        result["offload_optimizer"] = {"device": zero.offload_optimizer.device}
    elif _overlaps(spec, shape):
        # Stage 3's default. Gradients of the last layers are reduced while those of the first are computed.
        result["overlap_comm"] = True
    if zero.stage == 3 and zero.offload_params.device != "none":
        result["offload_param"] = {"device": zero.offload_params.device}
    return result


def _overlaps(spec: JobSpec, shape: EngineShape) -> bool:
    """Whether gradients are reduced during the backward pass at stages 1 and 2, unless the user says otherwise.

    Not on CPUs, which have no streams. Not on one GPU: there is nothing to reduce, and DeepSpeed waits for the device
    after every backward pass. Not with an offloaded optimizer, for which DeepSpeed orders streams by events.
    """
    passed = optional(mapping, spec.zero.deepspeed, "zero_optimization") or {}
    return shape.device == CUDA and shape.world_size > 1 and spec.zero.stage in (1, 2) and "overlap_comm" not in passed


def _merged(decided: JsonFields, passthrough: JsonFields, where: str) -> JsonObject:
    """`decided` with the keys of `passthrough` added; the same key with another value is a contradiction."""
    result = dict(decided)
    for key, value in passthrough.items():
        place, own = f"{where}.{key}", decided.get(key)
        if key in FORBIDDEN_ZERO_KEYS and value:
            raise UsageError(
                f"{place}: not supported: its partitions cannot be restored at another number of workers",
                hint="Leave it out.",
            )
        if key not in decided:
            result[key] = value
        elif isinstance(value, dict) and isinstance(own, dict):
            result[key] = _merged(own, value, place)
        elif value != own:
            raise UsageError(
                f"{place}: {value!r} contradicts the spec, which sets it to {own!r}",
                hint="Set the spec's own field, and leave it out here.",
            )
    return result

from typing import Any

import pytest

from orchestrator.domain.errors import UsageError
from orchestrator.train.engine.deepspeed_config import EngineShape, clips_outside_engine, deepspeed_config
from tests.unit.train.builders import spec_with

pytestmark = pytest.mark.unit

SHAPE = EngineShape(world_size=3, micro_batch=2, accumulation=2, device="cpu")


def config(train: dict[str, Any] | None = None, zero: dict[str, Any] | None = None) -> dict[str, Any]:
    return deepspeed_config(spec_with(train=train, zero=zero), SHAPE)


def test_batch_numbers_meet_deepspeeds_assertion_although_ten_is_no_multiple() -> None:
    found = config({"global_batch": 10})
    assert found["train_batch_size"] == 12
    assert found["train_micro_batch_size_per_gpu"] * found["gradient_accumulation_steps"] * 3 == 12


def test_optimizer_needs_no_compiler() -> None:
    parameters = config({"optimizer": {"betas": [0.8, 0.9], "eps": 1e-6, "weight_decay": 0.3}})["optimizer"]["params"]
    assert parameters["torch_adam"] is True
    assert parameters["fused"] is True
    assert parameters["lr"] == 0.0  # the loop sets it
    assert (parameters["betas"], parameters["eps"], parameters["weight_decay"]) == ([0.8, 0.9], 1e-6, 0.3)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_precision(stage: int) -> None:
    bf16 = config({"precision": "bf16"}, {"stage": stage})
    assert bf16["bf16"] == {"enabled": True}
    assert bf16.get("data_types") == ({"grad_accum_dtype": "fp32"} if stage else None)
    fp16 = config({"precision": "fp16"}, {"stage": stage})
    assert fp16["fp16"]["enabled"]
    assert fp16["fp16"]["loss_scale"] == 0
    assert "bf16" not in config({}, {"stage": stage})


def test_plain_stage_0_is_clipped_by_the_loop() -> None:
    assert clips_outside_engine(spec_with(zero={"stage": 0}))
    assert config({}, {"stage": 0})["gradient_clipping"] == 0.0
    assert config({}, {"stage": 1})["gradient_clipping"] == 1.0
    assert config({"clip_grad_norm": None}, {"stage": 1})["gradient_clipping"] == 0.0
    assert config({"precision": "bf16"}, {"stage": 0})["gradient_clipping"] == 1.0


def test_offload() -> None:
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_params": {"device": "cpu"}}
    found = config({}, zero)["zero_optimization"]
    assert found["offload_optimizer"] == {"device": "cpu"}
    assert found["offload_param"] == {"device": "cpu"}
    assert "offload_optimizer" not in config({}, {"stage": 2})["zero_optimization"]


@pytest.mark.parametrize(
    ("stage", "device", "workers", "zero", "expected"),
    [
        (1, "cuda", 2, {}, True),
        (2, "cuda", 8, {}, True),
        (2, "cpu", 2, {}, None),
        (2, "cuda", 1, {}, None),
        (0, "cuda", 2, {}, None),
        (3, "cuda", 2, {}, None),  # DeepSpeed's own default there
        (2, "cuda", 2, {"offload_optimizer": {"device": "cpu"}}, None),
        (2, "cuda", 2, {"deepspeed": {"zero_optimization": {"overlap_comm": False}}}, False),
    ],
)
def test_gradients_are_reduced_during_backward_on_several_gpus(
    stage: int, device: str, workers: int, zero: dict[str, Any], expected: bool | None
) -> None:
    found = deepspeed_config(spec_with(zero={"stage": stage, **zero}), EngineShape(workers, 1, 1, device))
    assert found["zero_optimization"].get("overlap_comm") is expected


def test_passthrough_is_merged_deeply() -> None:
    passthrough = {"zero_optimization": {"overlap_comm": True}, "wall_clock_breakdown": True}
    found = config({}, {"stage": 2, "deepspeed": passthrough})
    assert found["zero_optimization"] == {"stage": 2, "overlap_comm": True}
    assert found["wall_clock_breakdown"] is True


@pytest.mark.parametrize(
    ("passthrough", "place"),
    [
        ({"gradient_clipping": 7.0}, "zero.deepspeed.gradient_clipping"),
        ({"zero_optimization": {"stage": 1}}, "zero.deepspeed.zero_optimization.stage"),
        ({"optimizer": {"params": {"lr": 5.0}}}, "zero.deepspeed.optimizer.params.lr"),
        ({"zero_optimization": {"round_robin_gradients": True}}, "round_robin_gradients"),
    ],
)
def test_contradictions_are_refused(passthrough: dict[str, Any], place: str) -> None:
    with pytest.raises(UsageError, match=place):
        deepspeed_config(spec_with(zero={"stage": 2}).model_copy(update={"zero": _zero(passthrough)}), SHAPE)


def _zero(passthrough: dict[str, Any]) -> Any:
    """Past the checks of the spec, which may refuse the same things earlier."""
    from orchestrator.spec.train import ZeroSpec

    return ZeroSpec.model_construct(**{**ZeroSpec(stage=2).__dict__, "deepspeed": passthrough})

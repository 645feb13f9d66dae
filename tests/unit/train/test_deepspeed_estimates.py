"""The planner's formula of model states against DeepSpeed's own estimates, `deepspeed.runtime.zero`."""

import pytest
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

from orchestrator.planner.model_shape import ARCHITECTURES, ModelShape, model_shape
from orchestrator.planner.zero_memory import ZeroSettings, zero_memory
from orchestrator.spec.job import JobSpec
from orchestrator.train.models.architectures import ARCHITECTURES as BUILT

pytestmark = pytest.mark.unit

LARGEST = 131_072_000
SHAPE = ModelShape(7_000_000_000, 32, 4096, 32, 32_000, 11_008, architecture="llama")


def spec(stage: int, **zero: object) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "m",
            "model": {"architecture": "llama"},
            "tokenizer": {"train": {}},
            "data": {"sources": [{"files": ["x"]}], "sequence_length": 128},
            "train": {"steps": 1, "global_batch": 8, "lr": 0.1, "precision": "bf16"},
            "zero": {"stage": stage, **zero},
        }
    )


@pytest.mark.parametrize("workers", [1, 8, 64])
def test_states_of_stages_2_and_3(workers: int) -> None:
    # DeepSpeed counts 18 bytes a parameter in the divided part: 2 more than it keeps, of 16-bit gradients that are
    # given up as they are reduced; at stage 2 only, for at stage 3 the other 2 are the weights.
    _, stage_2 = estimate_zero2_model_states_mem_needs(SHAPE.parameters, workers, 1, cpu_offload=False)
    zero = zero_memory(spec(2), SHAPE, workers)
    ours = zero.weights_bytes + zero.accumulators_bytes + zero.optimizer_bytes
    assert ours == pytest.approx(stage_2 - 2 * SHAPE.parameters / workers, rel=1e-6)
    estimate = estimate_zero3_model_states_mem_needs(SHAPE.parameters, LARGEST, workers, 1, cpu_offload=False)
    _, stage_3, largest = estimate
    zero = zero_memory(spec(3), SHAPE, workers)
    ours = zero.weights_bytes + zero.accumulators_bytes + zero.optimizer_bytes
    assert ours == pytest.approx(stage_3 - largest, rel=1e-6)


def test_states_that_are_offloaded() -> None:
    offload = {"offload_optimizer": {"device": "cpu"}}
    _, stage_2 = estimate_zero2_model_states_mem_needs(SHAPE.parameters, 8, 1, cpu_offload=True)
    assert zero_memory(spec(2, **offload), SHAPE, 8).weights_bytes == stage_2
    both = {**offload, "offload_params": {"device": "cpu"}}
    host, _, _ = estimate_zero3_model_states_mem_needs(
        SHAPE.parameters, LARGEST, 8, 1, cpu_offload=True, cpu_offload_params=True, additional_buffer_factor=1.0
    )
    # DeepSpeed counts 18 bytes a parameter on a host whose model was partitioned from the beginning.
    assert 8 * zero_memory(spec(3, **both), SHAPE, 8).host_bytes == pytest.approx(host, rel=0.001)


def test_the_default_sizes_of_buffers_are_deepspeed_s() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    theirs, ours = DeepSpeedZeroConfig(), ZeroSettings()
    assert ours.reduce_elements == theirs.reduce_bucket_size
    assert ours.max_live_elements == theirs.max_live_parameters
    assert ours.sub_group_elements == theirs.sub_group_size
    assert ours.contiguous_gradients == theirs.contiguous_gradients
    assert not DeepSpeedZeroConfig(stage=2).overlap_comm
    assert DeepSpeedZeroConfig(stage=3).overlap_comm


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_the_default_sizes_of_models_are_those_of_their_configs(name: str) -> None:
    config = BUILT[name].config_type()().to_dict()
    assert set(ARCHITECTURES) == set(BUILT)
    vocabulary = 32_000
    assert model_shape({"model_type": name}, vocabulary) == model_shape({**config, "model_type": name}, vocabulary)

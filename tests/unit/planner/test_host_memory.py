"""The memory estimate against counts made by hand."""

import pytest

from orchestrator.planner.host_memory import (
    PROCESS_BYTES,
    MemoryNeed,
    largest_micro_batch,
    memory_need,
)
from orchestrator.planner.model_shape import model_shape
from orchestrator.spec.job import JobSpec

pytestmark = pytest.mark.unit


def spec(**changes: object) -> JobSpec:
    value: dict[str, object] = {
        "name": "m",
        "model": {"architecture": "gpt2"},
        "tokenizer": {"train": {}},
        "data": {"sources": [{"files": ["x"]}], "sequence_length": 128},
        "train": {"steps": 1, "global_batch": 8, "lr": 0.1},
        **changes,
    }
    return JobSpec.model_validate(value)


def test_parameters_of_known_models() -> None:
    gpt2 = model_shape({"n_embd": 768, "n_layer": 12, "n_head": 12}, 50257)
    assert gpt2.parameters == pytest.approx(124_439_808, rel=0.01)
    llama = model_shape(
        {
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 14336,
        },
        128256,
    )
    assert llama.parameters == pytest.approx(8_030_261_248, rel=0.01)


def test_state_is_divided_as_the_stages_say() -> None:
    shape = model_shape({"n_embd": 64, "n_layer": 2, "n_head": 2}, 1000)
    p = shape.parameters
    expected = {0: 16 * p, 1: 8 * p + 8 * p / 4, 2: 4 * p + 12 * p / 4, 3: 16 * p / 4}
    for stage, state in expected.items():
        need = memory_need(spec(zero={"stage": stage}), shape, 4)
        assert need.fixed_bytes - PROCESS_BYTES == pytest.approx(state, abs=4)


def test_activations_shrink_with_checkpointing_and_precision() -> None:
    shape = model_shape({"n_embd": 768, "n_layer": 12, "n_head": 12}, 8192)
    base = {"steps": 1, "global_batch": 8, "lr": 0.1}
    plain = memory_need(spec(train=base), shape, 1).per_sample_bytes
    recomputed = memory_need(spec(train={**base, "activation_checkpointing": True}), shape, 1).per_sample_bytes
    half = memory_need(spec(train={**base, "precision": "bf16"}), shape, 1).per_sample_bytes
    assert recomputed < plain / 2
    assert half < plain


def test_micro_batches_are_even_and_fit() -> None:
    need = MemoryNeed(fixed_bytes=1000, per_sample_bytes=100)
    assert largest_micro_batch(need, 10_000, share=8) == 8
    assert largest_micro_batch(need, 2000, share=8) == 4  # six would fit: two steps of four are as few as 6 + 2
    assert largest_micro_batch(need, 500, share=8) == 1
    for share in range(1, 50):
        chosen = largest_micro_batch(need, 3000, share)
        assert 1 <= chosen <= min(14, share)

"""Whether a job fits its GPUs, and what would help."""

from typing import Any

import pytest

from orchestrator.domain.devices.device_room import DeviceRoom
from orchestrator.domain.errors import ClusterError
from orchestrator.domain.events import DevicePlanned, EventBody, WarningIssued
from orchestrator.planner.device_fit import build_problem, check_fit, device_planned, parts_text, remedies
from orchestrator.planner.device_memory import device_need
from orchestrator.planner.gpu_fit import GpuFit
from orchestrator.planner.model_shape import ModelShape
from orchestrator.spec.job import JobSpec
from tests.events import recorded

pytestmark = pytest.mark.unit

GIB = 2**30
H100 = DeviceRoom(79 * GIB, 80 * GIB, "NVIDIA H100 80GB HBM3")
SEVEN_B = ModelShape(7_000_000_000, 32, 4096, 32, 32_000, 11_008, architecture="llama")


def spec(stage: int, **train: object) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "m",
            "model": {"architecture": "llama"},
            "tokenizer": {"train": {"vocab_size": 32_000}},
            "data": {"sources": [{"files": ["x"]}], "sequence_length": 2048},
            "train": {"steps": 1, "global_batch": 64, "lr": 0.1, "precision": "bf16", **train},
            "zero": {"stage": stage},
            "resources": {"gpus_per_worker": 1, "workers": 8},
        }
    )


def test_what_fits_needs_no_words() -> None:
    assert check_fit(spec(2), SEVEN_B, 8, H100) is None
    assert check_fit(spec(3), SEVEN_B, 8, H100) is None


def test_stage_1_of_7_b_does_not_fit_8_gpus_and_stage_2_does() -> None:
    # 68 GB stay, and reducing the gradients takes 14 more.
    text = check_fit(spec(1), SEVEN_B, 8, H100)
    assert text is not None
    assert text.startswith(
        "training needs about 76.5 GiB on each GPU with one sample at a time, and the smallest has 80.0"
    )
    assert "gradient accumulators 26.1 GiB" in text
    assert "copies for the update 13.0 GiB" in text
    assert "what would help: `zero.stage: 2` (" in text


def test_state_that_is_more_than_a_gpu_has_is_refused() -> None:
    with pytest.raises(ClusterError, match="training needs about 131") as refused:
        check_fit(spec(0), SEVEN_B, 8, H100)
    hint = str(refused.value.hint)
    assert "`zero.stage: 2` (" in hint
    assert "workers" not in hint  # stage 0 divides nothing


def test_more_workers_help_where_something_is_divided() -> None:
    large = ModelShape(32_000_000_000, 60, 6656, 52, 32_000, 17_920, architecture="llama")
    found = remedies(spec(3, activation_checkpointing=True), large, 8, H100)
    assert any("16 workers (" in each for each in found)
    assert any("offload_optimizer" in each for each in found)


def test_memory_that_others_hold_is_named() -> None:
    shared = DeviceRoom(10 * GIB, 80 * GIB)
    text = check_fit(spec(2), SEVEN_B, 8, shared)
    assert text is not None
    assert "80.0 GiB, 69.4 GiB of it in use" in text
    assert "ending the processes that hold 69.4 GiB on the GPU" in text


def test_a_gpu_that_is_full_before_the_first_sample() -> None:
    seventy = ModelShape(70_000_000_000, 80, 8192, 64, 32_000, 28_672, architecture="llama")
    text = build_problem(device_need(spec(3), seventy, 64), H100)
    assert "it needs about" in text
    assert "of 80.0 GiB while it is built" in text
    assert "a smaller micro batch does not change that" in text


def test_small_parts_are_added_up_for_people() -> None:
    parts = {name: (9 - index) * GIB for index, name in enumerate("abcdefgh")}
    assert parts_text(parts).endswith("f 4.0 GiB, other 5.0 GiB")
    assert parts_text(parts).startswith("a 9.0 GiB, b 8.0 GiB")


def test_a_run_is_told_once_and_as_early_as_it_can_be() -> None:
    told: list[tuple[type[EventBody], dict[str, Any]]] = []
    fitting = GpuFit(spec(1), lambda body: told.append(recorded(body)))
    config = {"model_type": "llama"}
    fitting.check_early(8, None, config)  # on CPUs
    fitting.check_early(8, H100, {})  # a pretrained model that is not here yet
    assert told == []
    fitting.check_early(8, H100, config)
    shape = ModelShape(6_738_149_376, 32, 4096, 32, 32_000, 11_008, 4096, 4096, "llama")
    fitting.check(8, H100, shape)  # the same, once the data is prepared
    assert [kind for kind, _ in told] == [WarningIssued]
    fitting.tell(8, H100, shape, 1)
    fitting.tell(8, H100, shape, 1)
    assert [kind for kind, _ in told] == [WarningIssued, DevicePlanned]
    planned = device_planned(device_need(spec(1), shape, 8), 1, H100)
    assert told[-1] == recorded(planned)
    assert sum(planned.parts.values()) == planned.need_bytes


def test_a_job_that_can_never_fit_is_refused_before_its_data() -> None:
    fitting = GpuFit(spec(0), lambda body: None)
    with pytest.raises(ClusterError):
        fitting.check_early(8, H100, {"model_type": "llama"})

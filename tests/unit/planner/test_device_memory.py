"""Memory on GPUs, against figures made by hand from what each tensor holds, and against published ones.

GB are 1e9 bytes here, as in the papers. P: parameters, W: workers.
"""

from pathlib import Path

import pytest

from orchestrator.domain.devices.device_room import CONTEXT_BYTES, DeviceRoom, smallest
from orchestrator.planner.device_memory import (
    COMMUNICATOR_BYTES,
    Assumptions,
    DeviceNeed,
    device_need,
    largest_device_batch,
)
from orchestrator.planner.model_shape import ModelShape, model_shape
from orchestrator.planner.train_plan import DataFacts, PlanLimits, train_plan
from orchestrator.planner.zero_memory import ZeroSettings, zero_memory
from orchestrator.spec.job import JobSpec

pytestmark = pytest.mark.unit

GB, GIB = 1e9, 2**30
SEVEN_B = ModelShape(7_000_000_000, 32, 4096, 32, 32_000, 11_008, architecture="llama")
BILLION = ModelShape(1_000_000_000, 24, 1792, 14, 50_257, architecture="gpt2")
MEDIUM = ModelShape(355_000_000, 24, 1024, 16, 50_257, architecture="gpt2")
CONTEXT_GB = CONTEXT_BYTES / GB  # 0.63
NCCL_GB = 2 * COMMUNICATOR_BYTES / GB  # torch's group and DeepSpeed's: 1.0


def spec(stage: int = 1, precision: str = "bf16", zero: dict[str, object] | None = None, **train: object) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "m",
            "model": {"architecture": "llama"},
            "tokenizer": {"train": {}},
            "data": {"sources": [{"files": ["x"]}], "sequence_length": 2048},
            "train": {"steps": 1, "global_batch": 64, "lr": 0.1, "precision": precision, **train},
            "zero": {"stage": stage, **(zero or {})},
            "resources": {"gpus_per_worker": 1, "workers": 8},
        }
    )


def need(stage: int, shape: ModelShape = SEVEN_B, workers: int = 8, precision: str = "bf16") -> DeviceNeed:
    return device_need(spec(stage, precision), shape, workers)


@pytest.mark.parametrize(
    ("stage", "fixed_gb", "update_gb"),
    [
        # FP16_UnfusedOptimizer: weights 14, gradients 14, masters and moments of all 84. A step: fp32 gradients, 28.
        (0, 14 + 14 + 84, 28),
        # BF16_Optimizer: weights 14, gradients 14, fp32 gradients of all 28, masters and moments of an eighth 10.5:
        # 66.5, with context and NCCL's buffers 68.1. Reducing converts all gradients to bf16: 14.
        (1, 14 + 14 + 28 + 10.5, 14),
        # Weights 14; of an eighth: fp32 gradients 3.5, masters and moments 10.5. The norm of the largest parameter
        # (4096 x 32000 = 131 M) in double precision: 1.05.
        (2, 14 + 3.5 + 10.5, 1.05),
        # Of an eighth: weights 1.75, fp32 gradients 3.5, masters and moments 10.5. One bucket of 500 M in bf16: 1.
        # Gathered: 1 G parameters and the largest beyond, in bf16: 2.26. A step copies its fp32 gradients: 3.5.
        (3, 1.75 + 3.5 + 10.5 + 1 + 2.26, 3.5),
    ],
)
def test_7_b_at_8_gpus(stage: int, fixed_gb: float, update_gb: float) -> None:
    found = need(stage)
    assert found.fixed_bytes / GB == pytest.approx(fixed_gb + CONTEXT_GB + NCCL_GB, rel=0.01)
    assert found.zero.update_bytes / GB == pytest.approx(update_gb, rel=0.02)


def test_stage_1_of_7_b_is_far_more_than_16_bytes_a_parameter_divided() -> None:
    # The usual 4 P + 12 P / W are 38.5 GB; counted by hand with a bucket, NCCL and the context it is about 69.5.
    assert need(1).fixed_bytes / GB == pytest.approx(69.5, rel=0.10)


def test_reducing_gradients_at_stages_2_and_3() -> None:
    # Buckets of 500 M in bf16, 1 GB: two to fill, as the reduction overlaps with the backward pass, one that is sent.
    # Three gradients of the largest, 131 M: 0.79.
    assert need(2).zero.reducing_bytes / GB == pytest.approx(2 + 1 + 0.79, rel=0.01)
    assert need(2, workers=1).zero.reducing_bytes / GB == pytest.approx(1 + 1 + 0.79, rel=0.01)
    plain = spec(2, zero={"deepspeed": {"zero_optimization": {"overlap_comm": False}}})
    assert zero_memory(plain, SEVEN_B, 8).reducing_bytes / GB == pytest.approx(1 + 1 + 0.79, rel=0.01)
    small = spec(2, zero={"deepspeed": {"zero_optimization": {"reduce_bucket_size": 5e7}}})
    assert zero_memory(small, SEVEN_B, 8).reducing_bytes / GB == pytest.approx(0.2 + 0.1 + 0.79, rel=0.01)
    assert need(3).zero.reducing_bytes / GB == pytest.approx(1 + 0.79, rel=0.01)


def test_gradients_sent_in_fp32_are_not_converted() -> None:
    sent = spec(1, zero={"deepspeed": {"communication_data_type": "fp32"}})
    # One gradient of the largest at a time is converted to be added up: 131 M in fp32.
    assert zero_memory(sent, SEVEN_B, 8).update_bytes / GB == pytest.approx(0.52, rel=0.01)


@pytest.mark.parametrize(
    ("shape", "stage", "precision", "states_per_parameter"),
    [
        (MEDIUM, 0, "fp32", 16),  # weights, gradients, two moments
        (MEDIUM, 1, "fp32", 20),  # and masters that are copies
        (MEDIUM, 0, "bf16", 16),  # weights 2, gradients 2, masters and moments 12
        (MEDIUM, 1, "bf16", 20),  # and fp32 gradients 4
        (MEDIUM, 2, "bf16", 18),  # weights 2, fp32 gradients 4, masters and moments 12
        (BILLION, 1, "bf16", 20),
        (BILLION, 2, "fp16", 18),  # weights 2, gradients twice 2, masters and moments 12
        (BILLION, 3, "bf16", 18),
    ],
)
def test_one_gpu(shape: ModelShape, stage: int, precision: str, states_per_parameter: int) -> None:
    found = need(stage, shape, workers=1, precision=precision)
    assert found.states_bytes == states_per_parameter * shape.parameters
    assert found.communicators_bytes == 0
    assert found.zero.gathered_bytes == 0


def test_the_zero_paper() -> None:
    # arXiv:1910.02054, table 1: 7.5 B in mixed precision, GB a device: 120 without, with P_os, P_os+g, P_os+g+p.
    # DeepSpeed adds fp32 gradients to the paper's 16 bytes a parameter (figure 1): 4 P at stage 1, 4 P / W at 2 and 3,
    # where it keeps none of the paper's 16-bit gradients.
    shape = ModelShape(7_500_000_000, 36, 4096, 32, 50_257, architecture="gpt2")
    for workers, table in ((4, (52.5, 41.3, 30)), (64, (31.4, 16.6, 1.88)), (1024, (30.1, 15.1, 0.12))):
        p, share = 7.5, 7.5 / workers
        ours = [need(stage, shape, workers).states_bytes / GB for stage in (1, 2, 3)]
        expected = (table[0] + 4 * p, table[1] - 2 * share + 4 * share, table[2] - 2 * share + 4 * share)
        assert ours == pytest.approx(expected, rel=0.03)  # the table is rounded


def test_what_is_offloaded_is_on_the_host() -> None:
    offload = {"offload_optimizer": {"device": "cpu"}}
    zero = zero_memory(spec(2, zero=offload), SEVEN_B, 8)
    assert zero.optimizer_bytes == zero.accumulators_bytes == 0
    assert zero.weights_bytes == 14 * GB
    # Masters and moments 12, fp32 gradients 4, and the new weights in bf16 2, of an eighth.
    assert zero.host_bytes / GB == pytest.approx(18 * 7 / 8)
    both = offload | {"offload_params": {"device": "cpu"}}
    zero = zero_memory(spec(3, zero=both), SEVEN_B, 8)
    assert zero.weights_bytes == zero.optimizer_bytes == 0
    assert zero.host_bytes / GB == pytest.approx((12 + 4 + 2) * 7 / 8)


def test_a_whole_model_is_on_the_device_while_stage_3_is_built() -> None:
    seventy = ModelShape(70_000_000_000, 80, 8192, 64, 32_000, 28_672, architecture="llama")
    whole = device_need(spec(3), seventy, 64, Assumptions(whole_model_at_build=True))
    parts = device_need(spec(3), seventy, 64, Assumptions(whole_model_at_build=False))
    assert whole.build_bytes / GB == pytest.approx(140 + 2.2 + CONTEXT_GB + NCCL_GB, rel=0.01)
    assert whole.total_bytes(1) == whole.build_bytes
    assert "building the engine" in whole.parts(1)
    assert parts.build_bytes < 20 * GB


def test_activations_of_a_layer_by_hand() -> None:
    # Llama 2 7 B in bf16, one token of one layer, h = q = k = 4096, i = 11008: two norms 2 x 8 h = 65536, queries,
    # keys, values, output 8 h = 32768 and 32 numbers of 4 bytes, feed-forward 4 x 2 i = 88064.
    found = need(3)
    layer = 65_536 + 32_768 + 128 + 88_064
    assert found.sample.kept_bytes == pytest.approx(2048 * (32 * layer + 8 * 4096), rel=0.001)
    assert device_need(spec(3), SEVEN_B, 8, Assumptions()).sample.logits_bytes == 2048 * 32_000 * 12
    recomputed = device_need(spec(3, activation_checkpointing=True), SEVEN_B, 8)
    assert recomputed.sample.kept_bytes == 2048 * (32 * 2 * 4096 + 8 * 4096)
    # A matrix of 2048 x 2048 for each of 32 heads and layers, in fp32 and bf16.
    eager = device_need(spec(3), SEVEN_B, 8, Assumptions(attention="eager"))
    more = eager.sample.kept_bytes - found.sample.kept_bytes
    assert more == pytest.approx(32 * 32 * 2048**2 * 6, rel=0.002)


def test_a_chunked_loss_does_not_grow_with_the_vocabulary_or_the_micro_batch() -> None:
    def logits(vocab_size: int, chunk_tokens: int | None) -> tuple[int, int]:
        shape = ModelShape(8_000_000_000, 32, 4096, 32, vocab_size, 14_336, architecture="llama")
        chunked = device_need(spec(3), shape, 8, Assumptions(loss_chunk_tokens=chunk_tokens))
        return chunked.sample.logits_bytes, chunked.sample.loss_bytes

    # 4 samples of 4096 tokens at 128 k: 25 GB.
    assert 4 * 2 * logits(128_256, None)[0] / GB == pytest.approx(25.2, rel=0.01)
    # Two chunks of logits, and the gradient of the head's weight; for each sample only that of what goes into the head.
    assert logits(128_000, 256)[1] == 4 * 128_000 * (2 * 256 + 4096)
    assert logits(128_000, 256)[0] == logits(32_000, 1024)[0]


def test_parts_add_up() -> None:
    for stage in range(4):
        for micro_batch in (1, 8, 64):
            found = need(stage)
            assert sum(found.parts(micro_batch).values()) == found.total_bytes(micro_batch)


def test_the_largest_micro_batch_that_fits() -> None:
    found = need(3)
    usable = 73 * GIB
    best = largest_device_batch(found, usable, 64)
    assert found.total_bytes(best) <= usable
    assert best in (1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 16, 22, 32, 64)  # the smallest with as many micro steps
    assert largest_device_batch(found, usable, 1) == 1
    assert largest_device_batch(found, 1, 64) == 1
    steps = -(-64 // best)
    assert all(found.total_bytes(-(-64 // fewer)) > usable for fewer in range(1, steps))


def test_gpus_are_planned_from_the_device_and_never_from_the_host() -> None:
    data = DataFacts("/data", 1000, 32_000)
    config = {"model_type": "llama"}  # 7 B

    def micro_batch(memory_bytes: int | None, room: DeviceRoom | None) -> int:
        limits = PlanLimits(memory_bytes, 64, room)
        return train_plan(spec(3), "/run", data, config, 8, limits).micro_batch

    room = DeviceRoom(79 * GIB, 80 * GIB)
    chosen = micro_batch(None, room)
    assert 1 <= chosen < 8
    assert micro_batch(10 * GIB, room) == micro_batch(1000 * GIB, room) == chosen
    assert micro_batch(None, DeviceRoom(40 * GIB, 80 * GIB)) < chosen
    assert micro_batch(1 * GIB, None) == 8  # nobody knows: the whole share


def test_rooms() -> None:
    whole, shared = DeviceRoom(79 * GIB, 80 * GIB), DeviceRoom(50 * GIB, 80 * GIB)
    assert whole.foreign_bytes == GIB - CONTEXT_BYTES
    assert not whole.is_shared
    assert shared.is_shared
    assert shared.usable_bytes == 50 * GIB + CONTEXT_BYTES
    assert smallest([None, whole, shared]) == shared
    assert smallest([None]) is None


def test_deepspeed_settings_are_read_as_deepspeed_reads_them() -> None:
    assert ZeroSettings.of({}) == ZeroSettings()
    passed = {"reduce_bucket_size": 2e8, "overlap_comm": False, "stage3_max_live_parameters": 10, "sub_group_size": "x"}
    found = ZeroSettings.of({"zero_optimization": passed, "communication_data_type": "fp32"})
    assert found == ZeroSettings(200_000_000, False, 10, communication_bytes=4)


def test_sizes_that_a_config_leaves_out_are_the_architecture_s() -> None:
    assert model_shape({"model_type": "llama"}, 32_000).parameters == pytest.approx(6_738_415_616, rel=0.001)
    mistral = model_shape({"model_type": "mistral"}, 32_000)
    assert (mistral.parameters, mistral.key_value_width) == (pytest.approx(7_241_732_096, rel=0.001), 1024)


@pytest.mark.parametrize(
    ("row", "checkpointing"), [("peak", False), ("peak with `train.activation_checkpointing`", True)]
)
def test_the_documented_peaks_of_7_b_are_the_planner_s(row: str, checkpointing: bool) -> None:
    document = (Path(__file__).parents[3] / "docs" / "clusters.md").read_text()
    (line,) = [line for line in document.splitlines() if line.startswith(f"| {row} |")]
    documented = [float(cell) for cell in line.split("|")[2:6]]
    shape = model_shape({"model_type": "llama"}, 32_000)
    specs = [spec(stage, activation_checkpointing=checkpointing) for stage in range(4)]
    assert [round(device_need(each, shape, 8).total_bytes(1) / GIB, 1) for each in specs] == documented

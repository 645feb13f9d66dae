"""The engine on one CUDA device: precisions, memory and utilisation. Skipped where there is none."""

import json
import math
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from orchestrator.data.executor import LocalExecutor
from orchestrator.data.prepare import prepare
from orchestrator.domain.events import MemoryMeasured
from orchestrator.domain.step_report import StepReport
from orchestrator.gang.agent.gpu_figures import GpuReader, load_nvml, training_gpu
from orchestrator.spec.job import JobSpec
from tests.cluster.train_processes import Outcome, TrainProcesses, train_plan

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

STEPS = 20


@pytest.fixture(scope="module", autouse=True)
def _device() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def spec_with(stage: int, precision: str, **zero: Any) -> JobSpec:
    value = {
        "name": "gpu",
        "model": {"architecture": "gpt2", "config": {"n_layer": 4, "n_embd": 256, "n_head": 4}},
        "tokenizer": {"train": {"vocab_size": 1024}},
        "data": {
            "sources": [{"files": ["json/*.py", "email/*.py"]}],
            "sequence_length": 128,
            "validation": {"fraction": 0.1, "max_samples": 16},
        },
        "train": {
            "steps": STEPS,
            "global_batch": 16,
            "micro_batch": 8,
            "lr": 1e-3,
            "warmup_steps": 2,
            "precision": precision,
        },
        "zero": {"stage": stage, **zero},
        "resources": {"gpus_per_worker": 1},
        "checkpoint": {"at_end": False},
    }
    return JobSpec.model_validate_json(json.dumps(value))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    cache = tmp_path_factory.mktemp("cache")
    return prepare(spec_with(0, "fp32"), stdlib, cache, LocalExecutor(workers=0), lambda *_: None).directory


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Any:
    processes = TrainProcesses(1, tmp_path_factory.mktemp("gangs"), gpus=1)
    yield processes
    processes.close()


@pytest.fixture(scope="module")
def fp32(process: TrainProcesses, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return process.run(train_plan(spec_with(0, "fp32"), data_dir, tmp_path_factory.mktemp("fp32"), 1), 1)


def check_device_fields(report: StepReport) -> None:
    memory = report.ranks.every[0].memory
    assert memory.allocated_bytes is not None
    assert memory.reserved_bytes is not None
    assert memory.peak_allocated_bytes is not None
    assert 0 < memory.allocated_bytes <= memory.peak_allocated_bytes
    assert memory.allocated_bytes <= memory.reserved_bytes
    phases = report.ranks.every[0].phases
    assert phases.forward_s > 0
    assert phases.backward_s > 0
    assert phases.data_wait_s + phases.forward_s + phases.backward_s + phases.optimizer_s <= report.step_time_s * 1.1


def test_fp32_learns(fp32: Outcome) -> None:
    assert fp32.losses[0] == pytest.approx(math.log(1024), rel=0.05)
    assert fp32.losses[-1] < 0.9 * fp32.losses[0]
    check_device_fields(fp32.steps[-1])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_low_precision_follows_fp32(
    stage: int, precision: str, process: TrainProcesses, data_dir: Path, fp32: Outcome, tmp_path: Path
) -> None:
    """fp16's first updates may be skipped while the loss scale falls, so its end is compared, not each step."""
    found = process.run(train_plan(spec_with(stage, precision), data_dir, tmp_path, 1), 1)
    assert found.losses[0] == pytest.approx(fp32.losses[0], rel=1e-2)
    assert found.losses[-1] == pytest.approx(fp32.losses[-1], rel=2e-2 if precision == "bf16" else 5e-2)
    norms = [norm for norm in found.grad_norms if norm is not None]
    assert norms
    assert norms[-1] == pytest.approx(fp32.grad_norms[-1], rel=0.5)
    check_device_fields(found.steps[-1])
    scales = [report.loss_scale for report in found.steps]
    assert all(scale is not None and scale >= 1 for scale in scales) if precision == "fp16" else not any(scales)
    (memory,) = [fields for kind, fields in found.events if kind is MemoryMeasured]
    measured, predicted = memory["measured"], memory["predicted"]
    assert measured["activations"] > 0
    for part in ("parameters", "optimizer"):
        assert measured[part] == pytest.approx(predicted[part], rel=0.1, abs=1 << 16), part


def test_collectives_are_timed_on_the_device(tmp_path: Path) -> None:
    import torch
    import torch.distributed as dist

    from orchestrator.train.collectives.device_spans import CollectiveSampler

    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("nccl", store=store, rank=0, world_size=1, device_id=torch.device("cuda", 0))
    try:
        sampler = CollectiveSampler(lambda: torch.cuda.Event(enable_timing=True), interval_steps=1)
        with sampler.running():
            sampler.begin(1)
            sampler.phase = "backward"
            dist.all_reduce(torch.ones(1 << 24, device="cuda"))
            torch.cuda.synchronize()
            found = sampler.seconds()
        assert found is not None
        assert 0 <= found["backward"] < 10
    finally:
        dist.destroy_process_group()


def test_nvml_knows_the_gpu_that_cuda_uses() -> None:
    import torch

    torch.cuda.init()
    uuid = training_gpu()
    assert uuid is not None
    reader = GpuReader(load_nvml(), uuid)
    found = reader.read(0, "host")
    reader.close()
    total_bytes = torch.cuda.get_device_properties(0).total_memory
    assert found.name == torch.cuda.get_device_name(0)
    assert found.memory_total_bytes == pytest.approx(total_bytes, rel=0.1)
    assert found.temperature_celsius is None or 5 < found.temperature_celsius < 120
    assert found.power_watts is None or 5 < found.power_watts < 2000


def test_utilisation_is_known_where_the_device_is(
    process: TrainProcesses, data_dir: Path, fp32: Outcome, tmp_path: Path
) -> None:
    import torch

    from orchestrator.train.models.flops import peak_flops

    found = process.run(train_plan(spec_with(1, "bf16"), data_dir, tmp_path, 1), 1)
    if peak_flops(torch.cuda.get_device_name(0), "bf16") is None:
        assert all(report.mfu is None for report in found.steps)
    else:
        assert all(report.mfu is not None and 0 < report.mfu < 1 for report in found.steps)


@pytest.mark.parametrize("stage", [2, 3])
def test_offload_frees_device_memory_and_keeps_the_losses(
    stage: int, process: TrainProcesses, data_dir: Path, tmp_path: Path
) -> None:
    kept = process.run(train_plan(spec_with(stage, "bf16"), data_dir, tmp_path / "kept", 1), 1)
    spec = spec_with(stage, "bf16", offload_optimizer={"device": "cpu"})
    offloaded = process.run(train_plan(spec, data_dir, tmp_path / "offloaded", 1), 1)
    assert offloaded.losses == pytest.approx(kept.losses, rel=1e-2)
    before, after = (o.steps[-1].ranks.every[0].memory.allocated_bytes for o in (kept, offloaded))
    assert before is not None
    assert after is not None
    assert after < before

"""A worker's own device, and that of the rank it is to train with."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from orchestrator.domain.devices.device import Device, DeviceProblem, FoundDevice, decide_device
from orchestrator.domain.errors import DeviceError
from orchestrator.train.collectives import rendezvous
from orchestrator.train.convert import generate
from orchestrator.train.engine import gpu_check as module
from orchestrator.train.engine.engine import import_deepspeed
from orchestrator.train.engine.gpu_check import has_mps, usable_device, worker_device
from orchestrator.train.standalone import StandaloneSession

pytestmark = pytest.mark.unit

PROBLEM = DeviceProblem("the GPU is taken by another process", "`nvidia-smi` names it")


def test_for_a_cpu_spec_no_gpu_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "init", lambda: pytest.fail("CUDA was initialised"))
    assert worker_device(StandaloneSession(3, 8, 3, None), 0) == torch.device("cpu")


def test_a_promised_gpu_that_does_not_work_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "usable_device", lambda gpus, local_rank: PROBLEM)
    with pytest.raises(DeviceError, match=r"rank 3 on \S+ \(127\.0\.0\.1\) .*taken by another process") as caught:
        worker_device(StandaloneSession(3, 8, 3, None), 1)
    assert (caught.value.hint, caught.value.exit_code) == (PROBLEM.hint, 2)


@pytest.mark.skipif(torch.version.cuda is not None or torch.version.hip is not None, reason="torch can use GPUs")
def test_this_build_of_torch_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # what others think does not count
    problem = usable_device(1, 0)
    assert isinstance(problem, DeviceProblem)
    assert "built for CPUs only" in problem.why


@pytest.mark.parametrize(("count", "error"), [(1, None), (0, "Found no NVIDIA driver on your system.")])
def test_a_gpu_is_tried(count: int, error: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    def init() -> None:
        if error is not None:
            raise RuntimeError(error)

    monkeypatch.setattr(torch.cuda, "init", init)
    tried: list[int] = []
    monkeypatch.setattr(module, "try_gpu", tried.append)
    found = usable_device(1, 0)
    if error is None:
        assert (found, tried) == (Device("cuda", 0), [0])
        monkeypatch.setattr(module, "try_gpu", lambda index: "CUDA error: uncorrectable ECC error encountered")
        found = usable_device(1, 0)
    assert isinstance(found, DeviceProblem)


def test_a_wrong_product_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CUDA", "cpu")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert module.try_gpu(0) is None
    monkeypatch.setattr(torch, "full", lambda *_, device: torch.zeros(2, 2, device=device))
    assert "came out as 0" in (module.try_gpu(0) or "")


class Published(StandaloneSession):
    """What rank 0 published."""

    def lookup(self, key: str, timeout_s: float) -> str:
        return "cuda 10.0.0.1:1234"


def test_ranks_on_different_devices_do_not_form_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "TCPStore", lambda *_, **__: pytest.fail("it connected"))
    with pytest.raises(DeviceError, match=r"rank 1 on 127\.0\.0\.1 trains on cpu, rank 0 on cuda"):
        rendezvous.join_process_group(Published(1, 2, 1, None), torch.device("cpu"))


def test_deepspeed_for_another_accelerator_is_refused() -> None:
    import_deepspeed("cpu")
    with pytest.raises(DeviceError, match="training is on cuda, but DeepSpeed was imported in this process for cpu"):
        import_deepspeed("cuda")


def test_deepspeed_finds_free_memory_on_a_gpu_that_is_masked_by_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.accelerator import cuda_accelerator, real_accelerator

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6")
    monkeypatch.setattr(cuda_accelerator, "pynvml", SimpleNamespace(nvmlDeviceGetHandleByIndex=None))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (7, 9))
    accelerator = cuda_accelerator.CUDA_Accelerator()
    monkeypatch.setattr(real_accelerator, "ds_accelerator", accelerator)
    with pytest.raises(ValueError, match="invalid literal"):
        accelerator.available_memory()
    import_deepspeed("cuda")
    assert accelerator.available_memory() == 7


def test_text_is_generated_on_the_cpu_unless_a_gpu_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def usable(gpus: int, local_rank: int) -> Any:
        asked.append((gpus, local_rank))
        return PROBLEM if gpus else Device("cpu")

    monkeypatch.setattr(generate, "usable_device", usable)
    assert generate._device("cpu") == torch.device("cpu")
    with pytest.raises(DeviceError, match="no GPU to generate on: the GPU is taken"):
        generate._device("cuda")
    assert asked == [(0, 0), (1, 0)]


def test_a_gpu_that_is_shared_through_mps_is_refused(tmp_path: Path) -> None:
    """Only if the daemon runs: its pipe may be left over."""
    assert not has_mps(tmp_path)
    os.mkfifo(tmp_path / "control")
    assert not has_mps(tmp_path)
    reader = os.open(tmp_path / "control", os.O_RDONLY | os.O_NONBLOCK)
    assert has_mps(tmp_path)
    os.close(reader)
    problem = decide_device(1, "0", 0, FoundDevice("2.13.0", "CUDA 13.0", 1, shared=True))
    assert isinstance(problem, DeviceProblem)
    assert "MPS" in problem.why

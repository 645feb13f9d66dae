"""The device is the spec's: what is visible decides only whether the promise can be kept."""

import pytest

from orchestrator.domain.devices.device import (
    CUDA,
    RECOVERY_IN_PROCESS,
    Device,
    DeviceProblem,
    FoundDevice,
    dealt,
    decide_device,
    device_environment,
    explain_error,
    local_gpus,
    user_variables,
    visible_gpus,
)
from orchestrator.domain.engine_errors import Cause, find_cause
from orchestrator.spec.checks.check_resources import DECIDED_VARIABLES

pytestmark = pytest.mark.unit

UUIDS = ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "GPU-1b9e4c3c-5a0e-4b0e-8f5e-0f1f1d1c1b1a")
GPU_BUILD = "CUDA 12.8"


def test_a_cpu_spec_stays_on_the_cpu_whatever_is_there() -> None:
    for mask in (None, "0", "0,1"):
        for found in (None, FoundDevice("2.13.0", GPU_BUILD, 8)):
            assert decide_device(0, mask, 3, found) == Device("cpu")
    assert Device("cpu").backend == "gloo"
    assert device_environment(0) == {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "-1"}


@pytest.mark.parametrize(
    ("mask", "local_rank", "devices", "index"),
    [
        ("3", 0, 1, 0),  # a worker that Ray shows its own
        ("3", 2, 1, 0),  # the same, the third of its host
        (UUIDS[0], 1, 1, 0),
        (None, 2, 4, 2),  # torchrun: all see all
        ("4,5,6,7", 3, 4, 3),
    ],
)
def test_which_gpu(mask: str | None, local_rank: int, devices: int, index: int) -> None:
    assert decide_device(1, mask, local_rank, FoundDevice("2.13.0", GPU_BUILD, devices)) == Device(CUDA, index)
    assert Device(CUDA, index).backend == "nccl"
    assert device_environment(1) == {"DS_ACCELERATOR": "cuda", **RECOVERY_IN_PROCESS}


@pytest.mark.parametrize(
    ("mask", "local_rank", "found", "why"),
    [
        ("0", 0, FoundDevice("2.13.0+cpu", None), "torch 2.13.0+cpu on its node is built for CPUs only"),
        ("", 0, FoundDevice("2.13.0", GPU_BUILD, 0, "No CUDA GPUs are available"), "no GPU is visible"),
        ("-1", 0, FoundDevice("2.13.0", GPU_BUILD, 0, "No CUDA GPUs are available"), "no GPU is visible"),
        ("9", 0, FoundDevice("2.13.0", GPU_BUILD, 0, "No CUDA GPUs are available"), "does not exist (the mask is `9`)"),
        (None, 0, FoundDevice("2.13.0", GPU_BUILD, 0), "the GPU that was assigned to it does not exist"),
        (
            None,
            0,
            FoundDevice("2.13.0", GPU_BUILD, 0, "Found no NVIDIA driver on your system."),
            "no NVIDIA driver answers",
        ),
        (None, 1, FoundDevice("2.13.0", GPU_BUILD, 1), "worker number 2 on a host with 1"),
    ],
)
def test_a_promised_gpu_that_cannot_be_used_is_a_problem(
    mask: str | None, local_rank: int, found: FoundDevice, why: str
) -> None:
    problem = decide_device(1, mask, local_rank, found)
    assert isinstance(problem, DeviceProblem)
    assert why in problem.why
    assert problem.hint


@pytest.mark.parametrize(
    ("error", "why"),
    [
        ("The NVIDIA driver on your system is too old (found version 11040).", "too old for this build"),
        ("CUDA driver version is insufficient for CUDA runtime version", "too old for this build"),
        ("CUDA error: CUDA-capable device(s) is/are busy or unavailable", "used by another process"),
        ("CUDA error: uncorrectable ECC error encountered", "memory error that cannot be corrected"),
        ("CUDA out of memory. Tried to allocate 2.00 MiB.", "memory is used by other processes"),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "memory is used"),
        ("CUDA error: no kernel image is available for execution on the device", "does not support that GPU"),
        ("Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized", "links between GPUs"),
        ("Cannot re-initialize CUDA in forked subprocess.", "before its process was forked"),
        ("CUDA error: unspecified launch failure", "fails: CUDA error: unspecified launch failure"),
    ],
)
def test_what_an_error_of_the_driver_means(error: str, why: str) -> None:
    problem = explain_error(error, "0")
    assert why in problem.why
    assert problem.hint
    # It is the cause itself, and a smaller batch is no cure for it.
    assert find_cause(problem.why) not in (Cause.PEER, Cause.OUT_OF_MEMORY)


@pytest.mark.parametrize(
    ("mask", "named"),
    [
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("0, 2", ("0", "2")),
        ("0,-1,1", ("0",)),
        ("1gpu2,2ampere", ("1", "2")),
        ("1,1", ()),
        (",".join(UUIDS), UUIDS),
        (f"{UUIDS[0]},3", UUIDS[:1]),
        ("MIG-GPU-8932f937/1/0,MIG-GPU-8932f937/2/0", ("MIG-GPU-8932f937/1/0", "MIG-GPU-8932f937/2/0")),
    ],
)
def test_a_mask_is_read_as_cuda_reads_it(mask: str, named: tuple[str, ...]) -> None:
    assert visible_gpus(mask) == named


def test_a_local_cluster_gets_the_gpus_of_the_mask() -> None:
    assert local_gpus(0, None, 8) == local_gpus(0, "0,1", 8) == ()
    assert local_gpus(1, None, 3) == ("0", "1", "2")
    assert local_gpus(1, "5,2", 8) == ("5", "2")
    assert local_gpus(1, "0,7,1", 4) == ("0",)
    assert local_gpus(1, "", 4) == ()
    assert local_gpus(1, ",".join(UUIDS), 8) == UUIDS
    assert local_gpus(1, "1", 0) == ("1",)  # nobody could count them
    assert local_gpus(1, None, 0) == ()


def test_gpus_are_dealt_to_nodes_evenly() -> None:
    assert [dealt(UUIDS, 2, index) for index in range(2)] == [(UUIDS[0],), (UUIDS[1],)]
    assert [dealt(("5", "2", "7"), 2, index) for index in range(2)] == [("5",), ("2", "7")]
    assert [len(dealt(("0",), 4, index)) for index in range(4)] == [0, 0, 0, 1]
    assert dealt((), 4, 0) == ()


def test_workers_on_gpus_survive_a_lost_peer_in_their_process() -> None:
    assert device_environment(1)["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "0"
    assert not RECOVERY_IN_PROCESS.keys() & device_environment(0).keys()


def test_the_users_variables_win_over_defaults_and_the_jobs_over_the_users() -> None:
    mine = {"NCCL_DEBUG": "INFO", "NCCL_NVLS_ENABLE": "1", "HOME": "/root"}
    found = user_variables(1, mine, {"NCCL_DEBUG": "WARN"})
    assert (found["NCCL_DEBUG"], found["NCCL_NVLS_ENABLE"]) == ("WARN", "1")
    assert found["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert "HOME" not in found
    assert user_variables(0, mine, {"A": "b"}) == {"A": "b"}


def test_a_job_may_not_set_what_convoy_sets() -> None:
    assert {*device_environment(0), *device_environment(1)} <= DECIDED_VARIABLES

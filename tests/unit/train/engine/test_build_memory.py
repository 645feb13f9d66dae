"""A GPU that is full before the first sample, and memory that others hold, on a device whose driver is played."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from orchestrator.domain.devices.device_room import CONTEXT_BYTES, DeviceRoom
from orchestrator.domain.errors import BEFORE_SAMPLES, DeviceMemoryError
from orchestrator.domain.events import EventBody, WarningIssued
from orchestrator.domain.generation import Ending, FailureDetails, WorkerFailure
from orchestrator.gang.agent import worker_actor
from orchestrator.planner.model_shape import ModelShape
from orchestrator.spec.job import JobSpec
from orchestrator.train.engine import gpu_check as module
from orchestrator.train.engine.build_memory import no_samples_yet, shape_of, tell_room
from orchestrator.train.engine.gpu_check import check_gpu, device_room
from orchestrator.train.standalone import StandaloneSession, smallest_room
from tests.events import recorded

pytestmark = pytest.mark.unit

GIB = 2**30
CUDA = torch.device("cuda", 0)
SHAPE = ModelShape(32_000_000_000, 60, 6656, 52, 32_000, 17_920, architecture="llama")
SPEC = JobSpec.model_validate(
    {
        "name": "m",
        "model": {"architecture": "llama"},
        "tokenizer": {"train": {}},
        "data": {"sources": [{"files": ["x"]}], "sequence_length": 2048},
        "train": {"steps": 1, "global_batch": 8, "lr": 0.1, "precision": "bf16", "activation_checkpointing": True},
        "zero": {"stage": 3},
        "resources": {"gpus_per_worker": 1},
    }
)


class Told(StandaloneSession):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(3, 8, 3, None)
        self.events: list[tuple[type[EventBody], dict[str, Any]]] = []

    def report_event(self, body: EventBody) -> None:
        self.events.append(recorded(body))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU of 80 GiB, as torch tells of it."""
    found = SimpleNamespace(free=79 * GIB, reserved=0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (found.free, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: found.reserved)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    return found


def failed(error: Exception) -> WorkerFailure:
    """What arrives at the driver."""
    raised = worker_actor.describe(3, error)
    details = FailureDetails.from_json(raised.details)
    return WorkerFailure(3, Ending.RAISED, 1.0, f"{raised.type}: {raised.message}", "", raised.hint, details)


def test_a_gpu_that_works_tells_its_memory(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "usable_device", lambda gpus, local_rank: module.Device("cuda", 0))
    assert check_gpu() == DeviceRoom(79 * GIB, 80 * GIB, "NVIDIA H100")
    # What torch's own allocator has cached is free for it.
    gpu.free, gpu.reserved = 50 * GIB, 29 * GIB
    assert device_room(CUDA).free_bytes == 79 * GIB


def test_out_of_memory_before_the_first_sample_says_what_would_help(gpu: SimpleNamespace) -> None:
    session = Told()
    with (
        pytest.raises(DeviceMemoryError) as caught,
        no_samples_yet(session, SPEC, lambda: SHAPE, tell_room(session, CUDA)),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 436.00 MiB.\nMore.")
    text = caught.value.message
    assert text.startswith(
        "out of memory on the GPU: the engine does not fit the GPU before the first sample: it needs"
    )
    assert "optimizer 44.7 GiB" in text
    assert text.endswith("(CUDA out of memory. Tried to allocate 436.00 MiB.)")
    assert "16 workers (" in str(caught.value.hint)
    assert session.events == []
    # What the driver makes of it: no halving, and no recovery, since nobody was lost.
    failure = failed(caught.value)
    assert (failure.is_out_of_memory, failure.details.before_samples, failure.lost_nobody) == (True, True, True)


def test_memory_that_others_hold_is_told_and_may_come_back(gpu: SimpleNamespace) -> None:
    gpu.free = 20 * GIB
    session = Told()
    with (
        pytest.raises(DeviceMemoryError) as caught,
        no_samples_yet(session, SPEC, lambda: SHAPE, tell_room(session, CUDA)),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    ((kind, fields),) = session.events
    assert kind is WarningIssued
    assert fields["message"].startswith("other processes hold 59.4 of 80.0 GiB on the NVIDIA H100 of rank 3 on ")
    assert caught.value.details[BEFORE_SAMPLES]["foreign_bytes"] == 60 * GIB - CONTEXT_BYTES
    failure = failed(caught.value)
    assert not failure.lost_nobody


def test_on_a_cpu_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: pytest.fail("a GPU was asked"))
    assert tell_room(Told(), torch.device("cpu")) is None


def test_the_sizes_of_a_model_that_is_built() -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, vocab_size=50
    )
    shape = shape_of(SimpleNamespace(config=config), 12_345)
    assert (shape.parameters, shape.layers, shape.width, shape.inner, shape.vocab_size) == (12_345, 2, 64, 96, 50)
    assert shape.architecture == "llama"


def test_a_process_gives_back_what_its_allocator_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[int] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    worker_actor._give_memory_back()
    assert emptied == []  # no GPU was used
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    worker_actor._give_memory_back()
    assert emptied == [1]

    def fails() -> None:
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")

    monkeypatch.setattr(torch.cuda, "empty_cache", fails)
    worker_actor._give_memory_back()  # the result of the run is not lost over it


class OfTwo(StandaloneSession):
    """Rank 0 of two, whose other rank has a GPU that is partly taken."""

    def __init__(self) -> None:
        super().__init__(0, 2, 0, None)

    def lookup(self, key: str, timeout_s: float) -> str:
        assert key == "room/1"
        return '{"free_bytes": 100, "total_bytes": 1000, "name": "x"}'


def test_ranks_without_a_driver_plan_for_the_smallest_gpu() -> None:
    own = DeviceRoom(80 * GIB, 80 * GIB)
    assert smallest_room(StandaloneSession(0, 1, 0, None), own) == own
    assert smallest_room(OfTwo(), own) == DeviceRoom(100, 1000, "x")

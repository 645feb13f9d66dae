"""GPUs of a machine, and workers whose GPU cannot be used."""

from pathlib import Path
from typing import Any

import pynvml
import pytest

from orchestrator.clusters.ray import gpus
from orchestrator.domain.devices.device import DeviceProblem
from orchestrator.domain.devices.device_room import DeviceRoom
from orchestrator.gang.agent.worker_actor import Hello
from orchestrator.gang.group import device_checks, pending_workers
from orchestrator.gang.group.pending_workers import FIRST_PAUSE_S, PendingWorkers

pytestmark = pytest.mark.unit

HELLO = Hello("node", "10.0.0.7", "gpu-03", 4711, "/tmp/output")
PROBLEM = DeviceProblem("no NVIDIA driver answers", "install the driver")


def test_gpus_are_counted(tmp_path: Path) -> None:
    assert gpus.count_gpus(tmp_path / "none") == 0
    for bus in ("0000:17:00.0", "0000:65:00.0"):
        (tmp_path / bus).mkdir()
    assert gpus.count_gpus(tmp_path) == 2


def test_where_proc_is_hidden_the_drivers_library_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: asked.append("begin"))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 8)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: asked.append("end"))
    assert gpus.count_gpus(tmp_path / "none") == 8
    assert asked == ["begin", "end"]

    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert gpus.count_gpus(tmp_path / "none") == 0


def test_the_mask_of_a_machine() -> None:
    assert gpus.mask_variable(nvidia=True, amd=True) == "CUDA_VISIBLE_DEVICES"
    assert gpus.mask_variable(nvidia=False, amd=False) == "CUDA_VISIBLE_DEVICES"
    assert gpus.mask_variable(nvidia=False, amd=True) == "HIP_VISIBLE_DEVICES"


def test_a_mask_that_hides_all_gpus_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "count_gpus", lambda: 2)
    monkeypatch.setattr(gpus, "machine_mask_variable", lambda: "CUDA_VISIBLE_DEVICES")
    told: list[str] = []
    assert gpus.gpus_for(1, {"CUDA_VISIBLE_DEVICES": "1"}, told.append) == ("1",)
    assert gpus.gpus_for(0, {"CUDA_VISIBLE_DEVICES": ""}, told.append) == ()
    assert told == []
    assert gpus.gpus_for(1, {"CUDA_VISIBLE_DEVICES": ""}, told.append) == ()
    assert "hides all 2 GPUs" in told[0]


def test_a_refusal_names_where_and_why() -> None:
    other = Hello("node-2", "10.0.0.8", "gpu-04", 12, "/tmp/output")
    refused = device_checks._refusal([(HELLO, PROBLEM), (other, PROBLEM)], 4)
    assert refused.exit_code == 2
    assert refused.message.startswith("resources.gpus_per_worker is 1, but 2 of 4 workers cannot use a GPU: ")
    assert "on gpu-03 (10.0.0.7, process 4711): no NVIDIA driver answers; on gpu-04 (10.0.0.8" in refused.message
    assert refused.hint == "install the driver"


GIB = 1 << 30
EMPTY = DeviceRoom(79 * GIB, 80 * GIB, "NVIDIA H100")
SHARED = DeviceRoom(30 * GIB, 80 * GIB, "NVIDIA H100")


def test_memory_that_others_hold_is_told_by_name() -> None:
    assert device_checks.shared_text(HELLO, None) is None
    assert device_checks.shared_text(HELLO, EMPTY) is None
    text = device_checks.shared_text(HELLO, SHARED)
    assert text is not None
    assert text.startswith(
        "other processes hold 49.4 of 80.0 GiB on the NVIDIA H100 of a worker on gpu-03 (10.0.0.7, process 47"
    )


def test_checks_tell_how_much_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_checks.ray, "get", lambda refs: refs)
    monkeypatch.setattr(device_checks.ray, "wait", lambda refs, num_returns, timeout: (refs, []))
    told: list[str] = []
    actors = [Answers(EMPTY), Answers(SHARED)]
    checks = device_checks.DeviceChecks(actors, [HELLO, HELLO], "module:check")
    assert checks.rooms == [None, None]
    assert checks.passed(lambda: False, told.append)
    assert checks.rooms == [EMPTY, SHARED]
    assert len(told) == 1
    # On CPUs nobody is asked.
    checks = device_checks.DeviceChecks(actors, [HELLO, HELLO], None)
    assert checks.passed(lambda: False, told.append)
    assert checks.rooms == [None, None]


class Answers:
    """In place of Ray: what is asked of an actor is its answer, and there at once."""

    def __init__(self, problem: DeviceProblem | DeviceRoom | None) -> None:
        self.problem = problem

    def __getattr__(self, name: str) -> Any:
        answer = {"hello": HELLO, "check_device": self.problem, "warm": 0.0}[name]
        return type("Method", (), {"remote": staticmethod(lambda *_: answer)})


def test_a_worker_whose_gpu_does_not_work_never_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(pending_workers, "_done", lambda ref: True)
    monkeypatch.setattr(pending_workers.ray, "get", lambda ref: ref)
    monkeypatch.setattr(pending_workers.ray, "kill", lambda actor, no_restart: None)
    monkeypatch.setattr(pending_workers.time, "monotonic", lambda: clock[0])
    told: list[str] = []
    problems: list[DeviceProblem | DeviceRoom] = [PROBLEM, PROBLEM, SHARED]
    found = PendingWorkers(lambda group: Answers(problems.pop(0)), ("torch",), "module:check", told.append)
    for number in (1, 2):
        found.call("group")
        assert found.look() == []
        assert (found.coming, found.ready, found.paused) == (0, 0, True)
        assert "gpu-03 (10.0.0.7) cannot join, its GPU cannot be used: no NVIDIA driver answers" in told[-1]
        clock[0] += FIRST_PAUSE_S * number - 1
        assert not found.pause_ended()
        clock[0] += 1
        assert found.pause_ended()
        assert not found.pause_ended()
        assert not found.paused
    found.call("group")
    assert found.look() == ["node"]
    assert found.ready == 1
    assert "other processes hold 49.4 of 80.0 GiB" in told[-1]
    assert found.join(1)[0].room == SHARED

"""The queues between a training thread and its agent."""

import threading
import time
from pathlib import Path

import pytest

from orchestrator.domain.errors import (
    BrokenDeviceError,
    CheckpointError,
    DataError,
    NotPublishedError,
    PeerLostError,
    PeerStateError,
)
from orchestrator.domain.events import Event, WorkerPhase
from orchestrator.domain.policy.hang import Phase
from orchestrator.domain.session import Leave
from orchestrator.gang.agent import process_activity
from orchestrator.gang.agent import report_queue as module
from orchestrator.gang.agent.ray_session import Assignment, RaySession
from orchestrator.gang.agent.report_queue import Heartbeat, Published, ReportQueue
from orchestrator.gang.agent.worker_actor import describe, worker_environment
from orchestrator.gang.file_transfer import Files, FileServer
from tests.events import body

pytestmark = pytest.mark.unit

LEASE = Heartbeat(0, 0, Phase.START)


def session(tmp_path: Path) -> tuple[RaySession, ReportQueue]:
    outbox = ReportQueue()
    files = Files(FileServer((str(tmp_path),), str(tmp_path)), str(tmp_path / "m"), "w", tmp_path / "cache", {})
    return RaySession(Assignment(1, 2, 0, "127.0.0.1"), outbox, files), outbox


def test_a_poll_returns_as_soon_as_there_is_something() -> None:
    outbox = ReportQueue()
    threading.Timer(0.05, outbox.put, [Published("a", "1")]).start()
    started = time.monotonic()
    batch = outbox.take(LEASE, 10.0, lambda: True)
    assert time.monotonic() - started < 5.0
    assert batch.items == (Published("a", "1"),)
    assert outbox.take(LEASE, 0.0, lambda: True).items == ()


def test_lines_are_bounded_and_losses_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINES", 3)
    outbox = ReportQueue()
    outbox.put_lines(["1", "2", "3", "4", "5"])
    batch = outbox.take(LEASE, 0.0, lambda: True)
    assert (batch.lines, batch.lines_dropped) == (("3", "4", "5"), 2)
    assert outbox.take(LEASE, 0.0, lambda: True).lines_dropped == 0


def test_what_a_session_says(tmp_path: Path) -> None:
    worker, outbox = session(tmp_path)
    worker.report_event(body(WorkerPhase, rank=1, phase="build"))
    worker.publish("key", "value")
    items = outbox.take(LEASE, 0.0, lambda: True).items
    assert isinstance(items[0], Event)
    assert items[1] == Published("key", "value")
    worker.beat(3, Phase.FORWARD)
    worker.beat(3, Phase.BACKWARD)
    heartbeat = worker.heartbeat
    assert (heartbeat.rank, heartbeat.step, heartbeat.phase, heartbeat.beat) == (1, 3, Phase.BACKWARD, 1)
    assert heartbeat.still_s >= 0
    assert worker.lookup("key", 0.0) == "value"


def test_beats_say_how_far_it_is(tmp_path: Path) -> None:
    worker, _ = session(tmp_path)
    assert (worker.heartbeat.rank, worker.heartbeat.step, worker.heartbeat.phase) == (1, 0, Phase.START)
    worker.beat(7, Phase.DATA)
    first = worker.heartbeat
    worker.beat(7, Phase.FORWARD)
    second = worker.heartbeat
    worker.beat(8, Phase.DATA)
    assert [(heartbeat.step, heartbeat.beat) for heartbeat in (first, second, worker.heartbeat)] == [
        (7, 0),
        (7, 1),
        (8, 0),
    ]
    time.sleep(0.02)
    assert worker.heartbeat.still_s >= 0.02


def test_progress_is_no_beat(tmp_path: Path) -> None:
    worker, _ = session(tmp_path)
    worker.beat(7, Phase.CHECKPOINT)
    before = worker.heartbeat
    pool = [threading.Thread(target=worker.progress) for _ in range(4)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    worker.progress()
    after = worker.heartbeat
    assert (after.step, after.beat, after.phase) == (before.step, before.beat, before.phase)
    assert after.progress == before.progress + 5
    worker.beat(8, Phase.DATA)
    assert worker.heartbeat.progress == after.progress


def test_a_process_that_works_without_a_word_is_seen_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training thread is in one long call that writes a file: the agent sees its I/O."""
    monkeypatch.setattr(process_activity, "IDLE_S", 0.0)
    monkeypatch.setattr(process_activity, "PAUSE_S", 0.0)
    worker, _ = session(tmp_path)
    worker.beat(0, Phase.EXPORT)
    before = worker.heartbeat
    (tmp_path / "weights").write_bytes(bytes(2 << 20))
    assert worker.heartbeat.progress == before.progress + 1
    assert not worker.heartbeat.blocked


def test_a_lost_answer_comes_again() -> None:
    outbox = ReportQueue()
    outbox.put(Published("a", "1"))
    lost = outbox.take(LEASE, 0.0, lambda: True, 0)
    assert lost.items == (Published("a", "1"),)
    outbox.put(Published("b", "2"))
    later = Heartbeat(0, 3, Phase.FORWARD)
    again = outbox.take(later, 0.0, lambda: True, 0)
    assert (again.items, again.number, again.heartbeat) == (lost.items, lost.number, later)
    arrived = outbox.take(LEASE, 0.0, lambda: True, again.number)
    assert (arrived.items, arrived.number) == ((Published("b", "2"),), again.number + 1)
    empty = outbox.take(LEASE, 0.0, lambda: True, arrived.number)
    assert (empty.items, empty.number) == ((), arrived.number)


def test_lookup_waits_and_gives_up(tmp_path: Path) -> None:
    worker, _ = session(tmp_path)
    threading.Timer(0.05, worker.deliver, [{"late": "x"}]).start()
    assert worker.lookup("late", 10.0) == "x"
    with pytest.raises(TimeoutError, match="'never' within 0 s"):
        worker.lookup("never", 0.01)


def test_stop_is_seen(tmp_path: Path) -> None:
    worker, _ = session(tmp_path)
    assert worker.leave() is Leave.NO
    worker.request_leave(Leave.STOP)
    worker.request_leave(Leave.REGROUP)
    assert worker.leave() is Leave.STOP


def test_environment_of_a_worker() -> None:
    env = worker_environment(2.0, 0, {"HF_HUB_OFFLINE": "1", "SECRET": "x"})
    assert (env["OMP_NUM_THREADS"], env["DS_ACCELERATOR"], env["HF_HUB_OFFLINE"]) == ("2", "cpu", "1")
    assert "SECRET" not in env
    assert worker_environment(2.0, 1, {"OMP_NUM_THREADS": "5"})["OMP_NUM_THREADS"] == "5"


def test_the_device_of_a_worker_is_the_specs_whatever_the_environment_says() -> None:
    """These values replace the node's, so that a cluster's own environment does not decide either."""
    there = {"DS_ACCELERATOR": "cuda", "CUDA_VISIBLE_DEVICES": "0,1", "HIP_VISIBLE_DEVICES": "0"}
    env = worker_environment(1.0, 0, there)
    assert (env["DS_ACCELERATOR"], env["CUDA_VISIBLE_DEVICES"], env["HIP_VISIBLE_DEVICES"]) == ("cpu", "", "-1")
    env = worker_environment(1.0, 1, {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "0,1"})
    assert env["DS_ACCELERATOR"] == "cuda"
    assert "CUDA_VISIBLE_DEVICES" not in env  # that is for Ray to say


def test_an_exception_as_text() -> None:
    try:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ValueError("outer") from inner
    except ValueError as error:
        raised = describe(3, error)
    assert (raised.rank, raised.type, raised.message) == (3, "ValueError", "outer")
    assert "KeyError: 'inner'" in raised.traceback_text
    assert "The above exception was the direct cause" in raised.traceback_text


def test_variables_of_the_job_reach_workers_and_do_not_decide_the_device() -> None:
    env = worker_environment(1.0, 1, {"NCCL_DEBUG": "INFO"}, {"OMP_NUM_THREADS": "3", "DS_ACCELERATOR": "cpu"})
    assert (env["OMP_NUM_THREADS"], env["NCCL_DEBUG"], env["DS_ACCELERATOR"]) == ("3", "INFO", "cuda")


def raised_from(error: Exception, other: Exception) -> Exception:
    error.__cause__ = other
    return error


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "device"),
        (RuntimeError("[gloo] Connection closed by peer"), "peer"),
        (PeerLostError("left the collective: this generation was interrupted"), "peer"),
        (PeerLostError("left the collective on request of the driver: MemoryError: Unable to allocate 8 EiB"), "peer"),
        (BrokenDeviceError("rank 1 cannot use its GPU: anything"), "device"),
        (NotPublishedError("anything"), "peer"),
        (PeerStateError("anything"), "peer"),
        (raised_from(CheckpointError("anything"), ConnectionResetError("anything")), "peer"),
        (raised_from(CheckpointError("anything"), RuntimeError("CUDA out of memory")), "out of memory"),
        # What an error of Convoy says decides nothing.
        (CheckpointError("the vault at 10.0.0.1:1 cannot be reached: connection refused"), None),
        (DataError("want of memory: out of memory"), None),
        (MemoryError(), "out of memory"),
        (ValueError("3 is no good"), None),
    ],
)
def test_an_exception_travels_with_its_cause(error: Exception, cause: str | None) -> None:
    assert describe(0, error).details.get("cause") == cause

"""Trackers: what they get arrives once, and one that fails, hangs or dies costs a run nothing but its points."""

import importlib.util
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.domain.events import (
    EvalFinished,
    GangResized,
    MetricsServing,
    RecoveryFinished,
    RecoveryStarted,
    RunState,
    StateChanged,
    TrackerEnded,
    TrackerReady,
    WarningIssued,
)
from orchestrator.domain.ranks.rank_report import PhaseTimes, RankMemory, RankReport
from orchestrator.domain.ranks.rank_summary import summarise
from orchestrator.domain.step_report import StepReport
from orchestrator.store.metric_targets import targets_directory
from orchestrator.trackers import tracker_observer
from orchestrator.trackers.tracker_observer import TrackerObserver
from orchestrator.trackers.tracker_points import Point
from orchestrator.trackers.tracker_process import MAX_QUEUED, News, NewsKind, Patience, TrackerProcess
from orchestrator.trackers.tracker_sink import TrackedRun
from tests.cluster.gang_runs import all_pids, ray_processes, run
from tests.events import event

pytestmark = pytest.mark.cluster
PATIENCE = Patience(total_s=20.0, stuck_s=10.0, stopped_s=0.2)
IMPATIENCE = Patience(total_s=0.3, stuck_s=0.3, stopped_s=0.2)
SECRET = "0123456789abcdef0123456789abcdef01234567"
SINKS = {
    "tensorboard": "orchestrator.trackers.tensorboard_sink:open_tensorboard",
    "wandb": "orchestrator.trackers.wandb_sink:open_wandb",
}


def started(directory: Path, sink: str, settings: dict[str, Any] | None = None, **env: str) -> TrackerProcess:
    tracked = TrackedRun("tiny-1", "tiny", directory, settings or {}, {"train": {"lr": 1e-3}})
    hello = {"sink": SINKS.get(sink, f"tests.cluster.tracker_sinks:{sink}"), "run": tracked.to_json()}
    return TrackerProcess(sink, hello, directory, {**os.environ, "WANDB_API_KEY": SECRET, **env})


def point(step: int) -> dict[str, Any]:
    return {"point": Point(step, 100.0 + step, {"train/loss": 8.0 / step}).to_json()}


def wait_for_news(process: TrackerProcess, kind: NewsKind, timeout_s: float = 20.0) -> list[str]:
    """What it says up to the first news of a kind."""
    said: list[News] = []
    deadline = time.monotonic() + timeout_s
    while not any(news.kind is kind for news in said):
        assert time.monotonic() < deadline, f"no news of {kind}: {said}"
        said += process.news()
        time.sleep(0.01)
    return [news.text for news in said]


def end(process: TrackerProcess, exit_code: int, patience: Patience, hurry: Callable[[], bool]) -> bool:
    process.ask_to_end(exit_code)
    return process.close(patience, hurry)


def is_gone(process: TrackerProcess) -> bool:
    try:
        return psutil.Process(process._process.pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_tracker_gets_everything_in_its_own_process(tmp_path: Path) -> None:
    process = started(tmp_path, "sound")
    for step in range(1, 501):
        process.put(point(step))
    assert wait_for_news(process, NewsKind.READY) == ["not quite as asked for", "memory of tiny-1"]
    assert end(process, 0, PATIENCE, lambda: False)
    assert (process.logged, process.dropped, process.lost) == (500, 0, 0)
    assert is_gone(process)


@pytest.mark.parametrize("sink", ["hanging", "slow"])
def test_a_tracker_that_does_not_keep_up_holds_nobody(tmp_path: Path, sink: str) -> None:
    process = started(tmp_path, sink)
    wait_for_news(process, NewsKind.READY)
    longest_s, points = 0.0, MAX_QUEUED + 5000
    for step in range(1, points + 1):
        began_s = time.perf_counter()
        process.put(point(step))
        longest_s = max(longest_s, time.perf_counter() - began_s)
    assert longest_s < 1.0, "no point waits for the tracker"
    assert process.dropped > 0
    began_s = time.monotonic()
    assert not end(process, 0, IMPATIENCE, lambda: False)
    assert time.monotonic() - began_s < 5.0
    assert process.lost == points - process.logged
    assert is_gone(process)


@pytest.mark.parametrize(("sink", "alone"), [("slow_at_the_end", True), ("hanging", False)])
def test_the_end_of_a_run_that_was_stopped_waits_hardly(tmp_path: Path, sink: str, alone: bool) -> None:
    """A tracker that has all points delivers them alone; one that hangs is killed."""
    process = started(tmp_path, sink)
    process.put(point(1))
    wait_for_news(process, NewsKind.READY)
    began_s = time.monotonic()
    assert not end(process, 130, PATIENCE, lambda: True)
    assert time.monotonic() - began_s < 5.0
    assert process.left_alone is alone
    deadline = time.monotonic() + 20.0
    while not is_gone(process):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert (tmp_path / "delivered").exists() is alone


@pytest.mark.parametrize(
    ("sink", "said"),
    [
        ("raising", "ValueError: no place left for ***"),
        ("dying", "its process has ended: Segmentation fault"),
        ("never_opened", "RuntimeError: the server says no"),
        ("not_there", "AttributeError"),
    ],
)
def test_a_tracker_that_fails_says_why_once(tmp_path: Path, sink: str, said: str) -> None:
    process = started(tmp_path, sink)
    for step in range(1, 11):
        process.put(point(step))
    assert said in wait_for_news(process, NewsKind.FAILED)[-1]
    process.put(point(11))
    assert not end(process, 1, PATIENCE, lambda: False)
    assert process.news() == []
    assert process.lost == 11 - process.logged
    assert process.logged <= 2
    assert is_gone(process)


ORPHAN = """
import os, signal, sys, time
from pathlib import Path
from tests.cluster.test_trackers import point, started, wait_for_news
from orchestrator.trackers.tracker_process import NewsKind
process = started(Path(sys.argv[1]), "sound")
wait_for_news(process, NewsKind.READY)
print(process._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_tracker_ends_with_its_driver(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", ORPHAN, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    pid, deadline = int(killed.stdout), time.monotonic() + 20.0
    while psutil.pid_exists(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Emitted:
    def __init__(self) -> None:
        self.bodies: list[Any] = []

    def __call__(self, body: Any, /) -> None:
        self.bodies.append(body)

    def of(self, kind: type) -> list[Any]:
        return [body for body in self.bodies if isinstance(body, kind)]


def report(step: int, loss: float | None = None) -> StepReport:
    ranks = summarise([RankReport(0, 4, 64, PhaseTimes(0.1, 0.1, 0.1, 0.1), RankMemory(1000, 2000))])
    return StepReport(
        step=step, time_s=100.0 + step, epoch=0.1, loss=8.0 / step if loss is None else loss, grad_norm=1.0, lr=1e-3,
        tokens=64, target_tokens=60, samples=4, first_position=0, data_digest=1, step_time_s=0.5, tokens_per_s=128.0,
        tokens_per_s_per_worker=128.0, tflops_per_s=None, mfu=None, world_size=2, micro_batch=2, accumulation=1,
        ranks=ranks,
    )  # fmt: skip


def a_training_with_a_recovery(observer: TrackerObserver) -> None:
    """Steps 1 to 8; a recovery goes back to step 5; steps 6 to 10; then a resize."""
    observer.on_event(event(EvalFinished, 100.0, step=0, loss=5.5, perplexity=244.7))
    for step in range(1, 9):
        if step in (4, 8):  # a validation loss comes before the step that it belongs to
            observer.on_event(event(EvalFinished, 100.0 + step, step=step, loss=10.0 / step, perplexity=2.0))
        observer.on_step(report(step))
    observer.on_event(event(RecoveryStarted, 109.0, rank=1, cause="killed", step=8, from_step=5))
    observer.on_step(report(6, loss=0.6))
    observer.on_event(event(RecoveryFinished, 110.0, step=6, world_size=1, seconds=1.5, steps_recomputed=3))
    for step in range(7, 11):
        observer.on_step(report(step, loss=step / 10))
    observer.on_event(event(GangResized, 111.0, step=10, before=1, world_size=2))


def the_resumed_training(observer: TrackerObserver) -> None:
    """A later driver goes on from step 8."""
    observer.on_event(event(EvalFinished, 109.0, step=8, loss=1.2, perplexity=3.0))
    for step in range(9, 13):
        observer.on_step(report(step, loss=step / 10))
    observer.on_event(event(StateChanged, 120.0, state="succeeded"))


def track(directory: Path, tracker: str, settings: dict[str, Any], lives: list[Callable[..., None]]) -> Emitted:
    emitted = Emitted()
    for number, life in enumerate(lives, 1):
        process = started(directory, tracker, settings)
        observer = TrackerObserver(tracker, process, emitted, interval_steps=1)
        life(observer)
        observer.ask_to_end(0 if number == len(lives) else 1)
        observer.close(lambda: False)
    assert [(each.dropped, each.problem) for each in emitted.of(TrackerEnded)] == [(0, None)] * len(lives), (
        emitted.bodies
    )
    return emitted


@pytest.mark.needs("tensorboard")
def test_tensorboard_shows_each_step_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    emitted = track(tmp_path, "tensorboard", {}, [a_training_with_a_recovery, the_resumed_training])
    place = Path(emitted.of(TrackerReady)[0].place)
    assert place == tmp_path / "tensorboard"
    assert len(list(place.iterdir())) == 2, "one file for each driver"
    found = EventAccumulator(str(place)).Reload()
    losses = {each.step: each.value for each in found.Scalars("train/loss")}
    assert [each.step for each in found.Scalars("train/loss")] == list(range(1, 13))
    assert losses == pytest.approx({**{s: 8.0 / s for s in range(1, 6)}, **{s: s / 10 for s in range(6, 13)}})
    assert [(each.step, each.value) for each in found.Scalars("workers/count")][-1] == (12, 2.0)
    # What lies behind the step that training went back to is no part of the run any more.
    assert [(each.step, each.value) for each in found.Scalars("eval/loss")] == [(0, 5.5), (4, 2.5)]
    assert [each.step for each in found.Scalars("events/recovery_seconds")] == [6]
    texts = {tag: found.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in found.Tags()["tensors"]}
    assert texts["events/recovery/text_summary"].startswith("recovered in 1.5 s with 1 workers, 3 steps recomputed")
    assert "lr: 0.001" in texts["job/text_summary"]


@pytest.mark.needs("tensorboard")
def test_a_directory_for_several_runs(tmp_path: Path) -> None:
    emitted = track(tmp_path, "tensorboard", {"dir": str(tmp_path / "all")}, [the_resumed_training])
    assert emitted.of(TrackerReady)[0].place == str(tmp_path / "all" / "tiny-1")


BLOCK_BYTES, HEADER_BYTES = 32 * 1024, 7


def wandb_records(path: Path) -> Iterator[bytes]:
    """What is in the file of an offline run: LevelDB's log format after a header of 7 bytes (the reader of the package
    is a program without a documented output)."""
    data, at, record = path.read_bytes(), HEADER_BYTES, b""
    assert data[:4] == b":W&B"
    while at + HEADER_BYTES <= len(data):
        left = BLOCK_BYTES - at % BLOCK_BYTES
        if left < HEADER_BYTES:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER_BYTES])
        record += data[at + HEADER_BYTES : at + HEADER_BYTES + length]
        at += HEADER_BYTES + length
        if kind in (1, 4):  # the whole of a record, or its last piece
            yield record
            record = b""


def wandb_history(directory: Path) -> Iterator[dict[str, Any]]:
    """Rows of all offline runs, in the order in which they were made."""
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(directory.glob("wandb/offline-run-*/run-*.wandb")):
        for data in wandb_records(path):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


@pytest.mark.needs("wandb")
def test_wandb_offline_continues_its_run_and_repeats_no_step(tmp_path: Path) -> None:
    settings = {"project": "p", "mode": "offline", "tags": ["a"], "name": None, "group": None, "notes": None}
    emitted = track(tmp_path, "wandb", settings, [a_training_with_a_recovery, the_resumed_training])
    folders = sorted(tmp_path.glob("wandb/offline-run-*"))
    assert len(folders) == 2
    assert {folder.name.rpartition("-run-")[2].partition("-")[2] for folder in folders} == {"tiny-1"}
    assert emitted.of(TrackerReady)[0].place == str(folders[0])
    rows = list(wandb_history(tmp_path))
    losses = [(row["_step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert [step for step, _ in losses] == list(range(1, 13)), "the first of each step stays"
    assert dict(losses)[7] == pytest.approx(8.0 / 7)
    assert [(row["_step"], row["eval/loss"]) for row in rows if "eval/loss" in row] == [
        (0, 5.5), (4, 2.5), (8, 1.25),
    ]  # fmt: skip
    assert [row["events/recovery_seconds"] for row in rows if "events/recovery_seconds" in row] == [1.5]
    assert [row["events/resize_count"] for row in rows if "events/resize_count" in row] == [1.0]
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in content for content in kept)


HANGING_WANDB = """
import time

class Settings:
    def __init__(self, **settings):
        pass

def init(**arguments):
    time.sleep(3600)
"""


@pytest.mark.usefixtures("temporary_directory")
def test_a_run_whose_tracker_hangs_trains_as_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And tells how many points were lost. TensorBoard beside it, if it is installed, gets all of them."""
    packages = tmp_path / "packages"
    (packages / "wandb").mkdir(parents=True)
    (packages / "wandb" / "__init__.py").write_text(HANGING_WANDB)
    monkeypatch.syspath_prepend(str(packages))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(tracker_observer, "PATIENCE", replace(tracker_observer.PATIENCE, total_s=1.0))
    pids = all_pids()
    with_tensorboard = {"tensorboard": {"dir": "tb"}} if _has_tensorboard() else {}
    outcome, seen = run(tmp_path, "ring", logging={"wandb": {"mode": "offline"}, **with_tensorboard})
    assert (outcome.state, outcome.reason) == (RunState.SUCCEEDED, None)
    ended = {each["tracker"]: each for each in seen.of(TrackerEnded)}
    assert (ended["W&B"]["logged"], ended["W&B"]["place"]) == (0, "")
    assert ended["W&B"]["dropped"] >= len(seen.steps) + 1 > 1
    assert "did not come to an end in time" in ended["W&B"]["problem"]
    assert [each for each in seen.of(WarningIssued) if "W&B" in each["message"]] == []
    assert ray_processes(pids) == []
    assert len(seen.of(MetricsServing)) == 1
    assert list(targets_directory(tmp_path / "runs").iterdir()) == [], "it was announced, and is no more"
    if with_tensorboard:
        assert (ended["TensorBoard"]["dropped"], ended["TensorBoard"]["problem"]) == (0, None)
        assert ended["TensorBoard"]["place"] == str(tmp_path / "tb" / outcome.run_id)
        assert list((tmp_path / "tb" / outcome.run_id).glob("events.out.tfevents.*"))


def _has_tensorboard() -> bool:
    return importlib.util.find_spec("tensorboard") is not None

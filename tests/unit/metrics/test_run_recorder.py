import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.domain.events import DataProgress, Event, WarningIssued, WorkerLog
from orchestrator.domain.ranks.rank_summary import ranks_from_columns
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.metrics.jsonl import TAIL_BYTES, JsonlWriter, last_object, objects_after, read_jsonl
from orchestrator.metrics.run_recorder import RunRecorder
from orchestrator.store.run_history import facts_after, read_last_ranks
from tests.events import event

pytestmark = pytest.mark.unit


def test_a_step_is_read_back_equal(tmp_path: Path, report: Callable[..., StepReport]) -> None:
    layout = RunLayout(tmp_path)
    recorder = RunRecorder(layout)
    recorder.on_step(report(1))
    recorder.on_step(report(2))
    ranks = [ranks_from_columns(value) for value in read_jsonl(layout.ranks)]
    read = [StepReport.from_json(value) for value in read_jsonl(layout.steps)]
    assert [replace(step.ranks, every=every) for step, every in zip(read, ranks, strict=True)] == [
        replace(report(step).ranks, work=None) for step in (1, 2)
    ]
    assert [replace(step, ranks=report(1).ranks) for step in read] == [report(1), report(2)]
    assert read_last_ranks(layout) == report(2).ranks.every


def test_a_line_is_on_disk_as_soon_as_the_step_is_over(tmp_path: Path, report: Callable[..., StepReport]) -> None:
    layout = RunLayout(tmp_path)
    recorder = RunRecorder(layout)
    recorder.on_step(report(1))
    assert layout.steps.read_bytes().endswith(b"\n")
    recorder.on_event(Event(WarningIssued("hot"), 5.0))
    assert json.loads(layout.events.read_text()) == {"time_s": 5.0, "kind": "warning", "v": 2, "message": "hot"}


def test_progress_and_worker_output_stay_out_of_the_events(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    recorder = RunRecorder(layout)
    recorder.on_event(event(DataProgress, 1.0, done_bytes=5))
    recorder.on_event(event(WorkerLog, 1.0, rank=3, line="hällo\n"))
    assert not layout.events.exists()
    assert layout.log(3).read_text() == "hällo\n"


def test_resuming_after_a_kill_loses_only_the_half_written_line(
    tmp_path: Path, report: Callable[..., StepReport]
) -> None:
    layout = RunLayout(tmp_path)
    first = RunRecorder(layout)
    first.on_step(report(1))
    first.on_step(report(2))
    first.close()
    layout.steps.write_bytes(layout.steps.read_bytes()[:-40])
    second = RunRecorder(layout)
    second.on_step(report(2))
    second.on_step(report(3))
    assert [value["step"] for value in read_jsonl(layout.steps)] == [1, 2, 3]


def test_logs_are_bounded(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    recorder = RunRecorder(layout, log_limit_bytes=1000)
    for number in range(500):
        recorder.on_event(event(WorkerLog, 1.0, rank=0, line=f"line {number:04d}"))
    files = list(layout.logs.iterdir())
    assert len(files) == 2
    assert sum(file.stat().st_size for file in files) <= 2000
    assert layout.log(0).read_text().endswith("line 0499\n")


def test_a_disk_that_fails_is_told_once_and_stops_nothing(
    tmp_path: Path, report: Callable[..., StepReport], capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    recorder = RunRecorder(RunLayout(blocked))
    recorder.on_step(report(1))
    recorder.on_step(report(2))
    recorder.on_event(event(WorkerLog, 1.0, rank=0, line="x"))
    assert capsys.readouterr().err.count("cannot record") == 1


def test_a_loss_that_is_no_number_leaves_valid_json(tmp_path: Path) -> None:
    writer = JsonlWriter(tmp_path / "x.jsonl")
    writer.append({"loss": float("nan"), "nested": [float("inf"), {"a": 1.5}]})
    text = (tmp_path / "x.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"loss": None, "nested": [None, {"a": 1.5}]}


@pytest.mark.parametrize("filler", [10, 100_000, 300_000])
def test_the_last_object_is_found_behind_long_and_broken_lines(tmp_path: Path, filler: int) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "pad": "' + "x" * filler + '"}\n{"step": 3, "pa')
    found = last_object(path)
    assert found is not None
    assert found["step"] == 2


def test_reading_what_is_not_there_gives_nothing(tmp_path: Path) -> None:
    assert list(read_jsonl(tmp_path / "none")) == []
    assert last_object(tmp_path / "none") is None
    (tmp_path / "empty").write_text("")
    assert last_object(tmp_path / "empty") is None


def test_what_a_driver_writes_after_it_was_taken_over_does_not_count(
    tmp_path: Path, report: Callable[..., StepReport]
) -> None:
    """Both write into the same files, one of them without knowing that it has lost the run."""
    layout = RunLayout(tmp_path)
    before = RunRecorder(layout, lease=1)
    for step in (1, 2, 3):
        before.on_step(report(step))
    before.on_event(Event(WarningIssued("of lease 1"), 1.0))
    after = RunRecorder(layout, lease=2)
    after.on_event(Event(WarningIssued("of lease 2"), 3.0))
    after.on_step(report(3))
    for step in (4, 5, 6):
        before.on_step(report(step))
    before.on_event(Event(WarningIssued("too late"), 2.0))
    assert [value["step"] for value in read_jsonl(layout.steps)] == [1, 2, 3, 3]
    assert [value["message"] for value in read_jsonl(layout.events)] == ["of lease 1", "of lease 2"]
    assert all("lease" not in value for value in read_jsonl(layout.steps)), "a step has no such field"
    assert StepReport.from_json(last_object(layout.steps) or {}).to_json() == report(3).to_json()
    raw = [json.loads(line) for line in layout.steps.read_text().splitlines()]
    assert [(value["step"], value["lease"]) for value in raw] == [
        *((step, 1) for step in (1, 2, 3)), (3, 2), *((step, 1) for step in (4, 5, 6)),
    ]  # fmt: skip


def test_records_of_versions_without_leases_count(tmp_path: Path, report: Callable[..., StepReport]) -> None:
    layout = RunLayout(tmp_path)
    RunRecorder(layout).on_step(report(1))
    RunRecorder(layout, lease=1).on_step(report(2))
    assert [value["step"] for value in read_jsonl(layout.steps)] == [1, 2]
    assert [value["step"] for value in read_jsonl(layout.ranks)] == [1, 2]


def test_the_last_object_is_not_one_of_many_that_came_too_late(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    JsonlWriter(path, 1).append({"step": 7})
    JsonlWriter(path, 2).append({"step": 8})
    late = JsonlWriter(path, 1)
    for step in range(9, 30):
        late.append({"step": step, "pad": "x" * 10_000})
    assert last_object(path, lease=2) == {"step": 8}


def test_what_was_recorded_after_a_time_is_read_from_the_end(tmp_path: Path) -> None:
    writer = JsonlWriter(tmp_path / "x.jsonl", lease=1)
    for time_s in range(2000):
        writer.append({"time_s": float(time_s), "filler": "x" * 100})
    JsonlWriter(tmp_path / "x.jsonl").append({"time_s": 3000.0})  # of a driver that has lost the run
    assert (tmp_path / "x.jsonl").stat().st_size > 3 * TAIL_BYTES
    for after_s in (-1.0, 3.0, 1500.5, 1998.0, 2000.0):
        expected = [float(time_s) for time_s in range(2000) if time_s > after_s]
        assert [value["time_s"] for value in objects_after(tmp_path / "x.jsonl", after_s)] == expected
    assert objects_after(tmp_path / "missing.jsonl", 0.0) == []


def test_facts_come_in_the_order_of_their_times(tmp_path: Path, report: Callable[..., StepReport]) -> None:
    layout = RunLayout(tmp_path)
    recorder = RunRecorder(layout)
    for time_s in (1.0, 5.0, 4.0, 9.0):  # the clock of a host is behind
        recorder.on_event(Event(WarningIssued("hot"), time_s))
    for step in (1, 2, 3):
        recorder.on_step(report(step, time_s=3.0 * step))
    times = [fact.time_s for fact in facts_after(layout, None)]
    assert times == [1.0, 3.0, 5.0, 5.0, 6.0, 9.0, 9.0]
    assert [fact.time_s for fact in facts_after(layout, 5.0)] == [6.0, 9.0, 9.0]

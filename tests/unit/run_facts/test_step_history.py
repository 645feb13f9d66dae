"""What is read of `steps.jsonl` in bounded memory is what the list of all steps says."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.metrics.run_recorder import RunRecorder
from orchestrator.run_facts import step_history
from orchestrator.run_facts.step_history import Deadline, StepFollower, read_step_series
from orchestrator.run_facts.step_point import point_from_line, point_from_report
from orchestrator.store.run_history import current_steps
from tests.unit.run_facts.made import Rank, step

pytestmark = pytest.mark.unit
RECORDED = Path(__file__).parents[1] / "store" / "recorded" / "version-1" / "run" / "steps.jsonl"


def write(path: Path, reports: list[StepReport], lease: int = 0) -> None:
    recorder = RunRecorder(RunLayout(path.parent), lease=lease)
    for report in reports:
        recorder.on_step(report)
    recorder.close()


def same_as_all_steps(path: Path) -> None:
    """The series against `current_steps`, which keeps every report."""
    read, expected = read_step_series(path), current_steps(path)
    series, totals = read.series, read.series.totals
    assert totals.steps == len(expected)
    assert series.curves["loss"].means == pytest.approx([report.loss for report in expected])
    assert totals.tokens == sum(report.tokens for report in expected)
    assert totals.step_time_s == pytest.approx(sum(report.step_time_s for report in expected))
    waited_s = sum(report.ranks.spread.data_wait_s.mean(report.world_size) for report in expected)
    assert totals.phase_s("data_wait") == pytest.approx(waited_s)
    if expected:
        assert series.first == point_from_report(expected[0])
        assert series.last == point_from_report(expected[-1])


def test_no_file_is_no_step(tmp_path: Path) -> None:
    read = read_step_series(tmp_path / "steps.jsonl")
    assert (read.series.totals.steps, read.superseded, read.complete, read.series.last) == (0, 0, True, None)


@pytest.mark.parametrize(
    "numbers",
    [
        [1, 2, 3, 4, 5],
        [1, 2, 3, 4, 5, 3, 4, 5, 6],
        [1, 2, 3, 4, 5, 6, 7, 8, 6, 7, 8, 5, 6],
        [1, 2, 3, 4, 5, 6, 7, 8, 6, 7, 6, 7],
        [5, 6, 7, 1, 2],
        [1, 2, 2, 2, 3],
        [4, 3, 2, 1],
    ],
)
def test_a_repeated_step_supersedes_what_came_after_it(tmp_path: Path, numbers: list[int]) -> None:
    path = tmp_path / "steps.jsonl"
    write(path, [step(number, loss=float(place)) for place, number in enumerate(numbers)])
    same_as_all_steps(path)
    assert read_step_series(path).superseded == len(numbers) - len(current_steps(path))


def test_any_order_of_steps_is_read_like_the_list(tmp_path: Path) -> None:
    draw = random.Random(7)
    for case in range(15):
        path = tmp_path / str(case) / "steps.jsonl"
        at, reports = 1, []
        for place in range(draw.randint(1, 40)):
            reports.append(step(at, Rank(data_s=draw.random()), loss=float(place)))
            at = max(1, at + 1 if draw.random() < 0.8 else at - draw.randint(0, 9))
        write(path, reports)
        same_as_all_steps(path)


def test_lines_of_a_driver_that_lost_the_run_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    write(path, [step(number) for number in (1, 2, 3)], lease=1)
    write(path, [step(number, loss=5.0) for number in (3, 4)], lease=2)
    write(path, [step(number, loss=9.0) for number in (4, 5)], lease=1)
    same_as_all_steps(path)
    assert read_step_series(path).series.curves["loss"].means == [8.0, 4.0, 5.0, 5.0]


def test_lines_that_are_cut_short_or_of_other_versions(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    write(path, [step(1), step(2)])
    newer = {**step(3).to_json(), "added_later": {"step": 99}, "mfu": "41%", "spread": None}
    lines = [
        json.dumps(newer),
        '{"v":2,"step":4,"time_s":17',
        "[]",
        '{"other":1}',
        json.dumps({"time_s": 1.0, "step": 4}),
    ]
    path.write_bytes(path.read_bytes() + "\n".join(lines).encode() + b"\n\xff\xfe\n{}")
    series = read_step_series(path).series
    assert series.totals.steps == 4
    assert (series.last and series.last.step, series.totals.mfu) == (4, None)
    assert series.curves["loss"].means == [8.0, 4.0, 8.0 / 3]


def test_a_run_of_version_1_is_read(tmp_path: Path) -> None:
    same_as_all_steps(RECORDED)
    series = read_step_series(RECORDED).series
    assert series.last is not None
    assert series.last.memory_max_bytes > 4e8
    assert series.totals.padding_share is None


def test_reading_ends_at_the_deadline(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    write(path, [step(number) for number in range(1, 20)])
    times = iter([0.0, 1.0, 3.0])
    read = read_step_series(path, Deadline(2.0, lambda: next(times)))
    assert (read.complete, read.series.totals.steps) == (False, 0)


def test_memory_does_not_grow_with_the_steps(tmp_path: Path) -> None:
    """Three times as many steps take no more of it."""
    import tracemalloc

    peaks = []
    for count in (900, 2_700):
        path = tmp_path / str(count) / "steps.jsonl"
        path.parent.mkdir()
        line = json.dumps(step(1).to_json()).replace('"step": 1,', '"step": %d,')
        path.write_text("".join(line % number + "\n" for number in range(1, count + 1)))
        tracemalloc.start()
        series = read_step_series(path).series
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert series.totals.steps == count
    assert peaks[1] < 1.5 * peaks[0]


def follow(path: Path) -> Callable[[], list[float]]:
    follower = StepFollower(path)

    def losses() -> list[float]:
        follower.refresh()
        return follower.losses

    return losses


def test_a_growing_file_is_followed_through_repeated_steps(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    losses = follow(path)
    assert losses() == []
    for numbers in ([1, 2, 3], [4, 3], [4, 5, 1], [2]):
        write(path, [step(number, loss=float(number)) for number in numbers])
        assert losses() == [report.loss for report in current_steps(path)]
    with path.open("a") as file:
        half = json.dumps(step(3, loss=3.5).to_json())
        file.write(half[:100])
        file.flush()
        assert losses() == [1.0, 2.0]
        file.write(half[100:] + "\n")
    assert losses() == [1.0, 2.0, 3.5]


def test_only_the_end_of_a_long_file_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    write(path, [step(number) for number in range(1, 100)])
    follower = StepFollower(path, most_bytes=path.stat().st_size // 10)
    follower.refresh()
    assert 5 <= len(follower.recent) <= 11
    assert follower.recent[-1].step == 99
    assert not follower.whole


def test_going_back_further_than_the_window_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_history, "WINDOW_STEPS", 4)
    path = tmp_path / "steps.jsonl"
    losses = follow(path)
    write(path, [step(number, loss=float(number)) for number in range(1, 20)])
    assert len(losses()) == 19
    write(path, [step(number, loss=50.0) for number in (2, 3, 4)])
    assert losses() == [50.0] * 3


def test_a_point_of_a_line_is_that_of_its_report() -> None:
    report = step(7, Rank(data_s=0.2, collective_s=0.1), Rank(forward_s=0.9), mfu=0.4, protected_step=6)
    assert point_from_line(json.loads(json.dumps(report.to_json()))) == point_from_report(report)
    point = point_from_report(report)
    assert (point.slowest_rank, point.straggling_s) == (1, pytest.approx(0.5))
    assert point.slowest_phases_s == pytest.approx((0.0, 0.6, 0.1, 0.0))
    assert point_from_line({**replace(report, positions=None).to_json()}) is not None

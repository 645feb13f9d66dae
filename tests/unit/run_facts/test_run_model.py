"""The read model of runs that are in progress, half written, and of other versions."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.domain.events import RunState
from orchestrator.domain.run_layout import RunLayout
from orchestrator.run_facts.live_run import LiveFleet, LiveRun, pace_of
from orchestrator.run_facts.run_model import read_facts
from orchestrator.run_facts.step_point import point_from_report
from orchestrator.run_facts.why.diagnosis import diagnose
from orchestrator.store.run_store import RunRecord, RunStore, read_record
from tests.unit.cli.conftest import T0, feed, recording, step_report
from tests.unit.run_facts.made import Rank, ledger, step

pytestmark = pytest.mark.unit
Recorded = Callable[..., RunLayout]


def record_of(layout: RunLayout) -> RunRecord:
    record = read_record(layout)
    assert record is not None
    return record


def test_a_finished_run(recorded: Recorded) -> None:
    run = read_facts(record_of(recorded()), T0 + 1000.0)
    assert (run.end_s - T0, run.wall_s) == (28.0, pytest.approx(28.0))
    assert run.training is not None
    assert (run.training.tokens, run.training.tokens_per_s, run.training.world_size) == (20_000, 2000.0, 2)
    assert run.losses == pytest.approx([8.0 - 0.4 * number for number in range(1, 11)])
    assert run.events.validation.means == [8.0, 4.5]
    assert run.ledger is not None
    assert sum(run.ledger.seconds.values()) == pytest.approx(run.ledger.reserved_s)
    assert run.ledger_s(*run.ledger.seconds) == pytest.approx(run.wall_s)
    assert [rank.rank for rank in run.ranks] == [0, 1]
    assert (run.events.nodes, run.events.metrics_url) == (
        {0: "127.0.0.1", 1: "127.0.0.1"},
        "http://127.0.0.1:9464/metrics",
    )


def test_files_that_are_missing_damaged_or_of_the_future(recorded: Recorded) -> None:
    layout = recorded()
    whole = read_facts(record_of(layout), T0 + 1000.0)
    with layout.events.open("a") as file:
        file.write('{"time_s": 1700000029.0, "kind": "from.the.future", "v": 9}\n{"time_s": 17000000')
    with layout.steps.open("a") as file:
        file.write('{"v":3,"step":11,"time_s":1700000029.0,"loss":3.5,"spread":[],"slowest":{}}\n{"v":2,"st')
    layout.ledger.write_text(json.dumps({**(whole.ledger or ledger(1.0)).to_json(), "v": 9, "seconds": {"new": 1.0}}))
    layout.durability.write_text("{")
    layout.ranks.write_text('{"v": 3, "ranks": "otherwise"}\n')
    run = read_facts(record_of(layout), T0 + 1000.0)
    assert run.losses == [*whole.losses, 3.5]
    assert (run.durability, run.ranks) == (None, ())
    assert run.ledger is not None
    assert run.ledger.seconds == {}
    assert diagnose(run).steps == 11
    json.dumps(run.to_json())
    for path in (layout.events, layout.steps, layout.ledger, layout.data, layout.ranks):
        path.unlink(missing_ok=True)
    empty = read_facts(record_of(layout), T0 + 1000.0)
    assert (empty.training, empty.losses, empty.ledger, empty.wall_s) == (None, [], None, 0.0)
    json.dumps(empty.to_json())


def test_a_run_is_watched_as_it_grows(tmp_path: Path) -> None:
    from orchestrator.metrics.run_recorder import RunRecorder

    store = RunStore(tmp_path)
    layout = store.create("tiny", T0)
    store.set_state(layout, RunState.RUNNING, now_s=T0)
    live = LiveRun(layout)
    first = live.refresh()
    assert first is not None
    assert (first.last, first.pace, first.losses, first.eta_s) == (None, None, (), None)
    facts = list(recording(layout))
    recorder = RunRecorder(layout)
    feed([recorder], iter(facts[:-8]))
    seen = live.refresh()
    assert seen is not None
    assert (seen.record.step, seen.record.total_steps) == (seen.last and seen.last.step, 10)
    assert seen.pace is not None
    assert seen.eta_s == pytest.approx((10 - seen.record.step) * 1.0)
    assert [rank.rank for rank in seen.ranks] == [0, 1]
    feed([recorder], iter(facts[-8:]))
    recorder.close()
    store.set_state(layout, RunState.SUCCEEDED, now_s=T0 + 28.0)
    over = live.refresh()
    assert over is not None
    assert (over.record.step, over.record.validation_loss, over.eta_s) == (10, 4.5, None)
    assert over.losses == pytest.approx([8.0 - 0.4 * number for number in range(1, 11)])
    assert over.newest_events[-1].body.kind == "run.state"


def test_a_directory_without_a_run_is_none(tmp_path: Path) -> None:
    assert LiveRun(RunLayout(tmp_path / "gone")).refresh() is None


def test_of_all_runs_the_active_ones_come_first(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    layouts = [store.create(f"run-{number}", T0 + number) for number in range(6)]
    for layout in layouts[1:]:
        store.set_state(layout, RunState.FAILED, now_s=T0 + 10.0)
    fleet = LiveFleet(tmp_path, ended=2)
    for _ in range(2):
        names = [facts.record.name for facts in fleet.refresh()]
        assert names == ["run-0", "run-5", "run-4"]
    store.set_state(layouts[5], RunState.PREPARING)  # it was resumed
    assert [facts.record.name for facts in fleet.refresh()] == ["run-5", "run-0", "run-4", "run-3"]


def test_the_pace_leaves_pauses_out() -> None:
    times = [0.0, 1.0, 2.0, 60.0, 61.0]
    reports = [step(number, Rank(data_s=0.1), time_s=T0 + at_s) for number, at_s in enumerate(times, 1)]
    points = [point_from_report(report) for report in reports]
    pace = pace_of(points)
    assert pace is not None
    assert (pace.interval_s, pace.step_time_s, pace.tokens_per_s) == (1.0, 1.0, 500.0)
    assert pace.phase_shares[:4] == pytest.approx((0.1, 0.3, 0.6, 0.1))
    assert pace_of([]) is None
    assert pace_of([point_from_report(step_report(1, T0, 1.0))]) is not None

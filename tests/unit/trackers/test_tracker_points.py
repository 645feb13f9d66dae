"""What trackers get of a run's events and steps."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from orchestrator.domain.events import (
    CheckpointSaved,
    EvalFinished,
    GangResized,
    NumericFaultFound,
    RecoveryFinished,
    RecoveryStarted,
    RunCreated,
    StateChanged,
    WorkerLog,
)
from orchestrator.domain.step_report import StepReport
from orchestrator.trackers.tracker_points import Point, PointMaker
from tests.events import event

pytestmark = pytest.mark.unit
Make = Callable[..., StepReport]


def test_a_step_has_the_names_of_other_trainers(report: Make) -> None:
    point = PointMaker().of_step(report(4, time_s=123.0, step_time_s=2.0))
    assert point is not None
    assert (point.step, point.time_s, point.kind) == (4, 123.0, "")
    assert point.values == {
        "train/loss": 2.0,
        "train/grad_norm": 1.5,
        "train/learning_rate": 1e-3,
        "train/epoch": 0.5,
        "throughput/tokens_per_second": 384.0,
        "throughput/step_seconds": 2.0,
        "throughput/tflops_per_second": 0.5,
        "memory/rss_bytes_max": 1001.0,
        "workers/count": 2.0,
    }
    assert Point.from_json(point.to_json()) == point


def test_what_is_no_number_is_left_out(report: Make) -> None:
    point = PointMaker().of_step(replace(report(1), loss=math.nan, grad_norm=math.inf))
    assert point is not None
    assert not {"train/loss", "train/grad_norm"} & set(point.values)


def test_the_interval(report: Make) -> None:
    maker = PointMaker(interval_steps=5)
    assert [step for step in range(3, 16) if maker.of_step(report(step)) is not None] == [3, 5, 10, 15]


def test_the_validation_loss_is_at_its_step() -> None:
    found = PointMaker().of_event(event(EvalFinished, 9.0, step=20, loss=2.0, perplexity=7.4))
    assert found == Point(20, 9.0, {"eval/loss": 2.0, "eval/perplexity": 7.4})
    assert PointMaker().of_event(event(EvalFinished, 9.0, step=20, loss=800.0, perplexity=None)) == Point(
        20, 9.0, {"eval/loss": 800.0}
    )


def test_recoveries_and_resizes_are_markers(report: Make) -> None:
    maker = PointMaker()
    maker.of_step(report(7))
    assert maker.of_event(event(RecoveryStarted, 1.0, rank=2, cause="killed by SIGKILL", step=7, from_step=6)) is None
    recovered = maker.of_event(event(RecoveryFinished, 3.0, step=7, world_size=3, seconds=1.25, steps_recomputed=1))
    assert recovered is not None
    assert (recovered.kind, recovered.step) == ("recovery", 7)
    assert recovered.text == "recovered in 1.2 s with 3 workers, 1 steps recomputed (worker 2: killed by SIGKILL)"
    assert recovered.values == {
        "events/recovery_count": 1.0,
        "events/recovery_seconds": 1.25,
        "events/recomputed_steps": 1.0,
        "workers/count": 3.0,
    }
    resized = maker.of_event(event(GangResized, 4.0, step=9, before=3, world_size=4))
    assert resized is not None
    assert (resized.kind, resized.step, resized.values["workers/count"]) == ("resize", 9, 4.0)
    fault = maker.of_event(event(NumericFaultFound, 5.0, fault="loss_spike", step=12, action="rollback"))
    assert fault is not None
    assert fault.text == "loss_spike at step 12: rollback"
    again = maker.of_event(event(RecoveryFinished, 3.0, step=12, world_size=3, seconds=1.0, steps_recomputed=0))
    assert again is not None
    assert again.values["events/recovery_count"] == 2.0


def test_checkpoints_and_the_end(report: Make) -> None:
    maker = PointMaker()
    maker.of_event(event(RunCreated, resumed_from_step=40))
    saved = maker.of_event(event(CheckpointSaved, 1.0, seconds=0.5, bytes=1000))
    assert saved is not None
    assert (saved.step, saved.values) == (40, {"checkpoint/seconds": 0.5, "checkpoint/bytes": 1000.0})
    ended = maker.of_event(event(StateChanged, 2.0, state="failed", reason="no nodes"))
    assert ended is not None
    assert (ended.kind, ended.text, ended.values) == ("end", "failed: no nodes", {})
    assert maker.of_event(event(StateChanged, 2.0, state="running")) is None
    assert maker.of_event(event(WorkerLog)) is None

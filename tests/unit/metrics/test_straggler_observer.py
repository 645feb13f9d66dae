"""The observer that compares workers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.domain.events import EventBody, RecoveryStarted, WorkerSlow, WorkerStarted
from orchestrator.domain.events.event_codec import encode_body
from orchestrator.domain.policy.stragglers import MIN_STEPS, WINDOW_STEPS
from orchestrator.domain.step_report import PhaseTimes, StepReport
from orchestrator.metrics.exporter import MetricsObserver
from orchestrator.metrics.straggler_observer import StragglerRecorder
from tests.events import event, recorded

pytestmark = pytest.mark.unit
Make = Callable[..., StepReport]


def slowed(report: StepReport, rank: int, factor: float) -> StepReport:
    """The same step with one rank's forward and backward passes longer."""
    phases = report.ranks[rank].phases
    longer = PhaseTimes(phases.data_wait_s, phases.forward_s * factor, phases.backward_s * factor, phases.optimizer_s)
    ranks = tuple(replace(item, phases=longer) if item.rank == rank else item for item in report.ranks)
    return replace(report, ranks=ranks)


def feed(recorder: StragglerRecorder, reports: list[StepReport]) -> None:
    for report in reports:
        recorder.on_step(report)


def test_it_tells_when_it_begins_and_when_it_is_over(report: Make) -> None:
    told: list[tuple[type[EventBody], dict[str, Any]]] = []
    recorder = StragglerRecorder(lambda body: told.append(recorded(body)))
    recorder.on_event(event(WorkerStarted, 1.0, rank=1, node="10.0.0.7", pid=3))
    usual = [report(step) for step in range(1, WINDOW_STEPS + 1)]
    feed(recorder, usual)
    assert told == []
    feed(recorder, [slowed(item, 1, 3.0) for item in usual])
    ((kind, fields),) = told
    assert kind is WorkerSlow
    assert (fields["rank"], fields["node"], fields["slow"], fields["phase"]) == (1, "10.0.0.7", True, "backward")
    assert recorder.ratios[1] > 2 > recorder.ratios[0]
    feed(recorder, usual)
    assert [fields["slow"] for _, fields in told] == [True, False]


def test_another_gang_is_compared_anew(report: Make) -> None:
    told: list[dict[str, Any]] = []
    recorder = StragglerRecorder(lambda body: told.append(encode_body(body)))
    slow = [slowed(report(step), 1, 3.0) for step in range(1, MIN_STEPS + 1)]
    feed(recorder, slow[1:])
    recorder.on_event(event(RecoveryStarted, 1.0))
    feed(recorder, slow[1:])
    assert told == []
    alone = replace(slow[0], ranks=slow[0].ranks[:1])
    feed(recorder, [*slow, alone])
    assert [fields["slow"] for fields in told] == [True]
    assert recorder.ratios == {}


def test_the_ratio_is_a_metric(report: Make) -> None:
    recorder = StragglerRecorder(lambda body: None)
    metrics = MetricsObserver("tiny-1", "tiny", slowness=lambda: recorder.ratios)
    labels = {"run": "tiny-1", "job": "tiny", "rank": "1"}
    assert metrics.registry.get_sample_value("convoy_straggler_ratio", labels) is None
    feed(recorder, [slowed(report(step), 1, 3.0) for step in range(1, MIN_STEPS + 1)])
    value = metrics.registry.get_sample_value("convoy_straggler_ratio", labels)
    assert value is not None
    assert value > 2.0

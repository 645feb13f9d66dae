"""`durability.json` and its metrics, from surveys and from what is observed between them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.checkpoint.survey.durability import VaultReport
from orchestrator.checkpoint.survey.inventory import Holding
from orchestrator.domain.events import CheckpointSaved, RecoveryStarted, SnapshotsPlanned, VaultsPlanned
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.metrics.durability_recorder import COMPUTED, DurabilityRecorder
from orchestrator.metrics.exporter import MetricsObserver
from tests.events import event

pytestmark = pytest.mark.unit
Make = Callable[..., StepReport]
COMMON = {"run": "tiny-1", "job": "tiny"}


def reports(step: int) -> list[VaultReport]:
    a, b = "10.0.0.1:7", "10.0.0.2:7"
    held = {
        a: (Holding(a, 1, 0, 2, step, True), Holding(a, 1, 1, 2, step, False)),
        b: (Holding(b, 1, 1, 2, step, True), Holding(b, 1, 0, 2, step, False)),
    }
    return [VaultReport(name, address, True, held[address], 64) for name, address in (("na", a), ("nb", b))]


class Storage:
    """How often it was looked at, and what it has."""

    def __init__(self) -> None:
        self.step: int | None = None
        self.looks = 0

    def __call__(self) -> int | None:
        self.looks += 1
        if self.step == -1:
            raise OSError("the disk is away")
        return self.step


def test_a_survey_is_written_with_what_was_observed(tmp_path: Path, report: Make) -> None:
    storage = Storage()
    recorder = DurabilityRecorder(RunLayout(tmp_path), storage, clock=lambda: 50.0)
    recorder.memory_kept_s = 900.0
    recorder.on_event(event(VaultsPlanned, 1.0, node_bytes=77))
    recorder.on_step(report(9))
    recorder.take(reports(8))
    value = json.loads((tmp_path / "durability.json").read_text())
    assert (value["time_s"], value["step"], value["safe_step"], value["steps_at_risk"]) == (50.0, 9, 8, 1)
    assert (value["planned_bytes"], value["storage_step"], value["memory_kept_s"]) == (77, None, 900.0)
    assert (value["over_s"], value["kept"]) == (None, False)
    storage.step = 9
    recorder.take(reports(8))
    assert storage.looks == 1  # nothing was written since
    recorder.on_event(event(CheckpointSaved, 2.0, step=9))
    recorder.take(reports(8))
    assert (storage.looks, recorder.steps_at_risk()) == (2, 0)
    recorder.end(kept=True)
    value = json.loads((tmp_path / "durability.json").read_text())
    assert (value["over_s"], value["kept"], value["storage_step"]) == (50.0, True, 9)


def test_storage_that_cannot_be_looked_at_is_looked_at_again(
    tmp_path: Path, report: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Storage()
    recorder = DurabilityRecorder(RunLayout(tmp_path), storage, clock=lambda: 50.0)
    storage.step = -1
    recorder.take([])
    recorder.take([])
    assert capsys.readouterr().err.count("the disk is away") == 1
    storage.step = 4
    recorder.take([])
    assert recorder.last is not None
    assert recorder.last.storage_step == 4


def test_steps_between_surveys_count_where_copies_are_kept(tmp_path: Path, report: Make) -> None:
    recorder = DurabilityRecorder(RunLayout(tmp_path), lambda: None)
    assert recorder.steps_at_risk() is None
    recorder.take(reports(8))
    recorder.on_step(replace(report(20), protected_step=19))
    assert recorder.steps_at_risk() == 1
    recorder.take([replace(reports(20)[0], held=(Holding("10.0.0.1:7", 1, 0, 1, 20, True),))])
    recorder.on_step(replace(report(21), protected_step=21))
    assert recorder.steps_at_risk() == 21  # one node alone protects nothing against its own loss
    recorder.on_event(event(RecoveryStarted, 1.0, from_step=15))
    assert recorder.steps_at_risk() == 15


def test_the_metrics_are_those_of_the_last_survey(tmp_path: Path, report: Make) -> None:
    recorder = DurabilityRecorder(RunLayout(tmp_path), lambda: 3)
    metrics = MetricsObserver("tiny-1", "tiny", durability=recorder)

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, {**COMMON, **labels})

    assert all(value(metric.name) is None for metric in COMPUTED if not metric.labels)
    recorder.on_step(report(9))
    recorder.take(reports(8))
    assert value("convoy_steps_at_risk") == 1
    assert (value("convoy_copies_min"), value("convoy_unrecoverable_nodes")) == (2, 0)
    assert [value("convoy_tier_step", tier=tier) for tier in ("own", "peers", "storage")] == [8, 8, 3]
    assert (value("convoy_vault_bytes", node="na"), value("convoy_vault_up", node="nb")) == (64, 1)
    recorder.take([*reports(8)[:1], VaultReport("nc", "10.0.0.3:7", answers=False)])
    assert value("convoy_vault_bytes", node="nb") is None
    assert (value("convoy_vault_up", node="nc"), value("convoy_unrecoverable_nodes")) == (0, 1)


def test_what_losing_a_node_costs_follows_measured_steps(tmp_path: Path, report: Make) -> None:
    recorder = DurabilityRecorder(RunLayout(tmp_path), Storage(), clock=lambda: 50.0)
    planned = {"interval_s": 164.0, "interval_steps": None, "sent_s": 42.0, "read_s": 48.0, "copied_s": 48.0}
    recorder.on_event(event(SnapshotsPlanned, 1.0, **planned))
    recorder.take(reports(8))
    assert recorder.last is not None
    assert recorder.last.node_loss is None  # nobody knows yet what a step takes
    for step, step_time_s in ((1, 90.0), (2, 10.0), (3, 10.0)):
        recorder.on_step(replace(report(step), step_time_s=step_time_s))
    recorder.take(reports(8))
    # A copy every 17 steps of 10 s, on its way for 5 more.
    expected = {"repeated_steps": 22, "repeated_s": 220.0, "read_s": 48.0, "copied_s": 48.0}
    assert json.loads((tmp_path / "durability.json").read_text())["node_loss"] == expected
    recorder.on_event(event(SnapshotsPlanned, 1.0, **{**planned, "interval_steps": 2}))
    recorder.take(reports(8))
    assert recorder.last.node_loss is not None
    assert recorder.last.node_loss["repeated_steps"] == 7
    recorder.on_event(event(SnapshotsPlanned, 1.0, **{**planned, "read_s": None}))
    recorder.take(reports(8))
    assert recorder.last.node_loss is None

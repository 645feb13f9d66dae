"""Checkpoints that vaults write: when the next is due, and what becomes of those that the run's end overtakes."""

import pytest

from orchestrator.checkpoint.retention import Rule
from orchestrator.domain.events import EventKind
from orchestrator.gang.saving import Pacer, Saves

pytestmark = pytest.mark.unit

STARTED = {"step": 8, "place": "/runs/a/checkpoints", "world_size": 2, "stage": 1, "seconds": 0.1}


def test_what_is_not_written_when_the_run_ends_has_failed() -> None:
    saves = Saves(lambda: [], Rule(3, None, None), None)  # no vault knows of it, and none will
    saves.begin(1, STARTED)
    assert saves.busy
    (event,) = saves.end(0.3)
    assert (event.kind, event.fields["step"]) == (EventKind.CHECKPOINT_FAILED, 8)
    assert event.fields["place"] == STARTED["place"]
    assert "the run ended before it was written" in event.fields["reason"]
    assert not saves.busy
    assert saves.end(0.0) == []


def test_the_interval_follows_what_a_checkpoint_costs() -> None:
    cheap, dear = Pacer(True), Pacer(True)
    cheap.take({"seconds": 0.01, "write_seconds": 0.1})
    dear.take({"seconds": 10.0, "write_seconds": 60.0})
    for pacer in (cheap, dear):
        assert not pacer.due(0.0)
    waited = {}
    for name, pacer in (("cheap", cheap), ("dear", dear)):
        waited[name] = next(now_s for now_s in range(1, 100_000) if pacer.due(float(now_s)))
    assert waited["cheap"] < waited["dear"]
    never = Pacer(False)
    assert not any(never.due(float(now_s)) for now_s in range(0, 10_000, 100))

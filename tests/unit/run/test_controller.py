"""What a run goes on from when all its steps are made, and when it has succeeded."""

import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from orchestrator.checkpoint.format.exported import PROVENANCE, provenance
from orchestrator.checkpoint.survey.inventory import WholeStep
from orchestrator.domain.events import Event, EventKind, RunState
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.session import TrainResult
from orchestrator.run.controller import Recovery, Run, RunController
from orchestrator.run.run_progress import RunProgress
from orchestrator.spec.job import JobSpec
from orchestrator.store.run_store import RunStore
from tests.unit.checkpoint.written import flip_byte, write_checkpoint

pytestmark = pytest.mark.unit

LAST = 20
SPEC = JobSpec.model_validate(
    {
        "name": "test",
        "model": {"architecture": "gpt2"},
        "tokenizer": {"train": {"vocab_size": 300}},
        "data": {"sources": [{"files": ["*.txt"]}], "sequence_length": 16},
        "train": {"steps": LAST, "global_batch": 12, "lr": 1e-3},
    }
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    store = RunStore(tmp_path)
    layout = store.create("test")
    return Run(SPEC, tmp_path, layout, store, threading.Event())


def training(run: Run, *in_memory: int) -> RunController:
    """With vaults that hold these steps whole, newest first."""
    whole = [WholeStep(3, step, 1, (("10.0.0.1:1",),)) for step in in_memory]
    data: Any = SimpleNamespace(manifest=SimpleNamespace(train_samples=1000))
    made = RunController(run, SimpleNamespace(survey=lambda: whole), "entry", data, LAST)
    return made


def save(run: Run, step: int) -> Path:
    """Without a word: it may be lost with the worker."""
    return write_checkpoint(run.layout.checkpoints, step, {"w": np.arange(8, dtype=np.float32)})


def test_with_steps_left_memory_is_gone_on_from(run: Run) -> None:
    save(run, LAST - 1)
    assert training(run, LAST - 1).newest().source == "vaults"


def test_with_none_left_the_checkpoint_of_the_last_is(run: Run) -> None:
    path = save(run, LAST)
    origin = training(run, LAST, LAST - 1).newest()
    assert (origin.step, origin.peers, origin.checkpoint) == (LAST, None, str(path))


def test_without_a_whole_one_the_last_step_comes_out_of_memory(run: Run) -> None:
    save(run, LAST - 5)
    origin = training(run, LAST).newest()
    assert (origin.step, origin.source, origin.checkpoint) == (LAST, "vaults", None)
    flip_byte(next(save(run, LAST).glob("*.bin")), 10)
    origin = training(run, LAST).newest()
    assert (origin.step, origin.source) == (LAST, "vaults")


def outcome(*results: TrainResult) -> Any:
    return SimpleNamespace(results=results, failure=None, stopped=False, step=LAST)


def ended(run: Run, results: Sequence[TrainResult], export: bool = True) -> tuple[RunState, str, int]:
    state, reason, code = training(run)._judge(outcome(*results), SimpleNamespace(export=export))  # type: ignore[arg-type]
    return state, reason or "", code


def export(layout: RunLayout, step: int) -> Path:
    layout.export.mkdir()
    (layout.export / "model.safetensors").write_bytes(b"weights")
    (layout.export / PROVENANCE).write_text(provenance(layout.export, {"step": step}))
    return layout.export


def test_a_run_has_succeeded_when_its_export_is_there_whatever_workers_say(run: Run) -> None:
    done = [TrainResult(LAST, True), TrainResult(LAST, True)]
    state, reason, code = ended(run, done)
    assert (state, code) == (RunState.FAILED, 1)
    assert "the model is not exported: there is no export in" in reason
    assert f"\nhint: convoy run --resume {run.layout.run_id}" in reason
    assert ended(run, done, export=False) == (RunState.SUCCEEDED, "", 0)
    weights = export(run.layout, LAST) / "model.safetensors"
    assert ended(run, done) == (RunState.SUCCEEDED, "", 0)
    weights.write_bytes(b"weight")
    assert "has 6 bytes, expected 7" in ended(run, done)[1]


def test_an_export_of_another_step_is_not_that_of_the_run(run: Run) -> None:
    export(run.layout, LAST - 1)
    assert f"is of step {LAST - 1}, not {LAST}" in ended(run, [TrainResult(LAST, True)])[1]


@pytest.mark.parametrize("exports", [True, False])
def test_a_last_step_that_is_saved_nowhere_is_no_success(run: Run, exports: bool) -> None:
    export(run.layout, LAST)  # whatever that is
    state, reason, code = ended(run, [TrainResult(LAST, True, unsaved="No space left on device")], exports)
    assert (state, code) == (RunState.FAILED, 1)
    assert f"the state of the last one, {LAST}, could not be saved: No space left on device" in reason


def test_a_checkpoint_that_is_told_of_late_is_not_the_newest(run: Run) -> None:
    progress = RunProgress(run)
    for step in (LAST, LAST - 4):
        progress.on_event(Event(EventKind.CHECKPOINT_SAVED, 100.0, {"step": step}))
    assert run.saved_step == LAST


def test_a_recovery_with_no_step_left_is_over_with_the_export(run: Run) -> None:
    seen: list[Event] = []
    run.observers = [SimpleNamespace(on_event=seen.append)]  # type: ignore[list-item]
    run.step, run.recovery = LAST, Recovery(1, 100.0, 0)
    progress = RunProgress(run)
    progress.on_event(Event(EventKind.PLAN, 101.0, {"world_size": 2}))
    progress.on_event(Event(EventKind.EXPORTED, 104.0, {}))
    (event,) = seen
    assert event.kind is EventKind.RECOVERED
    assert event.fields == {"incident": 1, "step": LAST, "world_size": 2, "seconds": 4.0, "steps_recomputed": 0}
    progress.on_event(Event(EventKind.EXPORTED, 105.0, {}))
    assert len(seen) == 1

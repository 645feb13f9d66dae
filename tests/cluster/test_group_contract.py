"""The scripted group of the controller's tests and the real one: the same scenario makes the controller call the same
methods in the same order, with the same results. The script cannot drift from what it stands for."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.domain.events import RunState
from orchestrator.domain.step_report import StepReport
from orchestrator.run import launcher
from orchestrator.run.preparation import Workload
from orchestrator.run.run_context import RunContext
from orchestrator.run.run_handle import RunHandle
from orchestrator.spec.loading.load import load_job
from tests.cluster.entries import a_step
from tests.cluster.gang_runs import Recording, write_job
from tests.cluster.recorded_group import RecordedGroup
from tests.unit.run.scripted_group import Generation, HandClock, Reform, Script, ScriptedGroup

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("temporary_directory")]

ENTRY = "tests.cluster.entries:scripted"
SPEC = {"train": {"steps": 4, "global_batch": 4, "lr": 1e-3}, "checkpoint": {"memory": False}}


class Then(Recording):
    """Does something, once, when a step has been reported."""

    def __init__(self, step: int, what: Callable[[], object]) -> None:
        super().__init__()
        self._step, self._what = step, what

    def on_step(self, report: StepReport) -> None:
        super().on_step(report)
        if report.step == self._step and self._step:
            self._step = 0
            self._what()


def handle_in(directory: Path, **changes: object) -> RunHandle:
    directory.mkdir()
    job = load_job(write_job(directory, **(SPEC | changes)))
    return launcher.create_run(job, directory / "runs", threading.Event())


def really(handle: RunHandle, generations: list[dict[str, object]]) -> RecordedGroup:
    """With real workers, whose generations do this."""
    (handle.layout.root / "script.json").write_text(json.dumps(generations))
    made: list[RecordedGroup] = []

    def make(run: RunContext, desk: object) -> RecordedGroup:
        made.append(RecordedGroup(launcher.ray_workers(run, desk)))  # type: ignore[arg-type]
        return made[0]

    try:
        handle.drive(make, handle.preparation(Workload(ENTRY)))  # type: ignore[arg-type]
    finally:
        handle.close()
    return made[0]


def scripted(handle: RunHandle, script: Script) -> RecordedGroup:
    def export(step: int) -> None:
        handle.layout.export.mkdir()
        (handle.layout.export / "convoy.json").write_text(json.dumps({"step": step, "files": {}}))

    def report(step: int, time_s: float, world_size: int) -> StepReport:
        return a_step(step, world_size)

    group = RecordedGroup(ScriptedGroup(handle.context.spec, script, HandClock(), report, export))
    try:
        handle.drive(lambda run, desk: group, handle.preparation(Workload(ENTRY)))  # type: ignore[arg-type,return-value]
    finally:
        handle.close()
    return group


DONE = Generation((1, 2, 3, 4), exported=True)
FINISHES = {"steps": 4, "ends": "finished"}


def test_a_killed_worker(tmp_path: Path) -> None:
    real = really(handle_in(tmp_path / "real"), [{"steps": 2, "ends": "killed"}, FINISHES])
    script = Script([Generation((1, 2), ends="killed"), DONE])
    assert scripted(handle_in(tmp_path / "scripted"), script).calls == real.calls


def test_an_exception_of_a_worker(tmp_path: Path) -> None:
    real = really(handle_in(tmp_path / "real"), [{"steps": 2, "ends": "raised"}])
    assert scripted(handle_in(tmp_path / "scripted"), Script([Generation((1, 2), ends="raised")])).calls == real.calls


def test_a_change_of_size_and_a_stop(tmp_path: Path) -> None:
    workers = {"resources": {"workers": {"min": 1, "max": 2}}}
    handle = handle_in(tmp_path / "real", **workers)
    handle.watch("scales", Then(1, lambda: handle.scale(1, "test")))
    handle.watch("stops", Then(3, handle.stop))
    real = really(handle, [{"steps": 1, "ends": "regroup"}, {"first": 2, "steps": 3, "ends": "stopped"}])
    script = Script([Generation((1,), ends="regroup"), Generation((2, 3), ends="stopped")], [Reform(1)])
    assert scripted(handle_in(tmp_path / "scripted", **workers), script).calls == real.calls
    record = launcher.RunStore(tmp_path / "real" / "runs").read("last")
    assert record.state is RunState.STOPPED

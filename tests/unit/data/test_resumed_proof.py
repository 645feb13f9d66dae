"""The proof of a run whose data changed between a stop and a resume, and was accepted."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from corpora import Bench
from trained import TrainedRun

from orchestrator.data.prepare import PreparedData
from orchestrator.domain.events import RunState
from orchestrator.store.fingerprints import read_history
from orchestrator.store.proof import prove
from orchestrator.store.runs import RunStore

pytestmark = pytest.mark.unit


@pytest.fixture
def run(bench: Bench) -> TrainedRun:
    return TrainedRun(bench)


def text(run: TrainedRun, number: int) -> Path:
    return run.bench.root / "texts" / f"t{number}.txt"


def change(path: Path) -> None:
    path.write_text(path.read_text().replace("convoy", "CONVOY"))


def test_parts_with_other_data_are_proved_each_against_its_own(run: TrainedRun) -> None:
    record = RunStore(run.layout.root.parent).read
    change(text(run, 3))
    _, data = run.go_on(accept=True, from_step=15)
    run.train(data, 16, 30)
    proof = prove(record(run.layout.run_id))
    assert (proof.ok, proof.steps, proof.superseded) == (True, 30, 5)
    assert [(part.first_step, part.last_step, part.problem) for part in proof.parts] == [(1, 15, None), (16, 30, None)]
    text(run, 1).unlink()
    _, third = run.go_on(accept=True, from_step=30)
    run.train(third, 31, 40)
    assert [part.first_step for part in prove(record(run.layout.run_id)).parts] == [1, 16, 31]
    shutil.rmtree(data.directory)
    proof = prove(record(run.layout.run_id))
    assert (proof.ok, proof.steps) == (False, 40)
    assert [bool(part.problem) for part in proof.parts] == [False, True, False]
    assert "cannot be compared" in str(proof.mismatch)


def test_steps_fed_from_other_data_than_recorded_fail_the_proof(run: TrainedRun) -> None:
    change(text(run, 3))
    run.go_on(accept=True)
    first = read_history(run.layout)[0]
    old = run.bench.root / "old"
    shutil.copytree(first.data.directory, old)
    run.train(PreparedData(old, dataclasses.replace(run.bench.prepare(run.spec).manifest), True), 21, 25)
    proof = prove(RunStore(run.layout.root.parent).read(run.layout.run_id))
    assert proof.mismatch is not None
    assert proof.mismatch.step == 21
    assert RunStore(run.layout.root.parent).read(run.layout.run_id).state is RunState.STOPPED

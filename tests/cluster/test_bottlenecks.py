"""`convoy why` names what really slows a training down: made-up bottlenecks in real trainings, and a healthy one."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator.cli.main import cli
from orchestrator.data.executor import LocalExecutor
from orchestrator.data.prepare import prepare
from orchestrator.domain.events import Event, MicroStepMeasured, RunCreated, RunState, StateChanged, TrainingPlanned
from orchestrator.domain.policy.hang import Phase
from orchestrator.domain.session import TrainPlan
from orchestrator.drill.process_faults import Brake
from orchestrator.metrics.run_recorder import RunRecorder
from orchestrator.spec.job import JobSpec
from orchestrator.spec.loading.load import dump_job
from orchestrator.store.run_store import RunStore
from orchestrator.train.micro_step_cost import MEASURED_STEP
from tests.browser import browser
from tests.cluster.slow_disk import SlowDisk
from tests.cluster.train_processes import FileSession, Outcome, TrainProcesses, train_plan
from tests.events import body, event

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

WORKERS = 2
MODEL = {"n_layer": 2, "n_embd": 128, "n_head": 2}
LENGTH = 128
TINY = {"n_layer": 1, "n_embd": 32, "n_head": 2}
READ_BYTES_PER_S = 24 << 10
"""Of the slow disk: each of the four samples of a step is on a page of 4 KiB of its own."""


@dataclass(frozen=True)
class Trainer:
    """Trains a small model on a corpus, and asks what bounded the speed."""

    processes: TrainProcesses
    directory: Path

    def prepared(self, cache: Path, **changes: Any) -> tuple[JobSpec, Path]:
        """The job and its prepared data."""
        spec = spec_of(**changes)
        return spec, prepare(spec, self.directory, cache, LocalExecutor(workers=0), lambda *_: None).directory

    def why(self, spec: JobSpec, data: Path, session: type[FileSession] = FileSession) -> dict[str, Any]:
        """Train; what `convoy why` says about it."""
        plan = train_plan(spec, data, self.directory / "train", WORKERS)
        outcome = self.processes.run(plan, WORKERS, session=session)
        return self.asked(recorded_run(self.directory / "runs", spec, plan, outcome))

    def asked(self, run_id: str) -> dict[str, Any]:
        done = CliRunner().invoke(cli, ["why", run_id, "--home", str(self.directory / "runs"), "--json"])
        assert done.exit_code == 0, done.output
        value: dict[str, Any] = json.loads(done.output)
        return value

    def pid(self, rank: int) -> int:
        """The process that trains as a rank."""
        pid = self.processes._processes[rank].pid
        assert pid is not None
        return pid


@pytest.fixture
def trainer(train_processes: TrainProcesses, tmp_path: Path) -> Trainer:
    return Trainer(train_processes, tmp_path)


def spec_of(
    steps: int = 30, global_batch: int = 16, micro_batch: int = 8, model: dict[str, Any] | None = None, **data: Any
) -> JobSpec:
    """A job whose worker computes a thousand tokens in a step, unless said otherwise."""
    spec = {
        "name": "why",
        "model": {"architecture": "gpt2", "config": model or MODEL},
        "tokenizer": {"train": {"vocab_size": 384}},
        "data": {"sources": [{"files": ["*.txt"], "format": "lines"}], "sequence_length": LENGTH, **data},
        "train": {"steps": steps, "global_batch": global_batch, "micro_batch": micro_batch, "lr": 1e-3},
        "checkpoint": {"at_end": False},
    }
    return JobSpec.model_validate_json(json.dumps(spec))


def recorded_run(home: Path, spec: JobSpec, plan: TrainPlan, outcome: Outcome) -> str:
    """A run's directory, as the driver would have written it."""
    store, first, last = RunStore(home), outcome.steps[0], outcome.steps[-1]
    began_s = first.time_s - first.step_time_s
    layout = store.create("why", began_s)
    recorder = RunRecorder(layout)
    layout.spec.write_text(dump_job(spec))
    manifest = json.loads((Path(plan.data_dir) / "manifest.json").read_text())
    layout.data.write_text(json.dumps({"directory": plan.data_dir, **manifest}))
    made = {"world_size": WORKERS, "shares": plan.shares, "micro_batch": plan.micro_batch}
    recorder.on_event(event(RunCreated, began_s, run_id=layout.run_id))
    recorder.on_event(event(TrainingPlanned, began_s, total_steps=plan.total_steps, **made))
    for report in outcome.steps:
        recorder.on_step(report)
    for kind, fields in outcome.events:
        recorder.on_event(Event(body(kind, **fields), began_s + 1.0))
    recorder.on_event(event(StateChanged, last.time_s, state="succeeded"))
    recorder.close()
    store.set_state(layout, RunState.SUCCEEDED, now_s=last.time_s)
    return layout.run_id


def names(value: dict[str, Any]) -> list[str]:
    return [found["name"] for found in value["found"]]


def write_corpus(directory: Path, lines: int = 4000, words: Callable[[int], int] = lambda line: 30) -> None:
    text = "".join(" ".join(f"word{(line * 31 + n) % 97}" for n in range(words(line))) + "\n" for line in range(lines))
    (directory / "corpus.txt").write_text(text)


def test_nothing_stands_out_in_a_healthy_training(trainer: Trainer) -> None:
    """Of three trainings at least one: with other tests on the same processors, a rank may really be slow."""
    write_corpus(trainer.directory)
    prepared = trainer.prepared(trainer.directory / "cache", steps=20)
    found = []
    for _ in range(3):
        value = trainer.why(*prepared)
        found.append((names(value), value["summary"], value["not_judged"]))
        if not found[-1][0]:
            break
    assert found[-1] == ([], "nothing stands out", []), found


def test_a_slow_disk(trainer: Trainer, slow_disk: SlowDisk) -> None:
    """The token files are on a disk that reads fewer bytes in a second than the samples need."""
    write_corpus(trainer.directory, lines=12_000)
    small = {"global_batch": 4, "micro_batch": 2, "sequence_length": 32}
    spec, data = trainer.prepared(slow_disk.path / "cache", steps=16, model=TINY, **small)
    slow_disk.limit("read", READ_BYTES_PER_S)
    for file in data.rglob("*.tokens"):
        slow_disk.forget_unmapped(file)
    value = trainer.why(spec, data)
    assert names(value)[:1] == ["data_wait"], value


@pytest.fixture
def slow_disk(tmp_path: Path) -> Iterator[SlowDisk]:
    disk = SlowDisk(tmp_path, 200 << 20)
    yield disk
    disk.close()


def test_one_slow_rank(trainer: Trainer) -> None:
    """Its process is stopped two thirds of the time."""
    write_corpus(trainer.directory)
    spec, data = trainer.prepared(trainer.directory / "cache")
    brake = Brake(trainer.pid(1), 0.02)
    try:
        value = trainer.why(spec, data)
    finally:
        brake.release()
    assert names(value)[:1] == ["slow_rank"], value
    assert value["found"][0]["headline"].startswith("rank 1 is slow"), value


def test_a_tiny_micro_batch(trainer: Trainer) -> None:
    """Sixteen micro steps of a single short sample in a step."""
    write_corpus(trainer.directory)
    small = {"steps": 20, "global_batch": 32, "micro_batch": 1, "sequence_length": 16}
    value = trainer.why(*trainer.prepared(trainer.directory / "cache", **small))
    assert names(value)[:1] == ["micro_batch"], value
    assert "train.micro_batch" in value["found"][0]["advice"][0]


@pytest.mark.needs("chromium")
def test_short_unpacked_documents_and_the_report_of_the_run(trainer: Trainer) -> None:
    """One document in eight is long: the seven beside it in its micro batch are padded to its length. The report of
    this run, from real files, is drawn by a browser."""
    write_corpus(trainer.directory, words=lambda line: 60 if line % 8 == 0 else 3)
    spec, data = trainer.prepared(trainer.directory / "cache", steps=20, packing=False)
    value = trainer.why(spec, data)
    assert names(value)[:1] == ["padding"], value
    home = trainer.directory / "runs"
    assert CliRunner().invoke(cli, ["report", "last", "--home", str(home)]).exit_code == 0
    page = RunStore(home).read("last").layout.report
    with browser() as chromium:
        look = chromium.look(page, 1280, "document.body.innerText")
    assert look.console == []
    assert "Padding is computed in place of tokens" in look.value
    assert "Proved: every sample of every epoch was used exactly once" in look.value


def test_the_measurement_changes_no_number(trainer: Trainer, train_processes: TrainProcesses) -> None:
    """With ZeRO-3, where it is collective, and dropout, whose masks it must not move."""
    write_corpus(trainer.directory, lines=500)
    model = {**TINY, "attn_pdrop": 0.1}
    spec, data = trainer.prepared(trainer.directory / "cache", steps=6, model=model)
    for stage in (0, 3):
        staged = spec.model_copy(update={"zero": spec.zero.model_copy(update={"stage": stage})})
        plan = train_plan(staged, data, trainer.directory / f"train-{stage}", WORKERS)
        measured = train_processes.run(plan, WORKERS)
        plain = train_processes.run(plan, WORKERS, session=NeverMeasured)
        assert measured.losses == plain.losses
        assert measured.grad_norms == plain.grad_norms
        (fields,) = [fields for kind, fields in measured.events if kind is MicroStepMeasured]
        assert 0.0 < fields["fixed_s"] <= fields["forward_s"]
        assert [kind for kind, _ in plain.events if kind is MicroStepMeasured] == []


class NeverMeasured(FileSession):
    """The session of a worker that does not measure what a micro step costs."""

    def beat(self, step: int, phase: Phase) -> None:
        from orchestrator.train import step_loop

        super().beat(step, phase)
        step_loop.MEASURED_STEP = MEASURED_STEP if phase is Phase.FINISH else 0

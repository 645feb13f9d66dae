"""A run as training leaves it, made without training: prepared data, steps, fingerprints, a final state."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.data.executor import LocalExecutor
from orchestrator.data.prepare import PreparedData, prepare, reopen
from orchestrator.data.samples.dataset import TokenDataset
from orchestrator.data.tokens.tokenizer import JobTokenizer, load
from orchestrator.domain.events import DataProgress, EventBody, RunState
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.spec.job import JobSpec
from orchestrator.spec.loading.load import dump_job, load_job
from orchestrator.store.input_recording import record
from orchestrator.store.resume_check import ChangedError, Resumption, examine
from orchestrator.store.run_store import RunStore
from tests.events import recorded
from tests.unit.data.corpora import Bench, sentences
from tests.unit.data.test_verify_run import record as step_of

BATCH = 12
STEPS = 20


class TrainedRun:
    """A run under `bench.root/runs`, stopped after `STEPS` steps."""

    def __init__(self, bench: Bench, **changes: Any) -> None:
        self.bench = bench
        bench.cache = bench.root / "runs" / "cache"
        for number in range(6):
            bench.write(f"texts/t{number}.txt", "\n".join(sentences(20, seed=number)))
        value: dict[str, Any] = {
            "name": "test",
            "model": {"architecture": "gpt2"},
            "tokenizer": {"train": {"vocab_size": 300}},
            "train": {"steps": 100, "global_batch": BATCH, "lr": 1e-3},
            "data": {"sources": [{"files": ["texts/*.txt"]}], "sequence_length": 16},
            **changes,
        }
        spec = JobSpec.model_validate(value)
        self.layout: RunLayout = RunStore(bench.root / "runs").create("test")
        self.layout.spec.write_text(dump_job(spec))
        data = bench.prepare(spec)
        self._keep(spec, data, None, 0)
        self.steps: list[StepReport] = []
        self.train(data, 1, STEPS)

    @property
    def spec(self) -> JobSpec:
        return load_job(self.layout.spec).spec

    @property
    def prepared(self) -> Path:
        return Path(json.loads(self.layout.data.read_text())["directory"])

    def edit_spec(self, old: str, new: str) -> None:
        """As a person does in the run's directory."""
        text = self.layout.spec.read_text()
        assert old in text
        self.layout.spec.write_text(text.replace(old, new))

    def train(self, data: PreparedData, first: int, last: int) -> None:
        """Record steps, as a driver does."""
        dataset = TokenDataset.open(data.directory)
        self.steps += [step_of(dataset, step, 1000.0 + len(self.steps) + step) for step in range(first, last + 1)]
        self.layout.steps.write_text("".join(json.dumps(step.to_json()) + "\n" for step in self.steps))
        RunStore(self.layout.root.parent).set_state(self.layout, RunState.STOPPED, "stopped on request")

    def examine(self, accept: bool = False) -> Resumption:
        return examine(self.layout, self.spec, self.bench.root, self.bench.cache, accept, lambda _: None)

    def go_on(self, accept: bool = False, from_step: int = STEPS) -> tuple[Resumption, PreparedData]:
        """What the driver does with it, up to the first step."""
        found, spec = self.examine(accept), self.spec
        self.bench.events = []
        if found.prepared is not None:
            digest = found.history[-1].data.tokens_digest if found.history else None
            data = reopen(found.prepared, found.contents, digest, self._tell)
        else:
            data = prepare(spec, self.bench.root, self.bench.cache, LocalExecutor(0), self._tell, found.kept)
        self._keep(spec, data, found, from_step)
        return found, data

    def tokenizer(self) -> JobTokenizer:
        return load(self.layout.tokenizer, "of the run")

    def _tell(self, body: EventBody) -> None:
        self.bench.events.append(recorded(body))

    def _keep(self, spec: JobSpec, data: PreparedData, found: Resumption | None, step: int) -> None:
        facts = {"job_dir": str(self.bench.root), "directory": str(data.directory)}
        self.layout.data.write_text(json.dumps({**facts, **data.manifest.to_json()}))
        record(self.layout, spec, self.bench.root, data, found, step, 1.0)


def phases(run: TrainedRun) -> Sequence[str]:
    """What a preparation did."""
    return [str(fields["phase"]) for fields in run.bench.kinds(DataProgress)]


def text(run: TrainedRun, number: int) -> Path:
    return run.bench.root / "texts" / f"t{number}.txt"


def refused(run: TrainedRun, accept: bool = False) -> str:
    before = {path: path.read_bytes() for path in run.layout.root.rglob("*") if path.is_file()}
    with pytest.raises(ChangedError) as caught:
        run.examine(accept)
    assert caught.value.exit_code == 2
    assert before == {path: path.read_bytes() for path in run.layout.root.rglob("*") if path.is_file()}
    assert ("--accept-changes" in (caught.value.hint or "")) is ("cannot be accepted" not in caught.value.message)
    return caught.value.message


def edit(path: Path, old: str = "convoy", new: str = "CONVOY") -> None:
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new))

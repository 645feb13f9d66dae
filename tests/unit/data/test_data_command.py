import json

import pytest
from click.testing import CliRunner

from orchestrator.cli.commands.data_command import data
from orchestrator.data.samples.dataset import TokenDataset
from orchestrator.domain.events import RunState, TrainingPlanned
from orchestrator.domain.events.event_codec import encode_event
from orchestrator.domain.run_layout import RunLayout
from orchestrator.spec.loading.load import dump_job
from orchestrator.store.run_store import RunStore
from tests.events import event
from tests.unit.data.corpora import Bench, job, sentences
from tests.unit.data.test_verify_run import BATCH, recorded

pytestmark = pytest.mark.unit


@pytest.fixture
def run(bench: Bench) -> RunLayout:
    """A run as training leaves it: spec, data record, steps."""
    bench.jsonl("a.jsonl", sentences(60))
    spec = job([{"files": ["a.jsonl"]}])
    spec = spec.model_copy(update={"train": spec.train.model_copy(update={"global_batch": BATCH, "steps": 20})})
    prepared = bench.prepare(spec)
    layout = RunStore(bench.root / "runs").create("test")
    layout.spec.write_text(dump_job(spec))
    facts = {"directory": str(prepared.directory), "fingerprint": prepared.manifest.fingerprint}
    layout.data.write_text(json.dumps(facts))
    write_steps(layout, [step.to_json() for step in recorded(TokenDataset.open(prepared.directory), 20)])
    return layout


def write_steps(layout: RunLayout, steps: list[dict]) -> None:
    layout.steps.write_text("".join(json.dumps(step) + "\n" for step in steps))


def verify(layout: RunLayout, *options: str) -> tuple[int, str]:
    found = CliRunner().invoke(data, ["verify", "last", "--home", str(layout.root.parent), *options])
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found.exit_code, found.output


def test_a_proof_is_told_and_ends_with_0(run: RunLayout) -> None:
    code, text = verify(run)
    assert code == 0
    assert "20 steps replayed: 240 samples" in text
    assert "epoch 0:" in text
    assert "PROVED" in text
    assert "NOT" not in text


def test_a_failed_proof_is_told_and_ends_with_1(run: RunLayout) -> None:
    steps = [json.loads(line) for line in run.steps.read_text().splitlines()]
    steps[4]["data_digest"] += 1
    write_steps(run, steps)
    code, text = verify(run)
    assert code == 1
    assert "NOT PROVED: step 5" in text
    code, text = verify(run, "--json")
    value = json.loads(text)
    assert (code, value["ok"], value["mismatch"]["step"]) == (1, False, 5)


def test_a_step_cut_off_by_a_kill_is_no_step(run: RunLayout) -> None:
    lines = run.steps.read_text().splitlines(keepends=True)
    run.steps.write_text("".join([*lines[:9], lines[9][:40], "\n", *lines[9:]]) + '{"step": 21, "lo')
    assert verify(run)[0] == 0


def test_a_finished_run_that_lacks_its_last_steps_is_not_proved(run: RunLayout) -> None:
    lines = run.steps.read_text().splitlines(keepends=True)
    run.steps.write_text("".join(lines[:-2]))
    RunStore(run.root.parent).set_state(run, RunState.SUCCEEDED)
    run.events.write_text(json.dumps(encode_event(event(TrainingPlanned, 1.0, total_steps=20))) + "\n")
    code, text = verify(run)
    assert code == 1
    assert "finished 20 steps, 18 are recorded" in text


def test_data_that_was_prepared_again_differently_is_not_proved(run: RunLayout) -> None:
    facts = json.loads(run.data.read_text())
    run.data.write_text(json.dumps({**facts, "fingerprint": "another"}))
    code, text = verify(run)
    assert code == 1
    assert "the run used data another" in text


def test_a_run_without_data_says_so(run: RunLayout) -> None:
    run.data.unlink()
    found = CliRunner().invoke(data, ["verify", "last", "--home", str(run.root.parent)])
    assert "has no record of its data" in str(found.exception)


def test_an_altered_line_is_a_missing_step(run: RunLayout) -> None:
    lines = run.steps.read_text().splitlines(keepends=True)
    run.steps.write_text("".join([*lines[:6], "{}\n", *lines[7:]]))
    code, text = verify(run)
    assert code == 1
    assert "step 7 is missing" in text

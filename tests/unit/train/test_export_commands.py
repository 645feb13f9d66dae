"""`convoy export` and `convoy generate` on a run as its driver leaves it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from orchestrator.cli.main import cli
from orchestrator.domain.errors import CheckpointError, ConvoyError, UsageError
from orchestrator.domain.run_layout import RunLayout
from orchestrator.spec.loading.load import dump_job
from orchestrator.store.run_store import RunStore
from orchestrator.train.convert.export import export_model
from tests.unit.checkpoint.written import flip_byte
from tests.unit.train.exportable import checkpoint, job, prepared_data

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def run(tmp_path: Path, data_dir: Path) -> RunLayout:
    layout = RunStore(tmp_path / "home").create("export")
    layout.spec.write_text(dump_job(job("gpt2")))
    layout.data.write_text(json.dumps({"directory": str(data_dir), "fingerprint": "f"}))
    return layout


def convoy(run: RunLayout, *arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments, "--home", str(run.root.parent)])


def refused(run: RunLayout, *arguments: str) -> ConvoyError:
    error = convoy(run, *arguments).exception
    assert isinstance(error, ConvoyError), error
    return error


def test_the_newest_checkpoint_is_exported(run: RunLayout, data_dir: Path, tmp_path: Path) -> None:
    for step in (5, 9):
        checkpoint(job("gpt2"), data_dir, run.checkpoints, step)
    done = convoy(run, "export", "last", "--to", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    assert f"step 9 of {run.run_id}" in done.output
    assert "convoy generate" in done.output
    done = convoy(run, "export", "export", "--to", str(tmp_path / "out"), "--step", "5", "--force", "--json")
    value = json.loads(done.output)
    assert (value["step"], value["run"], value["skipped"]) == (5, run.run_id, [])
    assert "is not empty" in refused(run, "export", "last", "--to", str(tmp_path / "out")).message


def test_a_damaged_checkpoint_is_passed_over_and_said_so(run: RunLayout, data_dir: Path, tmp_path: Path) -> None:
    for step in (5, 9):
        checkpoint(job("gpt2"), data_dir, run.checkpoints, step)
    flip_byte(run.checkpoint(9) / "shard-00000.bin", 50)
    done = convoy(run, "export", "last", "--to", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    assert "warning: skipped step-00000009: shard-00000.bin is corrupt" in done.stderr
    assert "step 5 of" in done.output
    error = refused(run, "export", "last", "--to", str(tmp_path / "other"), "--step", "9")
    assert isinstance(error, CheckpointError)


def test_what_is_not_there_is_said_with_what_is(run: RunLayout, data_dir: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert "has no checkpoint yet" in refused(run, "export", "last", "--to", out).message
    checkpoint(job("gpt2"), data_dir, run.checkpoints, 5)
    error = refused(run, "export", "last", "--to", out, "--step", "6")
    assert (error.message.endswith("has no checkpoint of step 6"), error.hint) == (True, "it has: 5")
    error = refused(run, "export", "exprt", "--to", out)
    assert error.hint is not None
    assert "did you mean" in error.hint
    run.data.write_text(json.dumps({"directory": str(tmp_path / "gone")}))
    assert "is gone" in refused(run, "export", "last", "--to", out).message
    assert isinstance(refused(run, "generate", str(tmp_path), "--prompt", "x"), UsageError)


def test_generating_needs_no_export(run: RunLayout, data_dir: Path, tmp_path: Path) -> None:
    _, saved = checkpoint(job("gpt2"), data_dir, run.checkpoints, 5)
    greedy = ("--prompt", "def ", "--temperature", "0", "--max-new-tokens", "6", "--json")
    fresh = json.loads(convoy(run, "generate", "last", *greedy).output)
    assert fresh["model"] == f"{run.run_id} at step 5"
    assert fresh["text"] == "def " + fresh["new_text"]
    assert not run.export.exists()
    export_model(saved, job("gpt2"), data_dir, run.export)
    own = json.loads(convoy(run, "generate", "last", *greedy).output)
    assert (own["model"], own["text"]) == (str(run.export), fresh["text"])
    named = json.loads(convoy(run, "generate", str(run.export), *greedy).output)
    assert named["text"] == fresh["text"]
    # A run that went on after its export is generated from where it is now.
    checkpoint(job("gpt2"), data_dir, run.checkpoints, 8)
    assert json.loads(convoy(run, "generate", "last", *greedy).output)["model"].endswith("at step 8")
    assert json.loads(convoy(run, "generate", "last", "--step", "5", *greedy).output)["model"] == str(run.export)
    assert "no steps to choose" in refused(run, "generate", str(run.export), "--step", "5", "--prompt", "x").message
    text = convoy(run, "generate", "last", "--prompt", "def ", "--max-new-tokens", "6")
    assert text.output.startswith("def ")

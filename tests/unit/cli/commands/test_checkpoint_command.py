import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from orchestrator.checkpoint.format.checkpoint_manifest import MANIFEST, read_manifest
from orchestrator.cli.commands.checkpoint_command import checkpoint
from orchestrator.domain.errors import UsageError
from orchestrator.domain.events import CheckpointSaved, EvalFinished, RunState
from orchestrator.domain.run_layout import RunLayout
from orchestrator.spec.resources import CheckpointSpec
from orchestrator.store.checkpoint_retention import Retention
from orchestrator.store.run_store import RunStore
from tests.events import event
from tests.unit.checkpoint.written import flip_byte, write_checkpoint
from tests.unit.spec.jobs_for_tests import BASE

pytestmark = pytest.mark.unit
WEIGHTS = {"w": np.arange(24, dtype=np.float32).reshape(4, 6)}


@pytest.fixture
def run(tmp_path: Path) -> RunLayout:
    store = RunStore(tmp_path)
    layout = store.create("test")
    for step in (10, 20, 30):
        write_checkpoint(layout.checkpoints, step, WEIGHTS)
    store.set_state(layout, RunState.STOPPED)
    return layout


def call(layout: RunLayout, *arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(checkpoint, [*arguments, "--home", str(layout.root.parent)])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code, found.output


def steps(layout: RunLayout) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in layout.checkpoints.iterdir())


def test_list_names_the_damaged(run: RunLayout) -> None:
    (run.checkpoints / "step-00000020" / "manifest.json").unlink()
    code, text = call(run, "list", "last")
    assert code == 0
    lines = text.splitlines()
    assert [line.split()[1] for line in lines] == ["30", "20", "10"]
    assert "2 workers, ZeRO-1" in lines[0]
    assert "never finished" in lines[1]
    value = json.loads(call(run, "list", "last", "--json")[1])
    assert [entry["step"] for entry in value] == [30, 20, 10]
    assert value[0]["problem"] is None


def test_verify_reads_every_byte(run: RunLayout) -> None:
    code, text = call(run, "verify", "last")
    assert (code, text.count("complete")) == (0, 3)
    flip_byte(run.checkpoints / "step-00000020" / "shard-00001.bin", 9)
    code, text = call(run, "verify", "last")
    assert code == 1
    assert "damaged" in text.splitlines()[1]
    assert call(run, "verify", "last", "--step", "30")[0] == 0
    assert call(run, "verify", "last", "--step", "20")[0] == 1
    with pytest.raises(UsageError, match="no checkpoint of step 25") as caught:
        call(run, "verify", "last", "--step", "25")
    assert caught.value.hint == "it has: 30, 20, 10"


def test_prune_keeps_what_it_is_told_and_the_newest_whole_one(run: RunLayout) -> None:
    flip_byte(run.checkpoints / "step-00000030" / "shard-00001.bin", 9)
    code, text = call(run, "prune", "last", "--keep-last", "1")
    assert (code, steps(run)) == (0, [20, 30])
    assert "step-00000010" in text


def test_prune_keeps_multiples(run: RunLayout) -> None:
    write_checkpoint(run.checkpoints, 40, WEIGHTS)
    call(run, "prune", "last", "--keep-last", "1", "--keep-every", "20")
    assert steps(run) == [20, 40]
    assert call(run, "prune", "last", "--keep-last", "5")[1] == "nothing to remove\n"


def test_a_run_that_goes_on_is_left_alone(run: RunLayout) -> None:
    RunStore(run.root.parent).set_state(run, RunState.RUNNING)
    with pytest.raises(UsageError, match="is active"):
        call(run, "prune", "last", "--keep-last", "1")
    assert steps(run) == [10, 20, 30]


def test_the_driver_keeps_to_the_rule_of_the_spec(run: RunLayout) -> None:
    retention = Retention(run, CheckpointSpec(keep_last=1, keep_every=10))
    retention.on_event(event(CheckpointSaved, 0.0, step=30))
    assert steps(run) == [10, 20, 30]
    elsewhere = Retention(run, CheckpointSpec(keep_last=1, storage="/somewhere"))
    elsewhere.on_event(event(CheckpointSaved, 0.0, step=30))
    assert steps(run) == [10, 20, 30]
    retention = Retention(run, CheckpointSpec(keep_last=1))
    retention.on_event(event(EvalFinished, 0.0, step=30))
    assert steps(run) == [10, 20, 30]
    retention.on_event(event(CheckpointSaved, 0.0, step=30))
    assert steps(run) == [30]


def test_convert_gives_and_takes(run: RunLayout, tmp_path: Path) -> None:
    flip_byte(run.checkpoints / "step-00000030" / "shard-00001.bin", 9)
    given = tmp_path / "given"
    code, text = call(run, "convert", "last", "--to-deepspeed", str(given), "--json")
    assert code == 0
    assert re.search(r"skipped \S+step-00000030: ", text)
    value = json.loads(text[text.index("{") :])
    assert (value["step"], value["parameters"], value["path"]) == (20, 24, str(given / "global_step20_universal"))
    code, text = call(run, "convert", str(given), "--to-convoy", str(tmp_path / "taken"), "--position", "7")
    assert code == 0
    assert f"{tmp_path / 'taken' / 'step-00000020'}: step 20, 24 parameters" in text
    single = str(run.checkpoints / "step-00000010")
    assert call(run, "convert", single, "--to-deepspeed", str(given))[0] == 0
    assert (given / "latest_universal").read_text() == "global_step10_universal"


def test_convert_says_what_it_wants(run: RunLayout, tmp_path: Path) -> None:
    there = str(tmp_path / "there")
    wrong = {
        "expected one of": ["last"],
        "expected one of --to-deepspeed and --to-convoy": ["last", "--to-deepspeed", there, "--to-convoy", there],
        "--position needs": ["last", "--to-deepspeed", there, "--position", "3"],
        "--step chooses": ["last", "--to-convoy", there, "--step", "3"],
        "no checkpoint of step 25": ["last", "--to-deepspeed", there, "--step", "25"],
        "no steps to choose": [str(run.checkpoints / "step-00000010"), "--to-deepspeed", there, "--step", "10"],
        "neither a run nor a checkpoint": [str(tmp_path), "--to-deepspeed", there],
        "is not a directory": ["nothing", "--to-convoy", there],
        "already": [str(run.checkpoints / "step-00000010"), "--to-convoy", there],
    }
    for words, arguments in wrong.items():
        with pytest.raises(UsageError, match=words) as caught:
            call(run, "convert", *arguments)
        assert caught.value.hint


def test_checkpoints_in_a_storage_of_their_own_are_found_there(run: RunLayout, tmp_path: Path) -> None:
    storage = tmp_path / "all"
    shutil.move(run.checkpoints, storage / run.run_id)
    assert call(run, "list", "last")[1] == f"run {run.run_id} has no checkpoint\n"
    job = yaml.safe_load(BASE) | {"checkpoint": {"storage": str(storage)}}
    run.spec.write_text(yaml.safe_dump(job))
    assert call(run, "list", "last", "--json")[1].count(f'"{storage}/{run.run_id}/step-000000') == 3
    assert call(run, "verify", "last")[1].count("complete") == 3
    assert call(run, "prune", "last", "--keep-last", "1", "--keep-every", "10")[1] == "nothing to remove\n"
    assert call(run, "prune", "last", "--keep-last", "1")[0] == 0
    assert [path.name for path in (storage / run.run_id).iterdir()] == ["step-00000030"]


def test_prune_keeps_the_best(run: RunLayout) -> None:
    for step, loss in ((40, 2.0), (50, 1.0), (60, 3.0)):
        path = write_checkpoint(run.checkpoints, step, WEIGHTS)
        manifest = replace(read_manifest(path), extra={"loss": 9.0, "validation_loss": loss})
        (path / MANIFEST).write_bytes(manifest.to_bytes())
    call(run, "prune", "last", "--keep-last", "1", "--keep-best", "1")
    assert steps(run) == [50, 60]

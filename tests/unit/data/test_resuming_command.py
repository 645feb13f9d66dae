"""What the command line says of changes: refused before anything starts, shown and proved after they were accepted."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator.cli.commands.data_command import data
from orchestrator.cli.commands.run_command import run as run_command
from orchestrator.cli.commands.runs_commands import show
from orchestrator.cli.display.plain_display import describe
from orchestrator.cli.display.run_view import ShownRun
from orchestrator.domain.errors import UsageError
from orchestrator.domain.events import AcceptedChange, ChangesAccepted, Event
from orchestrator.domain.events.event_codec import encode_event
from orchestrator.store.resume_check import ChangedError
from tests.unit.data.corpora import Bench
from tests.unit.data.trained import TrainedRun

pytestmark = pytest.mark.unit


@pytest.fixture
def run(bench: Bench) -> TrainedRun:
    return TrainedRun(bench)


def home(run: TrainedRun) -> list[str]:
    return ["--home", str(run.layout.root.parent)]


def files(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_refused_resume_starts_nothing_and_leaves_the_run_as_it_was(run: TrainedRun) -> None:
    run.bench.write("texts/zz.txt", "more")
    before = files(run.layout.root)
    result = CliRunner().invoke(run_command, ["--resume", "last", "--plain", *home(run)])
    error = result.exception
    assert isinstance(error, ChangedError)
    assert error.exit_code == 2
    assert "texts/zz.txt" in error.message
    assert "--accept-changes" in (error.hint or "")
    assert error.details["changes"][0]["part"] == "data"
    assert files(run.layout.root) == before
    assert "cluster" not in result.output


def test_a_spec_that_was_broken_by_hand_leaves_the_run_as_it_was(run: TrainedRun) -> None:
    run.edit_spec("global_batch: 12", "global_batch: no")
    before = files(run.layout.root)
    assert CliRunner().invoke(run_command, ["--resume", "last", "--plain", *home(run)]).exit_code == 1
    assert files(run.layout.root) == before


def test_changes_are_accepted_for_runs_that_go_on_only() -> None:
    error = CliRunner().invoke(run_command, ["job.yaml", "--accept-changes"]).exception
    assert isinstance(error, UsageError)
    assert "--accept-changes needs --resume" in error.message


def test_accepted_changes_are_told_shown_and_proved_with_a_warning(run: TrainedRun) -> None:
    run.bench.write("texts/zz.txt", "the convoy goes on " * 100)
    found, prepared = run.go_on(accept=True)
    run.train(prepared, 21, 30)
    accepted = ChangesAccepted(20, tuple(AcceptedChange(change.part, change.what) for change in found.changes))
    told = describe(accepted, ShownRun())
    assert told == (
        "warning: continuing after step 20 with changed inputs: data: 1 file was added to texts/*.txt: texts/zz.txt"
    )
    run.layout.events.write_text(json.dumps(encode_event(Event(accepted, 5.0))) + "\n")
    shown = CliRunner().invoke(show, ["last", *home(run)]).output
    assert re.search(r"changed +\S+ \S+, accepted, used after step 20:\n +data: 1 file was added", shown)
    verified = CliRunner().invoke(data, ["verify", "last", *home(run)])
    assert verified.exit_code == 0
    assert "steps 1 to 20: data" in verified.output
    assert "steps 21 to 30: data" in verified.output
    assert "never: their positions came before this data" in verified.output
    assert "warning: the run continued with other data from step 21" in verified.output
    assert "PROVED PART BY PART" in verified.output
    assert not re.search(r"PROVED: every sample of every epoch", verified.output)
    value = json.loads(CliRunner().invoke(data, ["verify", "last", "--json", *home(run)]).output)
    assert [part["first_step"] for part in value["parts"]] == [1, 21]

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from orchestrator.cli.display.log_reader import follow_logs
from orchestrator.cli.main import cli
from orchestrator.domain.errors import UsageError
from orchestrator.domain.events import RunState
from orchestrator.domain.run_layout import RunLayout
from orchestrator.store.run_store import RunStore

pytestmark = pytest.mark.unit
Recorded = Callable[..., RunLayout]


def convoy(home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments, "--home", str(home)])


def test_an_empty_home_says_how_to_start(tmp_path: Path) -> None:
    result = convoy(tmp_path, "runs")
    assert result.exit_code == 0
    assert "convoy run" in result.output
    assert json.loads(convoy(tmp_path, "runs", "--json").output) == []


def test_runs_are_listed(recorded: Recorded) -> None:
    good, bad = recorded("good"), recorded("bad", fails_at=8)
    lines = convoy(good.root.parent, "runs").output.splitlines()
    assert lines[0].split() == ["RUN", "STATE", "WORKERS", "STEP", "LOSS", "VAL", "TOK/S", "UPDATED"]
    row = next(line for line in lines if good.run_id in line)
    assert row.split()[1:7] == ["succeeded", "2", "10/10", "4.0000", "4.5000", "2,000"]
    values = {value["id"]: value for value in json.loads(convoy(good.root.parent, "runs", "--json").output)}
    assert values[bad.run_id]["state"] == "failed"
    assert values[bad.run_id]["step"] == 7


def test_only_the_newest_are_shown_unless_asked(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    for number in range(23):
        store.create("tiny", 1_700_000_000.0 + number)
    lines = convoy(tmp_path, "runs").output.splitlines()
    assert len(lines) == 1 + 20 + 1
    assert "3 older" in lines[-1]
    assert len(convoy(tmp_path, "runs", "--all").output.splitlines()) == 24


def test_a_finished_run_is_shown(recorded: Recorded) -> None:
    layout = recorded()
    text = convoy(layout.root.parent, "show", "last").output
    for expected in (
        f"{layout.run_id}  succeeded",
        "step        10 of 10",
        "loss        7.6000 -> 4.0000 (-47.4%)",
        "validation  8.0000 -> 4.5000 (-43.8%)",
        "2,000 tokens/s, 1.0 s per step, 1.0% of it waiting for data",
        "2.0 GiB resident at peak, most 1.0 GiB in a worker",
        "1 written, kept: step 5; the last 50.0 MiB in 0.20 s",
        "went (goodput",
        "productive           19.8 s",
    ):
        assert expected in text
    assert "█" in text


def test_the_same_for_programs(recorded: Recorded) -> None:
    layout = recorded()
    value = json.loads(convoy(layout.root.parent, "show", layout.run_id, "--json").output)
    assert value["training"]["tokens"] == 20_000
    assert value["losses"][-1] == pytest.approx(4.0)
    assert sum(value["ledger"]["seconds"].values()) == pytest.approx(value["ledger"]["reserved_s"])
    assert value["checkpoints"][0]["kept"] is True


def test_a_failed_run_says_who_failed(recorded: Recorded) -> None:
    layout = recorded(fails_at=8)
    text = convoy(layout.root.parent, "show", "tiny").output
    assert "failed: worker 1: ValueError: boom" in text
    assert text.count("ValueError: boom") == 1
    assert f"convoy run --resume {layout.run_id}" in text


def test_a_run_that_never_trained_is_shown_too(tmp_path: Path) -> None:
    RunStore(tmp_path).create("tiny")
    assert convoy(tmp_path, "show", "last").exit_code == 0
    assert json.loads(convoy(tmp_path, "show", "last", "--json").output)["training"] is None


def test_a_run_that_is_not_there(recorded: Recorded) -> None:
    layout = recorded()
    error = convoy(layout.root.parent, "show", "tinny").exception
    assert isinstance(error, UsageError)
    assert "tiny" in str(error.hint)


def test_logs_of_all_and_of_one(recorded: Recorded) -> None:
    home = recorded().root.parent
    assert convoy(home, "logs", "last").output == "[0] hello from 0\n[1] hello from 1\n"
    assert convoy(home, "logs", "last", "--rank", "1").output == "hello from 1\n"
    error = convoy(home, "logs", "last", "--rank", "7").exception
    assert isinstance(error, UsageError)
    assert "ranks 0, 1" in str(error.hint)


def test_the_tail_reaches_into_the_rotated_file(recorded: Recorded) -> None:
    layout = recorded()
    layout.logs.joinpath("rank-0.log.1").write_text("a\nb\nc\n")
    assert convoy(layout.root.parent, "logs", "last", "--rank", "0", "--tail", "2").output == "c\nhello from 0\n"
    whole = convoy(layout.root.parent, "logs", "last", "--rank", "0").output
    assert whole == "a\nb\nc\nhello from 0\n"


def test_following_ends_with_the_run_and_misses_nothing(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    layout = store.create("tiny")
    store.set_state(layout, RunState.RUNNING)
    layout.logs.mkdir()
    seen: list[str] = []
    follower = threading.Thread(
        target=follow_logs, args=(layout, None, None, seen.append), kwargs={"sleep": lambda _: time.sleep(0.01)}
    )
    follower.start()
    with layout.log(0).open("w") as file:
        for number in range(50):
            file.write(f"line {number} ")
            file.flush()
            time.sleep(0.002)
            file.write("ends\n")
            file.flush()
    layout.log(0).rename(layout.logs / "rank-0.log.1")
    layout.log(0).write_text("after rotation\nno newline")
    layout.log(1).write_text("late worker\n")
    store.set_state(layout, RunState.SUCCEEDED)
    follower.join(timeout=10)
    assert not follower.is_alive()
    mine = [line.removeprefix("[0] ") for line in seen if line.startswith("[0]")]
    assert [line for line in mine if line.startswith("line")] == [f"line {number} ends" for number in range(50)]
    assert mine[-2:] == ["after rotation", "no newline"]
    assert "[1] late worker" in seen


def test_following_a_run_whose_driver_was_killed_ends(tmp_path: Path) -> None:
    program = (
        "import sys, os; from pathlib import Path; from orchestrator.store.run_store import RunStore; "
        "l = RunStore(Path(sys.argv[1])).create('tiny'); l.logs.mkdir(); l.log(0).write_text('last words\\n'); "
        "os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)])
    result = convoy(tmp_path, "logs", "last", "-f")
    assert result.output == "[0] last words\n"

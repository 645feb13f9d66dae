import os
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from orchestrator.cli import main as main_module
from orchestrator.cli.main import COMMANDS, cli
from orchestrator.domain.errors import UsageError

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]


def convoy(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment})


def test_help_is_there_in_an_instant() -> None:
    seconds = []
    for _ in range(3):
        start_s = time.monotonic()
        done = convoy("--help")
        seconds.append(time.monotonic() - start_s)
        assert done.returncode == 0
        assert all(name in done.stdout for name in COMMANDS)
    assert min(seconds) < 0.5


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["validate", "--help"], ["runs", "--help"]])
def test_nothing_heavy_is_imported_to_give_help(arguments: list[str]) -> None:
    program = (
        "import sys; from orchestrator.cli.main import cli; cli.main(sys.argv[1:], standalone_mode=False);"
        "print('HEAVY', [m for m in ('torch','ray','transformers','datasets','numpy','deepspeed') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert "HEAVY []" in done.stdout


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_explains_itself_with_examples(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0, result.output
    # A group's examples are its commands'.
    if not isinstance(cli.get_command(click.Context(cli), name), click.Group):
        assert "Examples:" in result.output or "Example:" in result.output
    assert f"convoy {name}" in result.output or "Commands:" in result.output


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("rnu", "run"), ("show-run", "show"), ("validat", "validate"), ("jobs/a.yaml", "convoy run jobs/a.yaml")],
)
def test_a_mistyped_command_names_the_one_that_was_meant(typed: str, meant: str) -> None:
    done = convoy(typed)
    assert done.returncode == 2
    assert f"there is no command '{typed}'" in done.stderr
    assert meant in done.stderr.split(";")[-1]
    assert "Traceback" not in done.stderr


def test_a_mistyped_option_names_the_one_that_was_meant() -> None:
    done = convoy("runs", "--jsn")
    assert done.returncode == 2
    assert "--json" in done.stderr


def raising(error: Exception) -> click.Command:
    def command() -> None:
        raise error

    return click.Command("x", callback=command)


def ended(monkeypatch: pytest.MonkeyPatch, error: Exception) -> int | str | None:
    monkeypatch.setattr(main_module, "cli", raising(error))
    monkeypatch.setattr(sys, "argv", ["convoy"])
    with pytest.raises(SystemExit) as raised:
        main_module.main()
    return raised.value.code


def test_an_error_for_people_has_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CONVOY_TRACEBACK", raising=False)
    assert ended(monkeypatch, UsageError("no such run", hint="look again")) == 2
    assert capsys.readouterr().err == "error: no such run\nhint: look again\n"


def test_a_bug_is_told_shortly_and_kept_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("CONVOY_TRACEBACK", raising=False)
    assert ended(monkeypatch, ZeroDivisionError("oops")) == 1
    shown = capsys.readouterr().err
    (kept,) = tmp_path.iterdir()
    assert str(kept) in shown
    assert "Traceback" not in shown
    assert "convoy doctor" in shown
    assert "ZeroDivisionError: oops" in kept.read_text()
    assert kept.stat().st_mode & 0o077 == 0, "others on this machine cannot read it"


def test_the_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CONVOY_TRACEBACK", "1")
    assert ended(monkeypatch, ZeroDivisionError("oops")) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m orchestrator completion bash | head -1; echo ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] in ("0", "141")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_for_each_shell(shell: str, tmp_path: Path) -> None:
    done = convoy("completion", shell)
    assert done.returncode == 0
    assert "_CONVOY_COMPLETE" in done.stdout
    if shell == "zsh":
        assert done.stdout.startswith("#compdef convoy")
    if shell == "bash":
        script = tmp_path / "completion"
        script.write_text(done.stdout)
        assert subprocess.run(["bash", "-n", str(script)]).returncode == 0


def test_the_shell_is_found_or_asked_for() -> None:
    assert convoy("completion", SHELL="/usr/bin/fish").stdout.startswith("function")
    done = convoy("completion", SHELL="/bin/tcsh")
    assert done.returncode == 2
    assert "bash, zsh, fish" in done.stderr


def completions(words: str, cword: int, home: Path) -> list[str]:
    environment = {"_CONVOY_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(cword)}
    program = "from orchestrator.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, **environment, "CONVOY_HOME": str(home)},
    )  # fmt: skip
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_commands_and_run_ids_complete(tmp_path: Path) -> None:
    from orchestrator.store.run_store import RunStore

    run_id = RunStore(tmp_path).create("tiny").run_id
    assert completions("convoy sh", 1, tmp_path) == ["show"]
    assert completions("convoy show ti", 2, tmp_path) == [run_id]
    assert completions("convoy run --resume ", 3, tmp_path) == ["last", run_id]

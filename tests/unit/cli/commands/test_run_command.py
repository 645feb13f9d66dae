"""`convoy run` up to the driver, and the loop that waits for it."""

import contextlib
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator.cli.commands.run_command import run
from orchestrator.cli.interrupt import STOP_DEADLINE_S
from orchestrator.cli.main import cli
from orchestrator.domain.errors import UsageError
from orchestrator.domain.events import RunState
from orchestrator.domain.lease import Lease
from orchestrator.domain.run_layout import RunLayout
from orchestrator.spec.loading.load import dump_job, load_job
from orchestrator.spec.spec_errors import SpecError
from orchestrator.store.driver_process import DriverProcess
from orchestrator.store.lease.lease_places import LeaseDirectory, LeaseEntry
from orchestrator.store.run_store import RunStore

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[4]
QUICKSTART = ROOT / "jobs" / "quickstart.yaml"


def invoke(*arguments: str) -> BaseException | None:
    return CliRunner().invoke(run, list(arguments)).exception


def test_a_job_or_a_run_has_to_be_named() -> None:
    error = invoke()
    assert isinstance(error, UsageError)
    assert "which job" in error.message


def test_a_bad_job_is_told_before_anything_starts(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("name: x\nmodle: {}\n")
    assert isinstance(invoke(str(job), "--home", str(tmp_path / "runs")), SpecError)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", [["run"], ["drill", "--fault", "nan"]])
def test_a_job_that_stands_for_several_runs_is_refused(tmp_path: Path, command: list[str]) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(QUICKSTART.read_text() + "matrix: {train.seed: [1, 2]}\n")
    told = CliRunner().invoke(cli, [*command, str(job), "--home", str(tmp_path)], standalone_mode=False).exception
    assert isinstance(told, SpecError)
    assert told.exit_code == 2
    assert "stands for several runs" in str(told)
    assert "convoy submit" in str(told)


@pytest.mark.parametrize("extra", [["job.yaml"], ["--set", "train.lr=1"]])
def test_a_resumed_run_keeps_its_spec(extra: list[str]) -> None:
    error = invoke("--resume", "last", *extra)
    assert isinstance(error, UsageError)
    assert "exclude each other" in error.message


def test_only_where_it_trains_may_be_another_one(recorded: Callable[..., RunLayout]) -> None:
    layout = recorded()
    home = str(layout.root.parent)
    RunStore(layout.root.parent).set_state(layout, RunState.FAILED, "why not")
    before = dump_job(load_job(QUICKSTART).spec)
    layout.spec.write_text(before)
    both = invoke("--resume", "last", "--home", home, "--set", "cluster.address=h:1", "--set", "train.lr=1")
    assert isinstance(both, UsageError)
    assert "--set train.lr" in both.message
    assert "cluster.address" in (both.hint or "")
    wrong = invoke("--resume", "last", "--home", home, "--set", "cluster.address=no address")
    assert isinstance(wrong, SpecError)
    assert layout.spec.read_text() == before


def test_what_cannot_be_resumed_says_why(recorded: Callable[..., RunLayout]) -> None:
    layout = recorded()
    home = str(layout.root.parent)
    finished = invoke("--resume", "last", "--home", home)
    assert isinstance(finished, UsageError)
    assert "reached its last step" in finished.message
    RunStore(layout.root.parent).set_state(layout, RunState.RUNNING)
    layout.spec.write_text(dump_job(load_job(QUICKSTART).spec))
    active = invoke("--resume", "last", "--home", home)
    assert isinstance(active, UsageError)
    assert "is running" in active.message


@contextlib.contextmanager
def renewed(directory: LeaseDirectory, entry: LeaseEntry) -> Iterator[None]:
    """A driver on another machine that renews its lease."""
    ending = threading.Event()

    def renew() -> None:
        lease = entry.lease
        while not ending.wait(0.05):
            lease = replace(lease, renewals=lease.renewals + 1)
            directory.write(replace(entry, lease=lease))

    thread = threading.Thread(target=renew)
    thread.start()
    yield
    ending.set()
    thread.join()


def test_a_run_is_taken_over_from_a_driver_that_lives_only_if_asked_to(recorded: Callable[..., RunLayout]) -> None:
    layout = recorded()
    home = str(layout.root.parent)
    RunStore(layout.root.parent).set_state(layout, RunState.RUNNING)
    layout.spec.write_text(dump_job(load_job(QUICKSTART, ["data.sources=[{files: [not/there.txt]}]"]).spec))
    directory = LeaseDirectory(layout.root)
    entry = LeaseEntry(Lease("another", 1), DriverProcess(7, "elsewhere", "another boot", 1))
    assert directory.create(entry)
    with renewed(directory, entry):
        driven = invoke("--resume", "last", "--home", home)
        taken = invoke("--resume", "last", "--home", home, "--take-over")
    assert isinstance(driven, UsageError)
    assert "process 7 on elsewhere drives it and renews its lease" in driven.message
    assert "--take-over" in (driven.hint or "")
    assert isinstance(taken, SystemExit)
    assert directory.highest() == 2
    record = RunStore(layout.root.parent).read("last")
    assert record.state is RunState.FAILED
    assert "not/there.txt" in (record.reason or "")


DRIVER = textwrap.dedent(
    """
    import subprocess, sys, time
    from dataclasses import dataclass
    from pathlib import Path
    from orchestrator.cli.commands import run_command as command
    from orchestrator.domain.events import Event, RunCreated, RunState
    from orchestrator.store.run_store import RunStore

    @dataclass
    class Outcome:
        run_id: str; run_dir: Path; state: RunState; reason: str | None; step: int; exit_code: int

    home, behaviour = Path(sys.argv[1]), sys.argv[2]

    def drive(observers, stop):
        layout = RunStore(home).create("tiny")
        for observer in observers:
            observer.on_event(Event(RunCreated(layout.run_id, "hash", "0.1"), time.time()))
        if behaviour == "fails":
            return Outcome(layout.run_id, layout.root, RunState.FAILED, "boom", 0, 1)
        if behaviour == "raises":
            from orchestrator.domain.errors import ClusterError
            raise ClusterError("no cluster", hint="start one")
        if behaviour == "hangs":
            null = subprocess.DEVNULL
            child = subprocess.Popen(["sh", "-c", "sleep 60 & echo ready; wait"], stdout=subprocess.PIPE, stderr=null)
            child.stdout.readline()
            print("child", child.pid, flush=True)
            time.sleep(60)
        print("child 0", flush=True)
        stop.wait()
        return Outcome(layout.run_id, layout.root, RunState.STOPPED, "asked to", 3, 1)

    from orchestrator.cli.main import _say_error
    from orchestrator.domain.errors import ConvoyError
    try:
        sys.exit(command._drive(drive, command._display(False, True, False), home, quiet=False))
    except ConvoyError as error:
        _say_error(error)
        sys.exit(error.exit_code)
    """
)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start a driver in a process."""
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    started: list[subprocess.Popen[str]] = []

    def make(behaviour: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "runs"), behaviour],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        started.append(process)
        return process

    yield make
    for process in started:
        process.kill()
        process.communicate()


def child_of(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline().split()[1])


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks_the_run_to_stop(
    start: Callable[[str], subprocess.Popen[str]], number: signal.Signals
) -> None:
    process = start("stops")
    child_of(process)
    process.send_signal(number)
    out, err = process.communicate(timeout=5)
    assert process.returncode == 128 + number
    assert "stopping" in err
    assert "stopped at step" in out


def test_the_second_signal_ends_it_and_every_process_it_started(
    start: Callable[[str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start("hangs")
    child = child_of(process)
    grandchild = int(Path(f"/proc/{child}/task/{child}/children").read_text().split()[0])
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    sent_s = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=5)
    assert time.monotonic() - sent_s < 2
    assert process.returncode == 130
    assert "killed: second interrupt received" in err
    assert gone(child)
    assert gone(grandchild)
    record = RunStore(tmp_path / "runs").read("last")
    assert (record.status, record.reason) == ("stopped", "killed: second interrupt received")


def test_one_signal_is_enough_for_a_run_that_hangs(start: Callable[[str], subprocess.Popen[str]]) -> None:
    process = start("hangs")
    child = child_of(process)
    sent_s = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=10)
    assert STOP_DEADLINE_S <= time.monotonic() - sent_s < 6
    assert process.returncode == 143
    assert "did not stop within" in err
    assert gone(child)


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    process = subprocess.Popen(
        ["nohup", sys.executable, str(script), str(tmp_path / "runs"), "stops"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    child_of(process)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=5)
    assert process.returncode == 143


def test_failures_and_errors_end_with_their_code(start: Callable[[str], subprocess.Popen[str]]) -> None:
    failing = start("fails")
    out, err = failing.communicate(timeout=10)
    assert failing.returncode == 1
    assert "failed: boom" in err
    assert out == ""
    raising = start("raises")
    _, err = raising.communicate(timeout=10)
    assert raising.returncode == 1
    assert "error: no cluster\nhint: start one" in err

"""Threads that run as long as their owner: no exception ends them, and none goes unseen."""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.checkpoint.memory.vault import Vault
from orchestrator.checkpoint.storage.retention import Rule
from orchestrator.checkpoint.survey.surveyor import Surveyor, VaultContact
from orchestrator.domain.events import CheckpointFailed, CheckpointSaved, CheckpointStarted, Event
from orchestrator.drill.bucket_proxy import Link
from orchestrator.gang.agent.output_capture import OutputCapture
from orchestrator.gang.vaults import checkpoint_committer
from orchestrator.gang.vaults.checkpoint_committer import CheckpointCommitter
from orchestrator.lasting_thread import FIRST_PAUSE_S, LONGEST_PAUSE_S, LastingThread, longer, repeating
from tests.events import event

pytestmark = pytest.mark.unit
TOKEN = "a token of these tests"


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10.0
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_it_goes_on_after_an_exception_and_reports_it() -> None:
    turns, reports = [], []

    def turn() -> bool:
        turns.append(None)
        if len(turns) <= 3:
            raise ValueError(f"turn {len(turns)}")
        return len(turns) < 5

    thread = LastingThread("of a test", turn, reports.append)
    eventually(lambda: not thread.alive)
    assert len(turns) == 5
    assert reports == [f"of a test: ValueError: turn {number}" for number in (1, 2, 3)]


def test_it_waits_longer_after_each_failure_up_to_a_bound() -> None:
    pauses = [FIRST_PAUSE_S]
    while len(pauses) < 12:
        pauses.append(longer(pauses[-1]))
    assert pauses[:3] == [0.05, 0.1, 0.2]
    assert max(pauses) == pauses[-1] == LONGEST_PAUSE_S


def test_it_is_stopped_while_it_waits_after_a_failure() -> None:
    failed = threading.Event()

    def turn() -> bool:
        failed.set()
        raise OSError("again")

    thread = LastingThread("of a test", turn, lambda _: None)
    assert failed.wait(5.0)
    thread.stop()
    assert thread.join(5.0)


def test_the_same_failure_is_printed_once(capfd: pytest.CaptureFixture[str]) -> None:
    left = [3]

    def turn() -> bool:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError("no room")
        return False

    thread = LastingThread("of a test", turn)
    eventually(lambda: not thread.alive)
    assert capfd.readouterr().err == "warning: of a test: OSError: no room\n"


def test_what_is_repeated_is_done_again_after_a_failure_and_not_after_the_end() -> None:
    done, twice = [], threading.Event()
    reports: list[str] = []

    def act() -> None:
        done.append(len(done))
        if len(done) == 1:
            raise OSError("the first time")
        if len(done) >= 3:
            twice.set()

    with repeating("work", act, 0.001, reports.append):
        assert twice.wait(5.0)
    count = len(done)
    time.sleep(0.05)
    assert len(done) <= count + 1, "at most the call in progress"
    assert reports == ["work: OSError: the first time"]


def test_surveys_go_on_when_one_cannot_be_taken_or_makes_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    vault = Vault("127.0.0.1", TOKEN, lambda: 1 << 30)
    taken: list[bool] = []

    def take(reports: object) -> None:
        assert isinstance(reports, list)
        taken.extend(report.answers for report in reports)
        if len(taken) == 1:
            raise RuntimeError("whoever takes them is in trouble")

    inventory = Vault._on_inventory
    nonsense = [1]

    def odd(self: Vault, channel: object, frame: object) -> None:
        if nonsense[0] and len(taken) == 2:
            nonsense[0] = 0
            channel.send({"held": [{}]})  # type: ignore[attr-defined]
        else:
            inventory(self, channel, frame)  # type: ignore[arg-type]

    monkeypatch.setattr(Vault, "_on_inventory", odd)
    surveyor = Surveyor(lambda: [VaultContact("it", vault.address, TOKEN)], take, interval_s=0.01)
    try:
        eventually(lambda: len(taken) >= 4)
    finally:
        surveyor.close()
        vault.close()
    assert taken[:4] == [True, True, False, True]


def test_a_save_that_ends_in_an_error_of_any_kind_has_failed_and_the_next_is_seen_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    def see_through(_: CheckpointCommitter, save: checkpoint_committer._PendingCommit) -> Event:
        if save.step == 8:
            raise KeyError("entry")
        return event(CheckpointSaved, 0.0, step=save.step)

    monkeypatch.setattr(CheckpointCommitter, "_see_through", see_through)
    saves = CheckpointCommitter(lambda: [], Rule(3, None, None))
    for step in (8, 16):
        saves.begin(1, CheckpointStarted(step, "/runs/a/checkpoints", 2, 1, 0.1))
    failed, saved = saves.end(10.0)
    assert (type(failed.body), failed.body.step) == (CheckpointFailed, 8)
    assert "KeyError" in failed.body.reason
    assert (type(saved.body), saved.body.step) == (CheckpointSaved, 16)


def test_a_drill_s_link_forwards_after_a_connection_that_could_not_be_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    accept, left = socket.socket.accept, [2]

    def failing(listener: socket.socket) -> object:
        if left[0]:
            left[0] -= 1
            raise OSError(24, "Too many open files")
        return accept(listener)

    with socket.create_server(("127.0.0.1", 0)) as target:
        monkeypatch.setattr(socket.socket, "accept", failing)
        link = Link("127.0.0.1", target.getsockname()[1])
        eventually(lambda: not left[0])
        monkeypatch.undo()
        with socket.create_connection(("127.0.0.1", link.port), timeout=5.0) as client:
            target.settimeout(5.0)
            server, _ = target.accept()
            client.sendall(b"hello")
            assert server.recv(5) == b"hello"
            server.close()
        link.close()
    eventually(lambda: not any(thread.name == "drill-link" for thread in threading.enumerate()))


def test_a_worker_s_output_is_followed_after_a_failure(tmp_path: Path) -> None:
    seen: list[str] = []
    failing = [1]

    def sink(lines: list[str]) -> None:
        if failing[0]:
            failing[0] = 0
            raise RuntimeError("full")
        seen.extend(lines)

    streams = os.dup(1), os.dup(2)
    objects = sys.stdout, sys.stderr
    try:
        capture = OutputCapture(tmp_path / "out", sink)
        os.write(1, b"lost\n")
        eventually(lambda: not failing[0])
        os.write(1, b"seen\n")
        eventually(lambda: "seen" in seen)
        capture._ended.set()
    finally:
        for number, descriptor in zip((1, 2), streams, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        with contextlib.suppress(OSError):
            sys.stdout.close()
            sys.stderr.close()
        sys.stdout, sys.stderr = objects

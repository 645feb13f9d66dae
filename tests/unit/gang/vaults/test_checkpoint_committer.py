"""Checkpoints that vaults write: when the next is due, and what becomes of those that the run's end overtakes."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.checkpoint.memory.vault_server import VaultServer
from orchestrator.checkpoint.memory.wire import Channel
from orchestrator.checkpoint.storage.retention import Rule
from orchestrator.checkpoint.survey.surveyor import VaultContact
from orchestrator.domain.events import CheckpointFailed, CheckpointSaved, CheckpointStarted, Event
from orchestrator.gang.vaults import checkpoint_committer as module
from orchestrator.gang.vaults.checkpoint_committer import CheckpointCommitter, Pacer

pytestmark = pytest.mark.unit

STARTED = CheckpointStarted(8, "/runs/a/checkpoints", 2, 1, 0.1)


def test_what_is_not_written_when_the_run_ends_has_failed() -> None:
    saves = CheckpointCommitter(lambda: [], Rule(3, None, None))  # no vault knows of it, and none will
    saves.begin(1, STARTED)
    assert saves.busy
    (event,) = saves.end(0.3)
    assert (type(event.body), event.body.step) == (CheckpointFailed, 8)
    assert event.body.place == STARTED.place
    assert event.body.reason == "the run ended before the checkpoint was written: it took longer than 0.3 s"
    assert not saves.busy
    assert saves.end(0.0) == []


def test_an_error_nobody_expected_fails_one_checkpoint_and_not_all_that_follow() -> None:
    asked = 0

    def contacts() -> list[VaultContact]:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise ZeroDivisionError("on purpose")
        return []

    saves = CheckpointCommitter(contacts, Rule(3, None, None))
    saves.begin(1, STARTED)
    (event,) = wait_for_events(saves)
    assert (type(event.body), event.body.step) == (CheckpointFailed, 8)
    assert event.body.reason == "checkpoint of step 8: ZeroDivisionError: on purpose"
    saves.begin(1, replace(STARTED, step=16))
    wait_until(lambda: asked > 1)  # the thread lives
    assert saves.busy


def wait_for_events(saves: CheckpointCommitter) -> list[Event]:
    found: list[Event] = []
    wait_until(lambda: bool(found.extend(saves.finished()) or found))
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class WritingVault:
    """Says, on a vault's port, how many parts of a shard are written; it is at it for `parts` questions."""

    def __init__(self, parts: int) -> None:
        self.parts, self.asked = parts, 0
        self._server = VaultServer("127.0.0.1", "token", self._answer)
        self.address = self._server.address

    def close(self) -> None:
        self._server.close()

    def _answer(self, channel: Channel, frame: dict[str, Any]) -> None:
        assert frame["do"] == "written"
        self.asked += 1
        channel.send({"shards": [{"rank": 0, "pending": True, "parts": min(self.asked, self.parts)}]})


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.02)
    monkeypatch.setattr(module, "GIVE_UP_S", 1.0)


def saves_from(vault: WritingVault) -> CheckpointCommitter:
    contact = VaultContact("node", vault.address, "token")
    saves = CheckpointCommitter(lambda: [contact], Rule(3, None, None))
    saves.begin(1, replace(STARTED, world_size=1))
    return saves


@pytest.mark.usefixtures("short")
def test_a_checkpoint_is_given_up_when_nothing_more_of_it_is_written() -> None:
    vault = WritingVault(parts=60)
    saves, started_s = saves_from(vault), time.monotonic()
    (event,) = wait_for_events(saves)
    vault.close()
    assert event.body.reason == "checkpoint of step 8: nothing was written for 1 s"
    assert vault.asked > 60
    assert time.monotonic() - started_s > 60 * 0.02 + 1.0  # longer than it may be without progress


@pytest.mark.usefixtures("short")
def test_the_end_of_a_run_waits_as_long_as_a_checkpoint_is_written() -> None:
    vault = WritingVault(parts=60)
    saves, started_s = saves_from(vault), time.monotonic()
    (event,) = saves.end(0.5, lambda: False)
    assert time.monotonic() - started_s > 60 * 0.02 + 0.5
    assert event.body.reason == "the run ended before the checkpoint was written: nothing was written for 0.5 s"
    vault.close()
    for stopped, why in ((None, "it took longer than 0.5 s"), (lambda: True, "the run was stopped")):
        slower = WritingVault(parts=10_000)
        saves, started_s = saves_from(slower), time.monotonic()
        (event,) = saves.end(0.5 if stopped is None else 500.0, stopped)
        assert event.body.reason == f"the run ended before the checkpoint was written: {why}"
        assert time.monotonic() - started_s < 10.0
        slower.close()


def test_the_interval_follows_what_a_checkpoint_costs() -> None:
    cheap, dear = Pacer(True), Pacer(True)
    cheap.take(CheckpointSaved(8, "place", 1, 0.01, 0.1))
    dear.take(CheckpointSaved(8, "place", 1, 10.0, 60.0))
    for pacer in (cheap, dear):
        assert not pacer.due(0.0)
    waited = {}
    for name, pacer in (("cheap", cheap), ("dear", dear)):
        waited[name] = next(now_s for now_s in range(1, 100_000) if pacer.due(float(now_s)))
    assert waited["cheap"] < waited["dear"]
    never = Pacer(False)
    assert not any(never.due(float(now_s)) for now_s in range(0, 10_000, 100))

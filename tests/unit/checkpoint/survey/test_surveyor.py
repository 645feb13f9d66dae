"""Vaults that are asked from a thread: all answers of a round arrive together, whoever is silent."""

import socket
import threading
import time

import pytest

from orchestrator.checkpoint.memory.vault import Vault
from orchestrator.checkpoint.survey.durability import VaultReport
from orchestrator.checkpoint.survey.surveyor import Surveyor, VaultContact

pytestmark = pytest.mark.unit
TOKEN = "a token of these tests"


class Rounds:
    """What was taken, and a way to wait for the next one."""

    def __init__(self) -> None:
        self.last: dict[str, VaultReport] = {}
        self._taken = threading.Semaphore(0)

    def take(self, reports: "list[VaultReport] | tuple[VaultReport, ...] | object") -> None:
        assert isinstance(reports, list)
        self.last = {report.node: report for report in reports}
        self._taken.release()

    def next(self) -> dict[str, VaultReport]:
        assert self._taken.acquire(timeout=10.0)
        assert self._taken.acquire(timeout=10.0)  # the round that began after the call
        return self.last


def test_a_silent_vault_and_one_that_is_gone_do_not_hide_the_others() -> None:
    good, gone = Vault("127.0.0.1", TOKEN, lambda: 1 << 30), Vault("127.0.0.1", TOKEN, lambda: 1 << 30)
    deaf = socket.create_server(("127.0.0.1", 0))  # connects, and never says a word
    contacts = [
        VaultContact("good", good.address, TOKEN),
        VaultContact("gone", gone.address, TOKEN),
        VaultContact("deaf", f"127.0.0.1:{deaf.getsockname()[1]}", TOKEN),
        VaultContact("stranger", good.address, "another token"),
    ]
    rounds = Rounds()
    before_s = good.asked_s
    surveyor = Surveyor(lambda: contacts[:2], rounds.take, interval_s=0.02)
    try:
        assert {node: report.answers for node, report in rounds.next().items()} == {"good": True, "gone": True}
        assert good.asked_s > before_s
        copies = rounds.last["good"].copies
        assert copies is not None
        assert copies.snapshots == 0
        gone.close()
        found = rounds.next()
        assert {node: report.answers for node, report in found.items()} == {"good": True, "gone": False}
        assert found["gone"].problem
        contacts[1:2] = []
        started = time.monotonic()
        found = rounds.next()
        assert time.monotonic() - started < 5.0
    finally:
        surveyor.close()
        good.close()
        deaf.close()
    assert found["good"].answers


def test_a_deaf_vault_costs_a_round_its_timeout_and_no_more() -> None:
    good = Vault("127.0.0.1", TOKEN, lambda: 1 << 30)
    deaf = socket.create_server(("127.0.0.1", 0))
    contacts = [
        VaultContact("deaf", f"127.0.0.1:{deaf.getsockname()[1]}", TOKEN),
        VaultContact("good", good.address, TOKEN),
    ]
    rounds = Rounds()
    surveyor = Surveyor(lambda: contacts, rounds.take, interval_s=0.02)
    try:
        started = time.monotonic()
        found = rounds.next()
        assert 1.0 < time.monotonic() - started < 5.0
        assert {node: report.answers for node, report in found.items()} == {"deaf": False, "good": True}
    finally:
        surveyor.close()
        good.close()
        deaf.close()
    assert not any(thread.name.startswith("survey") for thread in threading.enumerate())


def test_a_wrong_token_is_told() -> None:
    vault = Vault("127.0.0.1", TOKEN, lambda: 1 << 30)
    rounds = Rounds()
    surveyor = Surveyor(lambda: [VaultContact("it", vault.address, "another")], rounds.take, interval_s=0.02)
    try:
        assert "wrong token" in rounds.next()["it"].problem
    finally:
        surveyor.close()
        vault.close()

"""Reports that lie beside the state: all that follow on a step, and no others."""

import time

import pytest

from orchestrator.checkpoint.memory.recent_reports import KEPT, Reports
from orchestrator.checkpoint.memory.vault import Vault
from orchestrator.checkpoint.memory.wire import Channel
from orchestrator.checkpoint.survey.surveyor import VaultContact, ask_reports

pytestmark = pytest.mark.unit
TOKEN = "a token of these tests"


def test_only_what_follows_without_a_gap() -> None:
    reports = Reports()
    for step in (5, 6, 7, 9):
        reports.put(step, str(step).encode())
    assert reports.after(5) == [b"6", b"7"]
    assert reports.after(7) == []
    assert reports.after(8) == [b"9"]
    reports.put(6, b"again")  # the run went back: what came after it is void
    assert reports.after(4) == [b"5", b"again"]
    assert reports.after(6) == []


def test_memory_is_bounded() -> None:
    reports = Reports()
    for step in range(1, KEPT + 11):
        reports.put(step, b"x")
    assert reports.after(0) == []
    assert len(reports.after(10)) == KEPT


def test_they_reach_the_peers_and_are_read_from_there() -> None:
    own, peer = (Vault("127.0.0.1", TOKEN, lambda: 1 << 30) for _ in range(2))
    try:
        driver = Channel.connect(own.address, TOKEN, 5.0)
        driver.ask({"do": "peers", "generation": 1, "addresses": [peer.address]})
        worker = Channel.connect(own.address, TOKEN, 5.0)
        for step in (1, 2):
            frame = {"do": "report", "generation": 1, "rank": 0, "step": step, "copy": False}
            worker.send(frame, b'{"step":%d}' % step)
        deadline = time.monotonic() + 5.0
        contact = VaultContact("n", peer.address, TOKEN)
        while len(ask_reports(contact, 0)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert ask_reports(contact, 0) == [b'{"step":1}', b'{"step":2}']
        assert ask_reports(VaultContact("n", own.address, TOKEN), 1) == [b'{"step":2}']
        assert own.last_problem == ""
    finally:
        own.close()
        peer.close()

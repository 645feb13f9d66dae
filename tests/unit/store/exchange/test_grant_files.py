"""Grants as files: an older server, or an older grant, never replaces a newer one."""

from pathlib import Path

import pytest

from orchestrator.domain.queue.grant import Grant, GrantAnswer
from orchestrator.domain.run_layout import RunLayout
from orchestrator.store.exchange.grant_files import GrantFiles, read_answer, write_grant

pytestmark = pytest.mark.unit


def test_an_older_server_never_replaces_a_newer_grant(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    desk = GrantFiles(layout)
    assert desk.newest() is None
    assert write_grant(layout, Grant(1, {"a": 1}), server=3)
    assert not write_grant(layout, Grant(2, {"b": 1}), server=2)
    assert desk.newest() == Grant(1, {"a": 1})
    assert write_grant(layout, Grant(2, {"b": 2}), server=3)
    assert not write_grant(layout, Grant(1, {"a": 1}), server=3)
    assert write_grant(layout, Grant(3, {"c": 1}), server=4)
    assert desk.newest() == Grant(3, {"c": 1})


def test_the_answer_is_read_as_it_was_given(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    assert read_answer(layout) is None
    GrantFiles(layout).answer(GrantAnswer(2, {"a": 1}))
    assert read_answer(layout) == GrantAnswer(2, {"a": 1})
    GrantFiles(RunLayout(tmp_path / "gone")).answer(GrantAnswer(3))  # a disk that fails does not end the run

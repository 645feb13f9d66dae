"""`convoy goodput` of recorded runs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from orchestrator.cli.display.goodput_text import RunLedger, goodput_text, usd
from orchestrator.cli.main import cli
from orchestrator.domain.errors import UsageError
from orchestrator.domain.run_layout import RunLayout
from orchestrator.store.run_store import RunStore
from tests.unit.goodput.test_ledger_result import RESULT

pytestmark = pytest.mark.unit
Recorded = Callable[..., RunLayout]


def goodput(home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["goodput", *arguments, "--home", str(home)])


def test_a_finished_run(recorded: Recorded) -> None:
    shown = goodput(recorded().root.parent, "last").output
    for line in ("goodput     49.5%", "ETTR", "reserved    40.0 s of worker time in 28.0 s", "productive +", "startup"):
        assert line in shown
    assert "COST" not in shown
    assert "workers now" not in shown


def test_the_same_for_programs(recorded: Recorded) -> None:
    layout = recorded()
    value = json.loads(goodput(layout.root.parent, layout.run_id, "--json").output)
    assert (value["run"], value["state"], value["age_s"]) == (layout.run_id, "succeeded", None)
    assert sum(value["seconds"].values()) == pytest.approx(value["reserved_s"]) == pytest.approx(40.0)
    assert "state" in value
    assert value["cost"] is None


def test_several_runs_have_a_line_each(recorded: Recorded) -> None:
    first, second = recorded(), recorded("other")
    shown = goodput(first.root.parent, first.run_id, second.run_id).output.splitlines()
    assert shown[0].split()[:4] == ["RUN", "STATE", "WORKERS", "RESERVED"]
    assert [line.split()[0] for line in shown[1:]] == [first.run_id, second.run_id]
    values = json.loads(goodput(first.root.parent, first.run_id, second.run_id, "--json").output)
    assert [value["run"] for value in values] == [first.run_id, second.run_id]


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("class", ["waiting", "25.0%", "$0.50", "INCIDENT", "driver lost"]),
        ("cause", ["node died", "25.0%", "$0.50"]),
        ("node", ["10.0.0.1", "100.0%", "$1.50"]),
        ("incident", ["001", "hang", "driver lost", "$0.10"]),
    ],
)
def test_a_table_by_anything(by: str, expected: list[str]) -> None:
    text = goodput_text(RunLedger("tiny-1", "running", True, RESULT), by, 8.0)
    assert "tiny-1  running, 5 s ago" in text
    assert "2 workers now" in text
    assert "$2.00 spent, $0.50 of it not productive" in text
    for part in expected:
        assert part in text, text


def test_a_run_that_recorded_nothing_has_none(tmp_path: Path) -> None:
    RunStore(tmp_path).create("tiny")
    error = goodput(tmp_path, "last").exception
    assert isinstance(error, UsageError)
    assert "has no ledger.json" in error.message


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (None, "-"),
        (0.0, "$0.00"),
        (0.00001, "<$0.0001"),
        (0.0123, "$0.0123"),
        (12.34, "$12.34"),
        (12345.6, "$12,346"),
    ],
)
def test_money_is_short(amount: float | None, text: str) -> None:
    assert usd(amount) == text

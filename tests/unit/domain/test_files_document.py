"""`docs/files.md` names every field and every kind that is written, and no others."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from orchestrator.checkpoint.survey.durability import Durability, NodeLoss, ShardCopies
from orchestrator.data.data_manifest import DataManifest
from orchestrator.domain.events import RunState
from orchestrator.domain.fingerprints import CodePrint, FileContent, ModelPrint, TokenizerPrint
from orchestrator.domain.ranks.rank_report import CollectiveTimes, PhaseTimes, RankMemory, RankReport
from orchestrator.domain.ranks.rank_summary import RankSpread, ranks_to_columns
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.goodput.ledger_result import Cost, IncidentTime, LedgerResult, NodeTime
from orchestrator.goodput.time_class import TimeClass
from orchestrator.metrics.event_reference import with_events
from orchestrator.store.fingerprint_file import FingerprintEntry, PreparedPrint
from orchestrator.store.run_store import RunStore

pytestmark = pytest.mark.unit

DOCUMENT = (Path(__file__).parents[3] / "docs" / "files.md").read_text()


def section(title: str) -> str:
    return DOCUMENT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def table(title: str) -> list[str]:
    return [line for line in section(title).splitlines() if line.startswith("| `")]


def rows(title: str) -> dict[str, str]:
    """First column (without the backquotes) to the rest, of the section's table."""
    found = {}
    for line in section(title).splitlines():
        if line.startswith("| `"):
            first, rest = line.removeprefix("| ").split(" | ", 1)
            found.update(dict.fromkeys(re.findall(r"`([^`]+)`", first), rest))
    return found


def test_every_field_of_a_step_is_documented() -> None:
    expected = {field.name for field in fields(StepReport)} - {"ranks"} | {"v", "spread", "slowest"}
    expected |= {f"spread.{field.name}" for field in fields(RankSpread)}
    expected |= {f"slowest[].{field.name}" for field in fields(RankReport)} - {
        "slowest[].phases",
        "slowest[].memory",
        "slowest[].waits",
    }
    expected |= {f"slowest[].phases.{field.name}" for field in fields(PhaseTimes)}
    expected |= {f"slowest[].memory.{field.name}" for field in fields(RankMemory)}
    expected |= {f"slowest[].waits.{field.name}" for field in fields(CollectiveTimes)}
    named = re.findall(r"`([\w.\[\]]+)`", "".join(line.split(" | ")[0] for line in table("steps.jsonl")))
    assert set(named) == expected


def test_every_list_of_the_ranks_is_documented() -> None:
    ranks = [RankReport(0, 1, 1, PhaseTimes(*[1.0] * 6), RankMemory(*[1] * 5), CollectiveTimes(1.0, 1.0, 1.0))]
    named = re.findall(r"`([\w.]+)`", "".join(line.split(" | ")[0] for line in table("ranks.jsonl")))
    assert set(named) == {"v", "step", "time_s", *ranks_to_columns(ranks)}


def test_the_events_are_those_of_the_classes() -> None:
    assert with_events(DOCUMENT) == DOCUMENT, "run `make docs`"


def test_a_document_without_a_place_for_the_events_is_refused() -> None:
    with pytest.raises(ValueError, match="two markers"):
        with_events("# Files\n")


def test_every_state_is_documented() -> None:
    assert all(state.value in rows("run.json")["state"] for state in RunState)


def test_what_run_json_holds_is_documented(tmp_path: Path) -> None:
    import json

    value = json.loads(RunStore(tmp_path).create("tiny", 1.0).state.read_text())
    queued = RunLayout(tmp_path / "queued-20260101-000000-aaaa")
    RunStore(tmp_path).restore_queued(queued, "queued", 1.0)
    value |= json.loads(queued.state.read_text())
    driver = {f"driver.{key}" for key in value.pop("driver")}
    assert set(rows("run.json")) == set(value) | driver


def test_what_the_ledger_holds_is_documented() -> None:
    expected = {field.name for field in fields(LedgerResult)} | {"v", "state"}
    expected |= {f"by_node[].{field.name}" for field in fields(NodeTime)}
    expected |= {f"by_incident[].{field.name}" for field in fields(IncidentTime)}
    expected |= {f"cost.{field.name}" for field in fields(Cost)}
    assert set(rows("ledger.json")) - set(TimeClass) == expected - {"by_node", "by_incident", "cost"}


def test_every_class_of_time_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "reliability.md").read_text()
    documented = re.findall(r"^\| \d+ \| `(\w+)`", text, re.MULTILINE)
    assert documented == [time_class.value for time_class in TimeClass]


def test_what_data_json_holds_is_documented() -> None:
    own = {"job_dir", "directory", "cached"}
    assert set(rows("data.json")) == own | {field.name for field in fields(DataManifest)}


def test_what_durability_json_holds_is_documented() -> None:
    expected = {field.name for field in fields(Durability)} | {"steps_at_risk", "unrecoverable", "shards[].copies"}
    expected |= {f"shards[].{field.name}" for field in fields(ShardCopies)}
    expected |= {f"nodes[].{field.name}" for field in fields(NodeLoss)}
    assert set(rows("durability.json")) - {"recovery.memory_kept_s"} == expected


def test_what_fingerprints_json_and_contents_jsonl_hold_is_documented() -> None:
    inner = {"data": PreparedPrint, "tokenizer": TokenizerPrint, "model": ModelPrint, "code": CodePrint}
    expected = {f"history[].{field.name}" for field in fields(FingerprintEntry)} - {
        f"history[].{name}" for name in inner
    }
    expected |= {f"history[].{name}.{field.name}" for name, kind in inner.items() for field in fields(kind)}
    assert set(rows("fingerprints.json")) == expected
    assert set(rows("contents.jsonl")) == {"source", "revision"} | {field.name for field in fields(FileContent)}

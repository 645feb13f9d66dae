"""`docs/files.md` names every field and every kind that is written, and no others."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from orchestrator.checkpoint.survey.durability import Durability, NodeLoss, ShardCopies
from orchestrator.data.data_manifest import DataManifest
from orchestrator.domain.events import RunState
from orchestrator.domain.fingerprints import CodePrint, FileContent, ModelPrint, TokenizerPrint
from orchestrator.domain.step_report import CollectiveTimes, PhaseTimes, RankMemory, RankReport, StepReport
from orchestrator.metrics.event_reference import with_events
from orchestrator.metrics.ledger import Category, Ledger
from orchestrator.store.fingerprint_file import FingerprintEntry, PreparedPrint
from orchestrator.store.run_store import RunStore

pytestmark = pytest.mark.unit

DOCUMENT = (Path(__file__).parents[3] / "docs" / "files.md").read_text()


def section(title: str) -> str:
    return DOCUMENT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(title: str) -> dict[str, str]:
    """First column (without the backquotes) to the rest, of the section's table."""
    found = {}
    for line in section(title).splitlines():
        if line.startswith("| `"):
            first, rest = line.removeprefix("| ").split(" | ", 1)
            found.update(dict.fromkeys(re.findall(r"`([^`]+)`", first), rest))
    return found


def test_every_field_of_a_step_is_documented() -> None:
    expected = {field.name for field in fields(StepReport)}
    expected |= {f"ranks[].{field.name}" for field in fields(RankReport)} - {
        "ranks[].phases",
        "ranks[].memory",
        "ranks[].waits",
    }
    expected |= {f"ranks[].phases.{field.name}" for field in fields(PhaseTimes)}
    expected |= {f"ranks[].memory.{field.name}" for field in fields(RankMemory)}
    expected |= {f"ranks[].waits.{field.name}" for field in fields(CollectiveTimes)}
    assert set(rows("steps.jsonl")) == expected


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
    driver = {f"driver.{key}" for key in value.pop("driver")}
    assert set(rows("run.json")) == set(value) | driver


def test_what_the_ledger_holds_is_documented() -> None:
    value = Ledger(0.0).to_json(1.0)
    assert set(rows("ledger.json")) == set(value) | {f"seconds.{category.value}" for category in Category}


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

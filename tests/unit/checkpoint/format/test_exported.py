"""Whether an export is all there, told from its directory alone."""

import json
from pathlib import Path

import pytest

from orchestrator.checkpoint.format.exported import (
    PROVENANCE,
    clear_unfinished,
    export_problem,
    exported_step,
    provenance,
)
from orchestrator.domain.run_layout import RunLayout

pytestmark = pytest.mark.unit


@pytest.fixture
def export(tmp_path: Path) -> Path:
    directory = tmp_path / "export"
    (directory / "sub").mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(b"w" * 100)
    (directory / "sub" / "vocab.json").write_text("{}")
    (directory / PROVENANCE).write_text(provenance(directory, {"step": 7}))
    return directory


def test_a_whole_export_is_of_its_step(export: Path) -> None:
    assert json.loads((export / PROVENANCE).read_text())["files"] == {"model.safetensors": 100, "sub/vocab.json": 2}
    assert export_problem(export, 7) is None
    assert exported_step(export) == 7
    assert "is of step 7, not 8" in str(export_problem(export, 8))


def test_what_is_cut_short_or_missing_is_no_export(export: Path, tmp_path: Path) -> None:
    assert "no export in" in str(export_problem(tmp_path / "none", 7))
    (export / "model.safetensors").write_bytes(b"w" * 99)
    assert "has 99 bytes, expected 100" in str(export_problem(export, 7))
    assert exported_step(export) is None
    (export / "model.safetensors").unlink()
    assert "lacks model.safetensors" in str(export_problem(export, 7))
    for damaged in ("", "[]", '{"files": {}}', '{"step": "x"}', '{"step": 7, "files": 3}'):
        (export / PROVENANCE).write_text(damaged)
        assert "is damaged" in str(export_problem(export, 7)), damaged
        assert exported_step(export) is None
    (export / PROVENANCE).unlink()
    assert "contains no export" in str(export_problem(export, 7))


def test_one_of_an_earlier_version_names_no_files(export: Path) -> None:
    (export / PROVENANCE).write_text('{"step": 7}')
    assert exported_step(export) == 7


def test_leftovers_go_and_nothing_else(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    (layout.export_in_work("ab12") / "model").mkdir(parents=True)
    layout.export.mkdir()
    clear_unfinished(layout)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]

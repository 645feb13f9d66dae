"""Which checkpoints there are, which is to be trusted, which may go."""

from pathlib import Path

import numpy as np
import pytest

from orchestrator.checkpoint.format.checkpoint_manifest import MANIFEST
from orchestrator.checkpoint.storage import checkpoint_catalog
from orchestrator.checkpoint.storage.checkpoint_catalog import (
    clear_interrupted,
    list_checkpoints,
    newest_valid,
    retain,
    verify_checkpoint,
)
from orchestrator.checkpoint.storage.retention import Rule
from orchestrator.checkpoint.storage.storage import LocalStorage
from orchestrator.domain.errors import CheckpointError
from orchestrator.domain.tick import Tick
from tests.unit.checkpoint.written import flip_byte, write_checkpoint

pytestmark = pytest.mark.unit

WEIGHTS = {"w": np.arange(10, dtype=np.float32)}


def write(parent: Path, *steps: int) -> list[Path]:
    return [write_checkpoint(parent, step, WEIGHTS) for step in steps]


def steps(parent: Path) -> list[int]:
    return [found.step for found in list_checkpoints(parent)]


def test_the_newest_comes_first_whatever_else_lies_there(tmp_path: Path) -> None:
    write(tmp_path, 5, 100, 20, 123456789)
    (tmp_path / "notes").mkdir()
    (tmp_path / ".step-00000200.tmp").mkdir()
    (tmp_path / "step-7").mkdir()
    assert steps(tmp_path) == [123456789, 100, 20, 5]
    assert list_checkpoints(tmp_path / "absent") == []
    assert newest_valid(tmp_path / "absent") is None


def test_broken_ones_are_passed_over_with_the_reason(tmp_path: Path) -> None:
    paths = write(tmp_path, 1, 2, 3, 4, 5)
    flip_byte(paths[1] / "shard-00001.bin", 3)
    (paths[2] / "shard-00000.bin").unlink()
    (paths[3] / MANIFEST).unlink()
    flip_byte(paths[4] / MANIFEST, 40)
    rejected: dict[str, str] = {}
    newest = newest_valid(tmp_path, lambda place, why: rejected.update({Path(place).name: why}))
    assert newest.path == paths[0]
    assert list(rejected) == ["step-00000005", "step-00000004", "step-00000003", "step-00000002"]
    assert "manifest" in rejected["step-00000005"]
    assert "was never finished: it has no manifest" in rejected["step-00000004"]
    assert "shard-00000.bin is missing" in rejected["step-00000003"]
    assert "shard-00001.bin is corrupt in bytes 0 to 20" in rejected["step-00000002"]
    problems = {found.step: found.problem for found in list_checkpoints(tmp_path)}
    assert problems[1] is None
    assert problems[2] is None, "a look at the sizes does not see a flipped byte"
    assert problems[3] == "shard-00000.bin is missing"
    with pytest.raises(CheckpointError, match="does not exist"):
        verify_checkpoint(tmp_path / "step-00000009")


def test_retention_keeps_the_newest(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3, 4)
    assert [Path(place).name for place in retain(tmp_path, Rule(2))] == ["step-00000002", "step-00000001"]
    assert steps(tmp_path) == [4, 3]
    assert retain(tmp_path, Rule(2)) == []
    with pytest.raises(ValueError, match="at least one"):
        Rule(0)


def test_retention_never_removes_the_newest_valid_one(tmp_path: Path) -> None:
    paths = write(tmp_path, 1, 2, 3, 4)
    for path in paths[2:]:
        flip_byte(path / "shard-00000.bin", 0)
    retain(tmp_path, Rule(1))
    assert steps(tmp_path) == [4, 2]
    assert newest_valid(tmp_path).path == paths[1]


def test_retention_leaves_a_directory_newer_than_all_that_are_finished(tmp_path: Path) -> None:
    paths = write(tmp_path, 1, 2, 3, 4)
    (paths[1] / MANIFEST).unlink()
    (paths[3] / MANIFEST).unlink()  # may be arriving, shard by shard
    retain(tmp_path, Rule(1))
    assert steps(tmp_path) == [4, 3]


def test_retention_leaves_what_somebody_is_still_writing(tmp_path: Path) -> None:
    older, slow, _ = write(tmp_path, 1, 2, 3)
    (older / MANIFEST).unlink()
    (slow / MANIFEST).unlink()
    assert retain(tmp_path, Rule(1), trusted=(3,), writing=(2,)) == [str(older)]
    assert steps(tmp_path) == [3, 2]


def test_a_step_just_written_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1, 2)
    monkeypatch.setattr(checkpoint_catalog, "verify_checkpoint", lambda *which: pytest.fail(f"read {which}"))
    retain(tmp_path, Rule(1), trusted=(2,))
    assert steps(tmp_path) == [2]


def test_a_removal_cut_short_leaves_nothing_that_looks_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older, newer = write(tmp_path, 1, 2)

    def interrupted(path: Path, tick: Tick) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.checkpoint.storage.storage.remove_tree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        LocalStorage(tmp_path).remove(newer.name, MANIFEST)
    assert newest_valid(tmp_path).path == older


def test_interrupted_saves_are_cleared_and_what_was_moved_aside_comes_back(tmp_path: Path) -> None:
    one, two, three = write(tmp_path, 1, 2, 3)
    three.rename(tmp_path / ".step-00000003.tmp")
    two.rename(tmp_path / ".step-00000002.old")
    (tmp_path / ".step-00000001.old").mkdir()
    (tmp_path / ".keep").mkdir()
    clear_interrupted(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".keep", "step-00000001", "step-00000002"]
    assert newest_valid(tmp_path).path == two
    verify_checkpoint(one)
    clear_interrupted(tmp_path / "absent")

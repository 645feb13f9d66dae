"""Files that are replaced whole."""

import os
from pathlib import Path

import pytest

from orchestrator.atomic_files import read_json, replace_directory, try_lock, write_bytes, write_json, write_text

pytestmark = pytest.mark.unit


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_json(path, {"name": "Zoë", "nested": {"steps": [1, 2]}})
    assert read_json(path) == {"name": "Zoë", "nested": {"steps": [1, 2]}}
    write_text(path, "größer")
    assert path.read_text(encoding="utf-8") == "größer"
    assert read_json(path) is None
    assert read_json(tmp_path / "none") is None
    write_text(path, "[]")
    assert read_json(path) is None  # no object


@pytest.mark.parametrize("durable", [True, False])
def test_a_reader_of_the_old_file_keeps_it(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "data"
    write_bytes(path, b"old", durable)
    with path.open("rb") as reader:
        write_bytes(path, b"new", durable)
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [file.name for file in tmp_path.iterdir()] == ["data"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data"
    write_bytes(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["data"]


def test_a_directory_takes_the_place_of_another(tmp_path: Path) -> None:
    final = tmp_path / "model"
    for version in ("first", "second"):
        work = tmp_path / "work"
        (work / "sub").mkdir(parents=True)
        (work / "sub" / "file").write_text(version)
        replace_directory(work, final)
        assert (final / "sub" / "file").read_text() == version
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_crash_between_leaves_no_directory_or_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final, rename, calls = tmp_path / "model", Path.rename, []
    final.mkdir()
    (final / "file").write_text("old")
    for version in ("new", "newer"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "file").write_text(version)

    def crashing(self: Path, to: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", crashing)
    with pytest.raises(KeyboardInterrupt):
        replace_directory(tmp_path / "new", final)
    assert not final.exists()
    replace_directory(tmp_path / "newer", final)
    assert (final / "file").read_text() == "newer"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "new"]


def test_a_locked_file_is_locked_for_one_until_it_is_closed(tmp_path: Path) -> None:
    first = try_lock(tmp_path / "lock", 0o600)
    assert first is not None
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600
    assert try_lock(tmp_path / "lock") is None
    os.close(first)
    second = try_lock(tmp_path / "lock")
    assert second is not None
    os.close(second)

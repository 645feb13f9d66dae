"""Content of files: what is read again, and what is not."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.data.sources import contents
from orchestrator.data.sources.contents import grown, look, read_contents, read_weights, write_contents
from orchestrator.data.sources.source_scan import PresentSource, present
from orchestrator.domain.errors import DataError
from orchestrator.domain.fingerprints import SourceContents, compare_sources
from tests.unit.data.corpora import Bench, job

pytestmark = pytest.mark.unit


@pytest.fixture
def found(bench: Bench) -> tuple[PresentSource, ...]:
    for name in ("a", "b", "c"):
        bench.write(f"t/{name}.txt", f"text {name} " * 100)
    return present(job([{"files": ["t/*.txt"]}]).data, bench.root)


def looked(
    found: tuple[PresentSource, ...], known: tuple[SourceContents, ...] = ()
) -> tuple[tuple[SourceContents, ...], list[str]]:
    """What is there, and the names of the files that were read for it."""
    read: list[str] = []
    real = contents.read_content

    def reading(path: Path, name: str, kind: str = "", count: Callable[[int], None] | None = None) -> object:
        read.append(name)
        return real(path, name, kind, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "read_content", reading)
        return look(found, known, lambda _: None), sorted(read)


def test_what_was_not_touched_is_not_read_again(found: tuple[PresentSource, ...]) -> None:
    first, read = looked(found)
    assert read == ["t/a.txt", "t/b.txt", "t/c.txt"]
    again, read = looked(found, first)
    assert (again, read) == (first, [])


def test_a_touched_file_is_read_and_is_the_same(found: tuple[PresentSource, ...]) -> None:
    first, _ = looked(found)
    os.utime(found[0].files[1].path, (1, 1))
    again, read = looked(found, first)
    assert read == ["t/b.txt"]
    assert compare_sources(first, again) == ([], [])


def test_a_file_replaced_by_another_of_the_same_size_and_time_is_noticed(found: tuple[PresentSource, ...]) -> None:
    first, _ = looked(found)
    path = found[0].files[1].path
    status = path.stat()
    time.sleep(0.02)  # the kernel's clock for status changes moves every few milliseconds
    path.write_text(path.read_text().replace("text", "TEXT"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    (changes, _) = compare_sources(first, looked(found, first)[0])
    assert [change.what for change in changes] == ["1 file was edited in t/*.txt: t/b.txt (still 700 bytes)"]


def test_where_that_would_be_too_much_files_of_the_same_size_and_time_are_sampled(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "READ_MAX_BYTES", 100_000)
    for name in ("a", "b", "c"):
        bench.write(f"{name}.txt", f"{name}" * 200_000)
    found = present(job([{"files": ["*.txt"]}]).data, bench.root)
    first, _ = looked(found)
    for file in found[0].files:  # as another mount has them: another inode, the same times
        status = file.path.stat()
        data = file.path.read_bytes()
        file.path.rename(file.path.with_suffix(".old"))
        file.path.write_bytes(data.replace(b"b", b"x"))
        os.utime(file.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    now, read = looked(found, first)
    assert read == ["b.txt"]  # its sample differs
    assert [change.what for change in compare_sources(first, now)[0]] == [
        "1 file was edited in *.txt: b.txt (still 200,000 bytes)"
    ]


def test_text_at_the_end_is_told_from_an_edit(bench: Bench, found: tuple[PresentSource, ...]) -> None:
    first, _ = looked(found)
    with found[0].files[0].path.open("a") as file:
        file.write("more")
    found[0].files[1].path.write_text("other " * 200)
    now, _ = looked(found, first)
    assert grown(found, first, now) == {"t/a.txt"}


def test_the_list_comes_back_as_it_was_written(bench: Bench, found: tuple[PresentSource, ...]) -> None:
    first, _ = looked(found)
    whole = (*first, SourceContents("wikitext:train", (), "abc123"), SourceContents("b", first[0].files[:1]))
    path = bench.root / "contents.jsonl"
    write_contents(path, whole)
    assert read_contents(path) == whole
    path.write_text(path.read_text()[:-20])
    assert read_contents(path) is None
    assert read_contents(bench.root / "nothing") is None


def test_missing_files_and_folders_are_left_out(bench: Bench, found: tuple[PresentSource, ...]) -> None:
    spec = job([{"files": ["t/*.txt", "gone/*.txt", "gone.txt"]}, {"files": ["none/**/*"]}])
    there = present(spec.data, bench.root)
    assert [[file.name for file in source.files] for source in there] == [["t/a.txt", "t/b.txt", "t/c.txt"], []]


def test_a_dataset_in_a_directory_is_its_files(bench: Bench) -> None:
    for name in ("data.arrow", "state.json", ".lock", "cache-1a2b.arrow"):
        bench.write(f"saved/{name}", name)
    (source,) = present(job([{"hub": "./saved"}]).data, bench.root)
    assert [file.name for file in source.files] == ["data.arrow", "state.json"]


def test_reading_can_be_stopped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "TICK_S", 0.001)
    with bench.write("big.txt", "").open("wb") as file:
        file.truncate(4 << 30)  # a hole: no disk space, seconds to read

    def stop(done_bytes: int) -> None:
        raise KeyboardInterrupt

    began_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        look(present(job([{"files": ["big.txt"]}]).data, bench.root), (), stop)
    assert time.monotonic() - began_s < 2


def test_a_file_that_cannot_be_read_is_named(bench: Bench, found: tuple[PresentSource, ...]) -> None:
    found[0].files[2].path.unlink()
    with pytest.raises(DataError, match=r"t/c\.txt cannot be read"):
        looked(found)


def test_large_weights_are_sampled_from_the_first_byte_to_the_last(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "WHOLE_MAX_BYTES", 1 << 20)
    monkeypatch.setattr(contents, "CHUNK_BYTES", 1 << 10)
    path = bench.write("w.safetensors", bytes(2 << 20))
    before = read_weights(path, "w")
    for at in (0, (2 << 20) - 1):
        data = bytearray(2 << 20)
        data[at] = 1
        path.write_bytes(data)
        assert read_weights(path, "w").digest != before.digest
    path.write_bytes(bytes(2 << 20))
    assert read_weights(path, "w").digest == before.digest

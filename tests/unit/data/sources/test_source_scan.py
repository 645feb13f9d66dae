import os
from pathlib import Path

import pytest

from orchestrator.data.sources import globs
from orchestrator.data.sources.source_scan import scan
from orchestrator.domain.errors import DataError
from tests.unit.data.corpora import Bench, job

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("/a/*.txt", "/a/b.txt", True),
        ("/a/*.txt", "/a/b/c.txt", False),
        ("/a/**/*.txt", "/a/c.txt", True),
        ("/a/**/*.txt", "/a/b/b/c.txt", True),
        ("/a/**", "/a/b/c", True),
        ("**/test/**", "/usr/lib/test/x.py", True),
        ("**/test/**", "/usr/lib/tests/x.py", False),
        ("/a/[xy]?.txt", "/a/x1.txt", True),
        ("/a/[!xy]?.txt", "/a/x1.txt", False),
        ("/a/b+c(1).txt", "/a/b+c(1).txt", True),
        ("/a/[b.txt", "/a/[b.txt", True),
    ],
)
def test_patterns(pattern: str, path: str, expected: bool) -> None:
    assert bool(globs.translate(pattern).fullmatch(path)) is expected


def names(bench: Bench, *files: str, exclude: tuple[str, ...] = ()) -> list[str]:
    spec = job([{"files": list(files), "exclude": list(exclude)}])
    return [file.name for file in scan(spec.data, bench.root)[0].files]


def test_files_come_in_order_of_their_names_each_once(bench: Bench) -> None:
    for name in ("b.txt", "a.txt", "d/c.txt", "d/.hidden.txt", "d/skip/e.txt", "x.md"):
        bench.write(name, "text")
    assert names(bench, "**/*.txt", "a.txt") == ["a.txt", "b.txt", "d/c.txt", "d/skip/e.txt"]
    assert names(bench, "**/*.txt", exclude=("**/skip/**",)) == ["a.txt", "b.txt", "d/c.txt"]
    assert names(bench, "*.txt", exclude=("a.*",)) == ["b.txt"]
    assert names(bench, f"{bench.root}/a.txt") == [f"{bench.root}/a.txt"]


def test_formats_go_by_the_ending(bench: Bench) -> None:
    for name in ("a.txt", "b.jsonl", "c.csv", "d.tsv", "e.parquet", "f.jsonl.gz", "g.py", "h.v1.txt.gz"):
        bench.write(name, "")
    found = scan(job([{"files": ["*"]}]).data, bench.root)[0].files
    assert [(file.format, file.compressed) for file in found] == [
        ("text", False),
        ("jsonl", False),
        ("csv", False),
        ("tsv", False),
        ("parquet", False),
        ("jsonl", True),
        ("text", False),
        ("text", True),
    ]


def message(bench: Bench, *files: str, exclude: tuple[str, ...] = ()) -> str:
    with pytest.raises(DataError) as caught:
        names(bench, *files, exclude=exclude)
    return f"{caught.value.message} | {caught.value.hint}"


def test_what_cannot_be_found_is_said(bench: Bench) -> None:
    bench.write("corpus.txt", "text")
    (bench.root / "empty").mkdir()
    assert "'empty/*.txt' matches no file in" in message(bench, "empty/*.txt")
    assert "there is no directory" in message(bench, "nowhere/*.txt")
    assert "did you mean corpus.txt?" in message(bench, "corpsu.txt")
    assert "`exclude` leaves none" in message(bench, "*.txt", exclude=("*.txt",))
    assert "is a directory" in message(bench, "empty")


@pytest.mark.needs("not_root")
def test_a_file_without_permission_is_named(bench: Bench) -> None:
    bench.write("a.txt", "text").chmod(0)
    assert "a.txt cannot be read: Permission denied" in message(bench, "a.txt")


def test_identity_follows_content_and_time(bench: Bench) -> None:
    path = bench.write("a.txt", "one text")

    def identity() -> str:
        return scan(job([{"files": ["a.txt"]}]).data, bench.root)[0].files[0].identity

    first = identity()
    assert identity() == first
    status = path.stat()
    path.write_text("two text")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert identity() != first
    path.write_text("one text")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert identity() == first
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert identity() != first


def test_a_link_loop_ends(bench: Bench) -> None:
    bench.write("d/a.txt", "text")
    (bench.root / "d" / "loop").symlink_to(Path(bench.root), target_is_directory=True)
    assert names(bench, "**/*.txt") == ["d/a.txt"]

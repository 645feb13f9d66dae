import gzip
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.sources import readers
from orchestrator.data.sources.readers import Bad, FileReader, Item, TextPiece, pieces_of
from orchestrator.data.sources.source_scan import scan
from orchestrator.domain.errors import DataError
from tests.unit.data.corpora import Bench, job

pytestmark = pytest.mark.unit


def read(bench: Bench, name: str, content: str | bytes, **fields: Any) -> list[Item]:
    bench.write(name, content)
    source = scan(job([{"files": [name], **fields}]).data, bench.root)[0]
    return [item for file in source.files for item in FileReader(file, source.spec.field)]


def texts(items: list[Item]) -> list[str]:
    assert all(isinstance(item, TextPiece) and item.last for item in items), items
    return [item.text for item in items if isinstance(item, TextPiece)]


def test_text_is_one_document_kept_as_it_is(bench: Bench) -> None:
    assert texts(read(bench, "a.txt", "\ufeffone\r\ntwo\n")) == ["one\r\ntwo\n"]
    assert texts(read(bench, "b.txt", "")) == [""]
    assert read(bench, "c.txt", b"caf\xe9") == [Bad("not UTF-8", "c.txt")]


def test_lines(bench: Bench) -> None:
    items = read(bench, "a.txt", b"\xef\xbb\xbfone\r\n\ntwo\n\xff\xfe\nlast", format="lines")
    assert items == [
        TextPiece("one", True),
        TextPiece("", True),
        TextPiece("two", True),
        Bad("not UTF-8", "a.txt:4"),
        TextPiece("last", True),
    ]


def test_jsonl_tells_every_fault_apart(bench: Bench) -> None:
    lines = [
        b'{"text": "good \\u00e9"}',
        b'{"text": "broken',
        b'{"other": 1}',
        b'{"text": 7}',
        b'{"text": null}',
        b"[1]",
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b"",
        b"[" * 100_000,
        b'{"text": "end"}',
    ]
    items = read(bench, "a.jsonl", b"\n".join(lines))
    assert items[0] == TextPiece("good \u00e9", True)
    assert [item.reason for item in items if isinstance(item, Bad)] == [
        "broken JSON",
        "no field 'text'",
        "field 'text' is int, not a string",
        "field 'text' is null, not a string",
        "a JSON list, not an object",
        "not UTF-8",
        "a lone surrogate",
        "JSON nested too deep",
    ]
    assert items[2] == Bad("no field 'text'", "a.jsonl:3")
    assert items[-1] == TextPiece("end", True)


def test_csv_and_tsv(bench: Bench) -> None:
    table = 'id,text\n1,"two\nlines, ""quoted"""\n2\n3,plain\n\n4,\n'
    items = read(bench, "a.csv", table)
    assert items == [
        TextPiece('two\nlines, "quoted"', True),
        Bad("1 columns, too few", "a.csv:4"),
        TextPiece("plain", True),
        TextPiece("", True),
    ]
    assert texts(read(bench, "b.tsv", 'text\tlabel\nsay "hi\t1\n', field="text")) == ['say "hi']
    assert texts(read(bench, "c.tsv", "no header\t1\nat all\t0\n", field="column:0")) == ["no header", "at all"]
    assert read(bench, "d.csv", b"text\n\xff\nok\n")[0] == Bad("not UTF-8", "d.csv:2")
    assert texts(read(bench, "e.csv", "")) == []
    assert texts(read(bench, "f.csv", "text\n" + "x" * 300_000 + "\n")) == ["x" * 300_000]


def test_parquet(bench: Bench) -> None:
    path = bench.root / "a.parquet"
    pq.write_table(pa.table({"body": ["one", None, "three"], "n": [1, 2, 3]}), path)
    content = path.read_bytes()
    assert read(bench, "a.parquet", content, field="body") == [
        TextPiece("one", True),
        Bad("null", "a.parquet:row 2"),
        TextPiece("three", True),
    ]
    with pytest.raises(DataError, match="no column 'text'; its columns are: body, n"):
        read(bench, "a.parquet", content)
    with pytest.raises(DataError, match="holds int64, not text"):
        read(bench, "a.parquet", content, field="n")
    with pytest.raises(DataError, match=r"a\.parquet is not a complete Parquet file"):
        read(bench, "a.parquet", content[:-20], field="body")


def test_a_missing_column_suggests_one(bench: Bench) -> None:
    with pytest.raises(DataError) as caught:
        read(bench, "a.csv", "id,texts\n1,a\n")
    assert caught.value.message == "a.csv has no column 'text'; its columns are: id, texts"
    assert caught.value.hint == "did you mean `field: texts`?"


def test_gzip(bench: Bench) -> None:
    content = "".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(50)).encode()
    assert len(texts(read(bench, "a.jsonl.gz", gzip.compress(content)))) == 50
    assert texts(read(bench, "b.txt.gz", gzip.compress(b"one document"))) == ["one document"]
    for name, damaged in (("c.jsonl.gz", content), ("d.jsonl.gz", gzip.compress(content)[:-30])):
        with pytest.raises(DataError, match=f"{name} is not a complete gzip file"):
            read(bench, name, damaged)


def reader(bench: Bench) -> FileReader:
    source = scan(job([{"files": ["a.txt"], "format": "lines"}]).data, bench.root)[0]
    return FileReader(source.files[0], "text")


def test_a_file_that_vanishes_is_named(bench: Bench) -> None:
    path = bench.write("a.txt", "one\ntwo\n")
    vanished = reader(bench)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.txt vanished"):
        list(vanished)


def test_a_file_that_changes_before_or_while_it_is_read_is_named(bench: Bench) -> None:
    path = bench.write("a.txt", "one\ntwo\n")
    changed = reader(bench)
    path.write_text("one\ntwo\nthree\n")
    with pytest.raises(DataError, match=r"a\.txt changed"):
        list(changed)
    growing = iter(reader(bench))
    next(growing)
    with path.open("a") as file:
        file.write("four\n")
    with pytest.raises(DataError, match=r"a\.txt changed"):
        list(growing)


def test_a_file_replaced_while_it_is_read_is_named(bench: Bench) -> None:
    path = bench.write("a.txt", "one\ntwo\n")
    replaced = iter(reader(bench))
    next(replaced)
    other = bench.write("b.txt", "one\nTWO\nmore\n")
    other.replace(path)
    with pytest.raises(DataError, match=r"a\.txt changed"):
        list(replaced)


def test_a_large_text_file_comes_in_pieces(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "PIECE_CHARS", 1000)
    monkeypatch.setattr(readers, "CHUNK_BYTES", 700)
    text = "".join(f"line {i} \u00e9\u4e2d\n" for i in range(2000))
    items = read(bench, "a.txt", text)
    assert "".join(item.text for item in items if isinstance(item, TextPiece)) == text
    assert [item.last for item in items if isinstance(item, TextPiece)] == [False] * (len(items) - 1) + [True]
    assert all(
        isinstance(item, TextPiece) and len(item.text) <= 1000 and item.text.startswith("line") for item in items
    )
    assert read(bench, "b.txt", text.encode() + b"\xff") == [Bad("not UTF-8", "b.txt")]


@given(text=st.text(alphabet="ab \n\u00e9", min_size=30, max_size=400), chunk=st.integers(1, 50))
def test_pieces_do_not_depend_on_how_the_text_arrived(text: str, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "PIECE_CHARS", 20)
        whole = list(pieces_of(iter([text])))
        chunked = list(pieces_of(text[i : i + chunk] for i in range(0, len(text), chunk)))
    assert chunked == whole
    assert "".join(piece.text for piece in whole) == text
    assert all(0 < len(piece.text) <= 20 for piece in whole)


def test_a_line_longer_than_memory_allows_is_bad_and_passed_over(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_RECORD_BYTES", 1 << 20)
    monkeypatch.setattr(readers, "CHUNK_BYTES", 1000)
    items = read(bench, "a.txt", "short\n" + "x" * (3 << 20) + "\nafter\n", format="lines")
    assert items == [TextPiece("short", True), Bad("a line longer than 1 MiB", "a.txt:2"), TextPiece("after", True)]

"""Files to documents, one at a time: only a bounded part of a file is in memory.

A document longer than `PIECE_CHARS` comes in pieces, each ending (where it can) after a newline that is followed by
text, else after any newline, else after white space. Each piece is tokenised on its own; the end-of-text token follows
the last one. The cuts depend only on the text.
"""

import codecs
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple, cast

from orchestrator.data.sources.source_scan import SourceFile
from orchestrator.domain.errors import DataError

PIECE_CHARS = 1 << 20
CHUNK_BYTES = 1 << 20
MAX_RECORD_BYTES = 256 << 20
"""A longer line is a bad record: a line has to fit in memory."""

NOT_UTF8 = "not UTF-8"
_SPACE = re.compile(r"\s\S", re.DOTALL)


class TextPiece(NamedTuple):
    """A document, or a part of one."""

    text: str
    last: bool
    """The document ends here."""


class Bad(NamedTuple):
    """A record that cannot be read. `place` is `file:line`."""

    reason: str
    place: str


Item = TextPiece | Bad


class FileReader:
    """Reads one file. `position_bytes` is how far it got, for progress."""

    def __init__(self, file: SourceFile, field: str) -> None:
        self.file = file
        self.field = field
        self._raw: BinaryIO | None = None

    @property
    def position_bytes(self) -> int:
        """Bytes of the file read so far."""
        return self._raw.tell() if self._raw is not None and not self._raw.closed else 0

    def __iter__(self) -> Iterator[Item]:
        """The documents. Raises DataError if the file vanished, changed since the scan, or is damaged as a whole."""
        name = self.file.name
        try:
            with self.file.path.open("rb") as raw:
                self._raw = raw
                self._check_unchanged(raw)
                yield from self._documents(raw)
                self._check_unchanged(raw)
        except FileNotFoundError:
            raise DataError(
                f"{name} vanished after the corpus was scanned ({self.file.path})",
                hint="restore it, or run again without it",
            ) from None
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(
                f"{name} is not a complete gzip file: {error}",
                hint="test it with `gzip -t`; a text file must not end in .gz",
            ) from error
        except OSError as error:
            raise DataError(f"{name} cannot be read: {error.strerror or error} ({self.file.path})") from error

    def _check_unchanged(self, raw: BinaryIO) -> None:
        for status in (os.fstat(raw.fileno()), self.file.path.stat()):
            if (status.st_size, status.st_mtime_ns) != (self.file.size_bytes, self.file.mtime_ns):
                raise DataError(
                    f"{self.file.name} changed while it was being read ({self.file.path})",
                    hint="wait for the program that writes it, then run again",
                )

    def _documents(self, raw: BinaryIO) -> Iterator[Item]:
        if self.file.format == "parquet":
            from orchestrator.data.sources.tables import read_parquet  # pyarrow takes 0.2 s to import

            yield from read_parquet(raw, self.file.name, self.field)
            return
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if self.file.compressed else raw
        if self.file.format == "text":
            yield from self._whole_text(stream)
        elif self.file.format in ("csv", "tsv"):
            from orchestrator.data.sources.tables import read_table

            yield from read_table(stream, self.file.name, self.field, tab_separated=self.file.format == "tsv")
        else:
            parse = _json_field(self.field) if self.file.format == "jsonl" else _plain_line
            yield from _read_lines(stream, self.file.name, parse)

    def _whole_text(self, stream: BinaryIO) -> Iterator[Item]:
        start = stream.read(CHUNK_BYTES)
        if len(start) < CHUNK_BYTES:
            yield from _decoded(start.removeprefix(codecs.BOM_UTF8), self.file.name)
            return
        # A large file is decoded twice: whether it is a document at all has to be known before its first piece.
        stream.seek(0)
        if not _is_utf8(stream):
            yield Bad(NOT_UTF8, self.file.name)
            return
        stream.seek(0)
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            yield from pieces_of(iter(lambda: text.read(PIECE_CHARS), ""))
        finally:
            text.detach()  # else the file is closed with the wrapper, before it is checked for changes


def pieces(text: str) -> Iterator[TextPiece]:
    """A document in memory, whole or in pieces."""
    if len(text) <= PIECE_CHARS:
        yield TextPiece(text, True)
    else:
        yield from pieces_of(text[i : i + PIECE_CHARS] for i in range(0, len(text), PIECE_CHARS))


def pieces_of(chunks: Iterator[str]) -> Iterator[TextPiece]:
    """A document that arrives in chunks, cut by the rule above. How it was chunked makes no difference."""
    held = ""
    for chunk in chunks:
        held += chunk
        while len(held) > PIECE_CHARS:
            cut = cut_point(held, PIECE_CHARS)
            yield TextPiece(held[:cut], False)
            held = held[cut:]
    yield TextPiece(held, True)


def cut_point(text: str, limit: int) -> int:
    """The cut of a `text` longer than `limit`: an index in (0, limit]. See the rule above."""
    newline = text.rfind("\n", 0, limit)
    while newline > limit // 2:
        if not text[newline + 1].isspace():
            return newline + 1
        newline = text.rfind("\n", 0, newline)
    newline = text.rfind("\n", 0, limit) + 1
    if newline > 0:
        return newline
    spaces = [match.start() + 1 for match in _SPACE.finditer(text, max(0, limit - 4096), limit + 1)]
    return spaces[-1] if spaces else limit


def _is_utf8(stream: BinaryIO) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while chunk := stream.read(CHUNK_BYTES):
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _decoded(data: bytes, place: str) -> Iterator[Item]:
    try:
        yield TextPiece(data.decode("utf-8"), True)
    except UnicodeDecodeError:
        yield Bad(NOT_UTF8, place)


def _plain_line(line: bytes) -> str:
    return line.decode("utf-8").rstrip("\r\n")


class NoText(ValueError):
    """A record without usable text. The message is the reason."""


def _json_field(field: str) -> Callable[[bytes], str]:
    def parse(line: bytes) -> str:
        try:
            record = json.loads(line.decode("utf-8"))
        except json.JSONDecodeError:
            raise NoText("broken JSON") from None
        except RecursionError:
            raise NoText("JSON nested too deep") from None
        return text_of(record, field)

    return parse


def text_of(record: object, field: str) -> str:
    """The text of a parsed record. Raises NoText."""
    if not isinstance(record, dict):
        raise NoText(f"a JSON {type(record).__name__}, not an object")
    if field not in record:
        raise NoText(f"no field {field!r}")
    value = record[field]
    if not isinstance(value, str):
        raise NoText(f"field {field!r} is {'null' if value is None else type(value).__name__}, not a string")
    return value


def _read_lines(stream: BinaryIO, name: str, parse: Callable[[bytes], str]) -> Iterator[Item]:
    number = 0
    while line := stream.readline(MAX_RECORD_BYTES):
        number += 1
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) >= MAX_RECORD_BYTES and not line.endswith(b"\n"):
            while (rest := stream.readline(CHUNK_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield Bad(f"a line longer than {MAX_RECORD_BYTES >> 20} MiB", f"{name}:{number}")
            continue
        try:
            text = parse(line) if line.strip() else ""
        except UnicodeDecodeError:
            yield Bad(NOT_UTF8, f"{name}:{number}")
        except NoText as error:
            yield Bad(str(error), f"{name}:{number}")
        else:
            # A lone surrogate (JSON's \ud800) is no text: it has no UTF-8.
            if text.isascii() or _encodable(text):
                yield from pieces(text)
            else:
                yield Bad("a lone surrogate", f"{name}:{number}")


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True

"""CSV, TSV and Parquet to documents."""

import csv
import difflib
import io
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

from orchestrator.data.sources.readers import NOT_UTF8, Bad, Item, pieces
from orchestrator.domain.errors import DataError

if TYPE_CHECKING:
    import _csv

FIELD_CHARS_MAX = 16 << 20
"""A longer field is a bad record: most likely a quote that is never closed."""
_COLUMN = re.compile(r"column:(\d+)")
PARQUET_BATCH_ROWS = 512


def read_table(stream: BinaryIO, name: str, field: str, tab_separated: bool) -> Iterator[Item]:
    """CSV (RFC 4180) or TSV (no quoting). The first row names the columns, unless `field` is `column:N`: then there
    is no such row, and the text is in column N, counted from 0. Raises DataError if there is no such column."""
    csv.field_size_limit(FIELD_CHARS_MAX)  # the module's own limit of 128 KiB is less than a long document
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    try:
        rows = (
            csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE) if tab_separated else csv.reader(text, strict=True)
        )
        header = _next_row(rows, name)
        if isinstance(header, Bad):
            raise DataError(f"{name}: the first row is {header.reason}")
        if header is None:
            return
        numbered = _COLUMN.fullmatch(field)
        if numbered:
            column = int(numbered[1])
            yield from _cell(header, column, f"{name}:1")
        elif field in header:
            column = header.index(field)
        else:
            raise no_column(name, field, header)
        while (row := _next_row(rows, name)) is not None:
            if isinstance(row, Bad):
                yield row
            elif row:
                yield from _cell(row, column, f"{name}:{rows.line_num}")
    finally:
        text.detach()  # else the file is closed with the wrapper, before it is checked for changes


def _next_row(rows: "_csv.Reader", name: str) -> list[str] | Bad | None:
    try:
        return next(rows, None)
    except csv.Error as error:
        return Bad(f"broken CSV: {error}", f"{name}:{rows.line_num}")


def _cell(row: Sequence[str], column: int, place: str) -> Iterator[Item]:
    if column >= len(row):
        yield Bad(f"{len(row)} columns, too few", place)
        return
    value = row[column]
    if not value.isascii() and any("\udc80" <= char <= "\udcff" for char in value):
        yield Bad(NOT_UTF8, place)
    else:
        yield from pieces(value)


def read_parquet(stream: BinaryIO, name: str, field: str) -> Iterator[Item]:
    """One column of a Parquet file, read a batch of rows at a time. Raises DataError if there is no such column,
    it is not text, or the file is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(stream, pre_buffer=False)
        schema = file.schema_arrow
        if field not in schema.names:
            raise no_column(name, field, schema.names)
        kind = schema.field(field).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)):
            raise DataError(f"{name}: the column {field!r} holds {kind}, not text")
        row = 0
        for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS, columns=[field]):
            yield from _parquet_rows(batch.column(0), f"{name}:row ", row)
            row += len(batch)
    except pa.ArrowException as error:
        raise DataError(f"{name} is not a complete Parquet file: {str(error).splitlines()[0]}") from error


def _parquet_rows(column: Sequence[object], place: str, first: int) -> Iterator[Item]:
    for number, scalar in enumerate(column, start=first + 1):
        try:
            value = scalar.as_py()  # type: ignore[attr-defined]
        except UnicodeDecodeError:
            yield Bad(NOT_UTF8, f"{place}{number}")
            continue
        if isinstance(value, str):
            yield from pieces(value)
        else:
            yield Bad("null" if value is None else f"{type(value).__name__}, not text", f"{place}{number}")


def no_column(name: str, field: str, columns: Sequence[str]) -> DataError:
    """The error of a table that lacks the column."""
    near = difflib.get_close_matches(field, columns, n=1)
    shown = ", ".join(columns[:12]) + (", ..." if len(columns) > 12 else "")
    hint = f"did you mean `field: {near[0]}`?" if near else "set `field` to the column that holds the text"
    return DataError(f"{name} has no column {field!r}; its columns are: {shown}", hint=hint)

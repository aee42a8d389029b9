"""Rows of a table that holds captions: CSV, TSV, JSON lines or Parquet, one row in memory at a time, each findable again.

A CSV from an unknown hand has quotes that never close. The csv module would swallow the rest of the file as one field; here such a
row is set aside and reading goes on with the next line.
"""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from blip_core.config.intake import CsvConfig
from blip_core.files.rejected import Rejected
from blip_core.intake.formats.cells import Values, values_of
from blip_core.intake.formats.dialect import PLAIN, Dialect, find, named_delimiter

_ENDS = {".csv": "csv", ".tsv": "csv", ".token": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_TEXT_TABLE = re.compile(r"(?:.*[._-])?(?:captions|token|results)(?:[._-].*)?\.txt", re.IGNORECASE)  # Flickr's; other .txt hold texts
PARQUET_FAULTS = (pa.ArrowException, OSError, UnicodeDecodeError)  # of a file that is none or damaged; the last by names of columns
_BOM = b"\xef\xbb\xbf"
_MOST_LINE = 96 << 20  # bytes: a row may hold a picture in base64
_MOST_LINES = 100  # of one row: a caption in quotes may hold line ends
_HEAD_LINES = 200  # of a CSV, to learn how it is written
_BATCH = 128  # rows of a Parquet file in memory
_HEAD_ROWS = 20  # of JSON lines, to learn the names of the columns


@dataclass(frozen=True)
class Table:
    """A file of rows. `start`: the byte at which its rows begin; `first_line`: that row's line, from 1."""

    path: Path
    kind: str  # csv | jsonl | parquet
    names: tuple[str, ...]
    dialect: Dialect = PLAIN  # of a CSV
    start: int = 0
    first_line: int = 1
    types: dict[str, pa.DataType] = field(default_factory=dict)  # of a Parquet file's columns


@dataclass(frozen=True)
class Row:
    """`at`: a byte in the file, or a number in a Parquet file: where to `fetch` it. `line`: for a person."""

    at: int
    line: int
    values: Values | Rejected


def kind_of(path: Path) -> str | None:
    """csv | jsonl | parquet, by the file's name, and of a .json by its first lines; None for what is no table."""
    if path.suffix.lower() == ".json":
        return "jsonl" if is_json_lines(path) else None
    return "csv" if _TEXT_TABLE.fullmatch(path.name) else _ENDS.get(path.suffix.lower())


def is_json_lines(path: Path) -> bool:
    """Whether the first two lines are an object each."""
    with path.open("rb") as file:
        rows = [row for row in islice(file, _HEAD_ROWS) if row.strip(_BOM + b" \r\n\t")][:2]
    return len(rows) == 2 and all(isinstance(_json_object(row.removeprefix(_BOM)), dict) for row in rows)


def open_table(path: Path, declared: CsvConfig | None = None) -> Table:
    """The table with the names of its columns; a CSV's first line is taken for names. `declared`: how it is written. Rejected when it
    can't be read."""
    kind = kind_of(path)
    if kind == "parquet":
        return _open_parquet(path)
    with path.open("rb") as file:
        head = file.read(len(_BOM))
        if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise Rejected("bad_table", "UTF-16 text; save it as UTF-8")
        start = len(_BOM) if head == _BOM else 0
        file.seek(start)
        return _open_jsonl(path, start) if kind == "jsonl" else _open_csv(path, file, start, declared)


def first_row(table: Table) -> Values:
    """Of a table that may have no names: the cells of a CSV's first line, or the first row of another, by the number of the column."""
    if table.kind == "csv":
        return {str(i): cell for i, cell in enumerate(table.names)}
    values = next((row.values for row in scan(table) if isinstance(row.values, dict)), {}) if table.kind == "jsonl" else {}
    return values if all(name.isdigit() for name in values) else {}


def without_header(table: Table) -> Table:
    """The same CSV with its first line taken for a row; its columns are called by their number."""
    if table.kind != "csv":
        return table
    with table.path.open("rb") as file:
        start = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
    return Table(table.path, table.kind, tuple(map(str, range(len(table.names)))), table.dialect, start, 1)


def scan(table: Table, columns: list[str] | None = None) -> Iterator[Row]:
    """Every row in order, those of a part of a Parquet file that can't be read as rejected ones."""
    if table.kind == "parquet":
        for group in range(_parquet(table.path).num_row_groups):
            yield from _group(table, group, columns)
        return
    with table.path.open("rb") as file:
        file.seek(table.start)
        line = table.first_line
        while (row := _text_row(file, line, table)) is not None:
            found, lines = row
            if found is not None:
                yield found
            line += lines


def fetch(table: Table, places: list[list[int]], columns: list[str] | None = None) -> Iterator[Row]:
    """The rows at these (at, line), in this order."""
    if table.kind == "parquet":
        yield from _fetch_parquet(table, [at for at, _ in places], columns)
        return
    with table.path.open("rb") as file:
        for at, line in places:
            file.seek(at)
            row = _text_row(file, line, table)
            yield row[0] if row and row[0] else Row(at, line, Rejected("bad_table", "the file became shorter while it was read"))


# text


def _text_row(file: BinaryIO, line: int, table: Table) -> tuple[Row | None, int] | None:
    """The row at the file's position and how many lines it took; no row for an empty line, None at the end."""
    at = file.tell()
    first = file.readline(_MOST_LINE)
    if not first:
        return None
    if not first.endswith(b"\n") and len(first) == _MOST_LINE:
        while (rest := file.readline(_MOST_LINE)) and not rest.endswith(b"\n"):
            pass
        return Row(at, line, Rejected("bad_row", f"a line of more than {_MOST_LINE} bytes")), 1
    if not first.strip():
        return None, 1
    if table.kind == "jsonl":
        return Row(at, line, _json_object(first)), 1
    after = file.tell()
    cells, lines = _cells(first, file, table.dialect, len(table.names))
    if isinstance(cells, Rejected):
        file.seek(after)
        return Row(at, line, cells), 1
    if len(cells) != len(table.names):
        detail = f"{len(cells)} fields where {len(table.names)} are expected ({', '.join(table.names)}); is a delimiter unquoted?"
        return Row(at, line, Rejected("bad_row", detail)), lines
    return Row(at, line, dict(zip(table.names, cells, strict=True))), lines


def _json_object(line: bytes) -> Values | Rejected:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as e:
        return Rejected("bad_json", str(e))
    if isinstance(value, list) and value:
        return {str(i): cell for i, cell in enumerate(value)}
    return value if isinstance(value, dict) else Rejected("bad_row", f"expected a JSON object or list, got {type(value).__name__}")


def _cells(first: bytes, file: BinaryIO, dialect: Dialect, num_cells: int | None = None) -> tuple[list[str] | Rejected, int]:
    """The fields of one row and the lines that it took. Bytes that are no UTF-8 become lone surrogates, which no text may hold."""
    if dialect.delimiter == "\t":  # half of the writers of TSV quote and half don't; none puts a line end into a field
        return [_unquoted(cell) for cell in _decoded(first).rstrip("\r\n").split("\t")], 1
    lines = _Lines(first, file)
    try:
        cells = next(dialect.cells(lines), [])
    except csv.Error as e:
        return Rejected("bad_row", _misquoted(_decoded(first), dialect, str(e))), 1
    if lines.ran_out:
        return Rejected("bad_row", f"a quote that is not closed within {_MOST_LINES} lines"), 1
    if lines.used > 1 and num_cells not in (None, len(cells)):
        return Rejected("bad_row", f"a quote that is not closed, or not as it should: it would swallow {lines.used - 1} more lines"), 1
    return [cell.strip() for cell in cells], lines.used


def _misquoted(line: str, dialect: Dialect, why: str) -> str:
    """Why a row is no row of its file, and what to do where another dialect takes it."""
    if "\r" in line.rstrip("\r\n"):
        return "a carriage return within a line, as old Macs end one; save the file with line feeds"
    try:
        next(dialect.other.cells([line]))
    except (csv.Error, StopIteration):
        return f"no CSV: {why}; a quote within quotes is doubled, or has a sign before it (csv.escape)"
    own, others = ("doubled", "behind a backslash") if dialect.escape else ("behind a backslash", "doubled")
    return f"its quotes within quotes are {own}, those of the other rows {others}; mend it, or name the way in web_fields.csv.escape"


def _decoded(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape")


def _unquoted(cell: str) -> str:
    quoted = len(cell) >= 2 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")
    return (cell[1:-1].replace('""', '"') if quoted else cell).strip()


class _Lines:
    """Lines for csv.reader, which asks for another only while a quote is open."""

    def __init__(self, first: bytes, file: BinaryIO):
        self.first, self.file, self.ran_out = first, file, False
        self.read: list[str] = []

    @property
    def used(self) -> int:
        return len(self.read)

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        data = self.file.readline(_MOST_LINE) if self.used else self.first
        if not data or self.used == _MOST_LINES:
            self.ran_out = True
            raise StopIteration
        self.read.append(_decoded(data))
        return self.read[-1]


def _open_csv(path: Path, file: BinaryIO, start: int, declared: CsvConfig | None) -> Table:
    file.seek(start)
    line, named = 1, None
    while first := file.readline(_MOST_LINE):
        found = named_delimiter(_decoded(first)) if line == 1 else None
        if first.strip() and found is None:
            break
        named, line = named or found, line + 1
    at = file.tell()
    head = [_decoded(first), *(_decoded(row) for row in islice(iter(file.readline, b""), _HEAD_LINES - 1))] if first else []
    dialect = find(head, declared=declared, delimiter="\t" if path.suffix.lower() == ".tsv" else named)
    file.seek(at)
    cells, lines = _cells(first, file, dialect) if first else ([], 0)
    if isinstance(cells, Rejected):
        raise cells
    return Table(path, "csv", _distinct(cells), dialect, file.tell(), line + lines)


def _distinct(names: list[str]) -> tuple[str, ...]:
    """Column names, of which a careless export may repeat some."""
    return tuple(name if name not in names[:i] else f"{name}#{i}" for i, name in enumerate(names))


def _open_jsonl(path: Path, start: int) -> Table:
    names: dict[str, None] = {}
    for _, row in zip(range(_HEAD_ROWS), scan(Table(path, "jsonl", (), start=start)), strict=False):
        if isinstance(row.values, dict):
            names |= dict.fromkeys(row.values)
    return Table(path, "jsonl", tuple(names), start=start)


# Parquet


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except PARQUET_FAULTS as e:
        raise Rejected("bad_table", f"not a readable Parquet file: {e}") from None


def _open_parquet(path: Path) -> Table:
    file = _parquet(path)
    try:
        schema = file.schema_arrow
        return Table(path, "parquet", tuple(schema.names), types={f.name: f.type for f in schema})
    except PARQUET_FAULTS as e:
        raise Rejected("bad_table", f"a Parquet file whose columns can't be read: {e}") from None


def _group(table: Table, group: int, columns: list[str] | None) -> Iterator[Row]:
    file = _parquet(table.path)
    at = sum(file.metadata.row_group(g).num_rows for g in range(group))
    end = at + file.metadata.row_group(group).num_rows
    try:
        for batch in file.iter_batches(batch_size=_BATCH, row_groups=[group], columns=columns):
            for values in values_of(batch):
                yield Row(at, at, values)
                at += 1
    except PARQUET_FAULTS as e:
        fault = Rejected("bad_table", f"row group {group} can't be read from row {at} on: {e}")
        yield from (Row(row, row, fault) for row in range(at, end))


def _fetch_parquet(table: Table, places: list[int], columns: list[str] | None) -> Iterator[Row]:
    file, end, wanted = _parquet(table.path), 0, set(places)
    found: dict[int, Row] = {}
    for group in range(file.num_row_groups):
        start, end = end, end + file.metadata.row_group(group).num_rows
        if any(start <= at < end for at in wanted):
            found |= {row.at: row for row in _group(table, group, columns) if row.at in wanted}
    for at in places:
        yield found.get(at) or Row(at, at, Rejected("bad_table", "its part of the file can't be read"))

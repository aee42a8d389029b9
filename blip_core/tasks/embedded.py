"""Pictures whose bytes lie in a Parquet table, as the library datasets writes them: `image: {bytes, path}`, or a column of bytes.

Rows are read without the bytes; those of a picture are read when it is decoded, with the others of its row group, for the next picture
is mostly one of these.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from blip_core.files.rejected import Rejected
from blip_core.intake.formats.parquet import holds_image
from blip_core.intake.formats.rows import PARQUET_FAULTS, Row, Table, scan

_GROUPS = 2  # row groups whose bytes stay in memory; a row may have two pictures, in a column each
_BATCH = 32  # pictures in memory at a time while it is asked which rows have bytes


@dataclass(frozen=True)
class Embedded:
    """A picture in a table. `row`: from 0, in the file."""

    file: Path
    row: int
    column: str

    def __str__(self) -> str:
        return f"{self.file}#{self.row}"

    def relative_to(self, folder: Path) -> "Embedded":
        """As a Path's."""
        return replace(self, file=self.file.relative_to(folder))


def rows_with_pictures(table: Table) -> Iterator[Row]:
    """Every row of a Parquet file, as `scan` gives them, with an Embedded where bytes lie, and else the path that stands there."""
    try:
        with pq.ParquetFile(table.path) as file:
            held = {field.name: field for field in file.schema_arrow if holds_image(field.type)}
            leaves = {name: f"{name}.bytes" if pa.types.is_struct(field.type) else name for name, field in held.items()}
            empty = {name: _rows_without(file, leaf) for name, leaf in leaves.items()}
            paths = [f"{name}.path" for name, leaf in leaves.items() if leaf != name]
            columns = [name for name in file.schema_arrow.names if name not in held] + paths if held else None
    except PARQUET_FAULTS as e:
        raise Rejected("bad_table", f"pictures in a Parquet file that can't be read: {e}") from None
    for found in scan(table, columns):
        if isinstance(found.values, Rejected):
            yield found
            continue
        pictures = {name: Embedded(table.path, found.at, name) for name in held if found.at not in empty[name]}
        yield replace(found, values=found.values | pictures)


def _rows_without(file: pq.ParquetFile, leaf: str) -> set[int]:
    """The rows without bytes. Row groups that say of themselves that all have some aren't read."""
    found: set[int] = set()
    start = 0
    for group in range(file.num_row_groups):
        about = file.metadata.row_group(group)
        own = next(c for c in map(about.column, range(about.num_columns)) if c.path_in_schema == leaf)
        if not (own.statistics and own.statistics.has_null_count and own.statistics.null_count == 0):
            at = start
            for batch in file.iter_batches(batch_size=_BATCH, row_groups=[group], columns=[leaf]):
                found |= {at + i for i, value in enumerate(_values(batch.column(0))) if not value.is_valid}
                at += batch.num_rows
        start += about.num_rows
    return found


def read_bytes(picture: Embedded) -> bytes:
    """Rejected where its part of the file can't be read."""
    try:
        ends = _ends(picture.file)
        group = bisect_right(ends, picture.row)
        start = ends[group - 1] if group else 0
        value = _group(picture.file, group, picture.column)[picture.row - start].as_py()
    except PARQUET_FAULTS as e:
        raise Rejected("bad_table", f"its part of the Parquet file can't be read: {e}") from None
    return bytes(value)


@lru_cache(maxsize=64)
def _ends(file: Path) -> tuple[int, ...]:
    """Behind the last row of each row group."""
    about = pq.read_metadata(file)
    return tuple(accumulate(about.row_group(group).num_rows for group in range(about.num_row_groups)))


@lru_cache(maxsize=_GROUPS)
def _group(file: Path, group: int, column: str) -> pa.ChunkedArray:
    with pq.ParquetFile(file, page_checksum_verification=True) as table:
        return _values(table.read_row_group(group, columns=[column]).column(0))


def _values(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column

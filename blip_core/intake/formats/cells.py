"""The cells of a Parquet file as Python has them, also where it has not."""

from typing import Any

import pyarrow as pa

Values = dict[str, object]


def values_of(batch: pa.RecordBatch) -> list[Values]:
    """The rows of a batch. Where a column has values that Python has not (text that is no UTF-8, a date in the year 20000), these are
    text; bytes that are no UTF-8 are lone surrogates there."""
    columns = [_cells_of(column) for column in batch.columns]
    return [dict(zip(batch.schema.names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _cells_of(column: pa.Array) -> list[Any]:
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):
        return [_cell(value) for value in column]


def _cell(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except (ValueError, OverflowError):
        pass
    try:
        text = value if pa.types.is_large_string(value.type) or pa.types.is_string(value.type) else value.cast(pa.string())
        return text.cast(pa.binary()).as_py().decode("utf-8", "surrogateescape")
    except pa.ArrowException:  # a list or an object
        return pa.array([value]).to_string()

"""One schema for the tables of all shards, whatever single files make of a field."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blip_core.files.content import hash64
from blip_core.metadata.columns import EXACT, commonest, others_of
from blip_core.metadata.fields import KEY, OTHERS, as_text


@dataclass
class Survey:
    """What the shards hold: for each field the pictures that have it by the type of their value. Grows with the fields, not with the
    pictures."""

    kinds: dict[str, Counter[pa.DataType]] = field(default_factory=dict)
    largest: Counter[str] = field(default_factory=Counter)  # of a field's integers, without sign
    others: bool = False  # whether a shard has fields that are too rare for a column of its own

    def add(self, table: pa.Table) -> None:
        for name, column in zip(table.column_names, table.columns, strict=True):
            if name == OTHERS:
                self.others = True
            elif name != KEY:
                self.kinds.setdefault(name, Counter())[column.type] += len(column) - column.null_count
                if pa.types.is_integer(column.type):
                    ends = pc.min_max(column).as_py().values()
                    self.largest[name] = max(self.largest[name], *(abs(end or 0) for end in ends))

    def schema(self, *, max_fields: int) -> pa.Schema:
        """`key`, the fields that the most pictures have, and `other_fields` where there are others."""
        counts = Counter({name: found.total() for name, found in self.kinds.items()})
        columns = set(commonest(counts, max_fields))
        fields = [(name, self._kind(name)) for name in self.kinds if name in columns]
        others = [(OTHERS, pa.string())] if self.others or len(columns) < len(self.kinds) else []
        return pa.schema([(KEY, pa.string()), *fields, *others])

    @property
    def mixed(self) -> dict[str, dict[str, int]]:
        """Fields with values of several types: how many pictures have each."""
        found = {name: {str(kind): n for kind, n in kinds.items() if n} for name, kinds in self.kinds.items()}
        return {name: kinds for name, kinds in found.items() if len(kinds) > 1}

    def _kind(self, name: str) -> pa.DataType:
        """The one that there is; of numbers the wider one where it is exact; else text."""
        kinds = [kind for kind, count in self.kinds[name].items() if count] or [pa.string()]
        if len(kinds) == 1:
            return kinds[0]
        if all(map(pa.types.is_integer, kinds)) and self.largest[name] < 1 << 63:
            return pa.int64()
        numbers = all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds)
        return pa.float64() if numbers and self.largest[name] <= EXACT else pa.string()


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with these columns: values in the type of the whole, and in `other_fields` what has no column."""
    others = [json.loads(text) if text else {} for text in table[OTHERS].to_pylist()] if OTHERS in table.column_names else None
    arrays: dict[str, Any] = {}
    for own in schema:
        if own.name in table.column_names and own.name != OTHERS:
            arrays[own.name] = _as(table[own.name], own.type)
        elif own.name != OTHERS:
            arrays[own.name] = _taken(others, own) if others else pa.nulls(table.num_rows, own.type)
    if OTHERS in schema.names:
        rest = table.select([name for name in table.column_names if name not in schema.names])
        rows = zip(others or [{}] * table.num_rows, rest.to_pylist() if rest.num_columns else [{}] * table.num_rows, strict=True)
        arrays[OTHERS] = others_of(own | {n: v for n, v in row.items() if v is not None} for own, row in rows)
    return pa.table(arrays, schema)


def rare(table: pa.Table) -> np.ndarray:
    """The fields that have no column, as hashes, each once."""
    texts = table[OTHERS].drop_null().to_pylist() if OTHERS in table.column_names else []
    return np.unique(np.array([hash64(name) for text in texts for name in json.loads(text)], np.int64))


def _as(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray | pa.Array:
    if column.type == kind:
        return column
    if pa.types.is_string(kind):
        return pa.array([None if value is None else as_text(value) for value in column.to_pylist()], kind)
    return column.cast(kind)


def _taken(rows: list[dict[str, Any]], own: pa.Field) -> pa.Array:
    """A column of what is rare in this shard alone, out of its JSON. A value of another type stays there."""
    values = [_value(row.get(own.name), own.type) for row in rows]
    for row, value in zip(rows, values, strict=True):
        if value is not None:
            del row[own.name]
    return pa.array(values, own.type)


def _value(value: Any, kind: pa.DataType) -> Any:
    if value is None or pa.types.is_string(kind):
        return None if value is None else as_text(value)
    if isinstance(value, bool) != pa.types.is_boolean(kind):  # to Arrow true is 1 as well
        return None
    try:
        found = pa.scalar(value, kind).as_py()
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return None
    return found if found == value else None

"""The fields of one shard's pictures as a table: a column for each field that is not too rare, with the type that its values have."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from blip_core.metadata.fields import KEY, OTHERS, SCREENS, Fields, as_text, free_name, plain

RESERVED = (KEY, OTHERS, SCREENS, "")
EXACT = 1 << 53  # integers up to here are floats too
_MOST_NAME = 200  # characters of a column's name
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view, pa.types.is_large_list_view)
_FAULTS = (pa.ArrowException, TypeError, ValueError, OverflowError)


class ShardColumns:
    """The fields of pictures, added one after the other; `table` has a row for each."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.types: dict[str, pa.DataType] = {}

    def add(self, key: str, fields: Fields) -> None:
        self.keys.append(key)
        self.rows.append({free_name(name, RESERVED): value for name, value in fields.values.items() if value is not None})
        self.types |= {free_name(name, RESERVED): stored(kind) for name, kind in fields.types.items()}

    def table(self, *, max_fields: int) -> pa.Table:
        """`key`, at most so many columns in order of appearance, and in `other_fields` as JSON what is rarer. Where there are more fields
        than that, one that fewer than a hundredth of the pictures have is no column either."""
        counts = Counter(name for row in self.rows for name in row)
        order = list(counts)
        columns = set(commonest(counts, max_fields, least=len(self.rows) / 100))
        arrays = {KEY: pa.array(self.keys, pa.string())}
        for name in filter(columns.__contains__, order):
            arrays[name] = typed([row.get(name) for row in self.rows], self.types.get(name))
        if len(columns) < len(order):
            arrays[OTHERS] = others_of({n: v for n, v in row.items() if n not in columns} for row in self.rows)
        return pa.table(arrays)


def commonest(counts: Counter[str], most: int, *, least: float = 0) -> list[str]:
    """The fields that get a column: those that the most pictures have, and where they are too many at least so many."""
    named = (name for name, count in counts.items() if len(name) <= _MOST_NAME and (len(counts) <= most or count >= least))
    return sorted(named, key=lambda name: (-counts[name], name))[:most]


def others_of(rows: Iterable[dict[str, Any]]) -> pa.Array:
    return pa.array([json.dumps(plain(row), ensure_ascii=False) if row else None for row in rows], pa.string())


def typed(values: list[Any], kind: pa.DataType | None) -> pa.Array:
    """Values of one type have it: that of their source, or bool, int64, float64 (also of integers among floats), text. Lists and objects
    without a type of their source, and values of several types, are text."""
    kind = kind or _kind_of(values)
    try:
        return pa.array(values, kind)
    except _FAULTS:
        return pa.array([None if value is None else as_text(value) for value in values], pa.string())


def _kind_of(values: list[Any]) -> pa.DataType:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64()
    exact = all(abs(value) <= EXACT for value in values if type(value) is int)
    return pa.float64() if kinds and kinds <= {int, float} and exact else pa.string()


def stored(kind: pa.DataType) -> pa.DataType:
    """The type in which a column's values stay: without dictionaries, extensions, and the large, fixed and view kinds, which are about
    their place in memory and not about them."""
    if isinstance(kind, pa.UuidType):
        return pa.string()  # as Python writes it
    if isinstance(kind, pa.BaseExtensionType):
        return stored(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return stored(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.binary()
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, stored(field.type)) for field in kind])
    if any(is_kind(kind) for is_kind in _LISTS):
        return pa.list_(stored(kind.value_type))
    return pa.string() if pa.types.is_map(kind) else kind  # of maps few readers know

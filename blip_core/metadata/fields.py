"""The fields of one picture: named values as they were found, before a table gives them types."""

import base64
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

KEY = "key"  # joins the tables
OTHERS = "other_fields"  # JSON of the fields that are too rare for a column
SCREENS = "screens"  # names of the screens of pictures that hit it
_BEFORE = "source_"


@dataclass(frozen=True)
class Fields:
    """`types`: of those values whose source has types, as Parquet; the others have the types that JSON or CSV gave them."""

    values: Mapping[str, Any]
    types: Mapping[str, pa.DataType]


NO_FIELDS = Fields({}, {})


def beside(values: Mapping[str, Any], used: Collection[str | None], types: Mapping[str, pa.DataType] | None = None) -> Fields:
    """Of a row, what is neither picture nor text: all but the columns that are `used`."""
    return Fields({name: value for name, value in values.items() if name not in used}, types or {})


def joined(rows: Iterable[Fields]) -> Fields:
    """Of a picture that has several rows. What they agree on stands once; where they differ, all their values, in their order."""
    first, *rest = [*rows] or [NO_FIELDS]
    if not rest:
        return first
    names = dict.fromkeys(name for row in (first, *rest) for name in row.values)
    each = {name: [row.values.get(name) for row in (first, *rest)] for name in names}
    values = {name: found[0] if all(_same(v, found[0]) for v in found) else found for name, found in each.items()}
    return Fields(values, {name: kind for name, kind in first.types.items() if values.get(name) is each.get(name, [None])[0]})


def _same(one: Any, other: Any) -> bool:
    """1, 1.0 and True are three values; NaN is one."""
    return type(one) is type(other) and (one == other or (one != one and other != other))


def free_name(name: str, taken: Collection[str]) -> str:
    """Another name for a field whose own is taken, in any case: `source_` before it. What is called so already gets one more, so that two
    names never become one."""
    return _BEFORE + name if re.sub(f"^({_BEFORE})+", "", name.lower()) in taken else name


def clean(text: str) -> str:
    """Text that every file can hold: bytes that were no UTF-8, which stand as lone surrogates, are written as \\udcXX."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def as_text(value: Any) -> str:
    """What is text by `plain` as it is, all else as JSON writes it."""
    found = plain(value)
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def plain(value: Any) -> Any:
    """What JSON can hold: NaN and infinity, which it has not, are null; bytes are their text, or base64 where they are none; dates and
    decimals are text."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {clean(str(name)): plain(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [plain(own) for own in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)

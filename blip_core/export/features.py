"""The types of an exported data set as Hugging Face's datasets writes them: by Parquet's metadata, and for tars by the card."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

_NAMES = {"halffloat": "float16", "float": "float32", "double": "float64", "date32[day]": "date32"}


def feature_of(kind: pa.DataType) -> dict[str, Any] | list[Any]:
    """Of a column of Parquet; a list in the way that old and new versions read."""
    if pa.types.is_list(kind):
        return [feature_of(kind.value_type)]
    if pa.types.is_struct(kind):
        return {field.name: feature_of(field.type) for field in kind}
    return {"dtype": _NAMES.get(str(kind), str(kind)), "_type": "Value"}


def features(types: dict[str, pa.DataType], kinds: Iterable[str]) -> list[dict[str, Any]]:
    """Of the WebDataset's members, as a card tells them to Hugging Face's loader. `types`: of the fields; `kinds`: of the images."""
    own = {"key": "string", "image_id": "string", "width": "int64", "height": "int64", "sha256": "string", "candidates": "string"}
    told = [{"name": name, "dtype": kind} for name, kind in {**own, **{n: _json_kind(t) for n, t in types.items()}}.items()]
    images = [{"name": kind, "dtype": "image"} for kind in sorted(kinds)]
    texts = [{"name": name, "dtype": "string"} for name in ("txt", "__key__", "__url__")]
    return [*images, *texts, {"name": "json", "struct": [*told, {"name": "caption", "list": "string"}]}]


def _json_kind(kind: pa.DataType) -> str:
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind):
        return "uint64" if kind == pa.uint64() else "int64"
    return "float64" if pa.types.is_floating(kind) else "string"

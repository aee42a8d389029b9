"""Slices: what is measured, told by a column of the data. `metric[column=value]` is the metric of what has this value.

A column is one of the tables' own (shard, language, ...), or one of the files `web.csv` and `clean.csv` in the folder `columns`, of the
crawl's pictures and of the clean set's. Such a file names its pictures by `key`, as the source or the tables have it, or by `file_name`.
It may also be TSV, JSON lines, Parquet, or a JSON list of captions with `images`, as COCO's and NoCaps'.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

NONE = "none"  # the value of what has none
FEWEST = 10  # pictures; of fewer no interval is told, for one by resampling would be too narrow
MOST_VALUES = 100  # of a column; one with more is no column of slices
PARTS = ("web", "clean")
_ENDS = (".csv", ".tsv", ".jsonl", ".parquet", ".json")
_PREFIX = "^(?:web|train|val|test)-"  # which ingest puts before the source's key


def slices(values: Mapping[str, Iterable[Any]]) -> Iterator[tuple[str, np.ndarray]]:
    """`[column=value]` and the places that have the value. `values`: by column, one for each item."""
    for column, found in values.items():
        yield from ((label(column, value), places) for value, places in by_value(column, found).items())


def keys_of(values: Mapping[str, Mapping[str, Any]]) -> dict[str, set[str]]:
    """The keys by `[column=value]`. `values`: by column and key."""
    found: dict[str, set[str]] = {}
    for column, own in values.items():
        keys = list(own)
        found |= {name: {keys[i] for i in places} for name, places in slices({column: own.values()})}
    return found


def by_value(column: str, found: Iterable[Any]) -> dict[str, np.ndarray]:
    """The places of each value. ValueError where there are too many to tell."""
    values = told(found)
    distinct = sorted(set(values))
    if len(distinct) > MOST_VALUES:
        some = ", ".join(map(repr, distinct[:3]))
        raise ValueError(f"slices by {column}: it has {len(distinct):,} values ({some}, ...); expected at most {MOST_VALUES}")
    return {value: np.flatnonzero(values == value) for value in distinct}


def require_values(column: str, values: Iterable[Any]) -> None:
    """ValueError where nothing has one."""
    if set(told(values)) <= {NONE}:
        why = "do the keys in the folder of columns fit those of the pictures, or is the screen off that fills it?"
        raise ValueError(f"slices by {column}: nothing has a value; {why}")


def told(found: Iterable[Any]) -> np.ndarray:
    """As texts; what is missing or empty as none."""
    return np.array([NONE if value is None or value == "" else str(value) for value in found], dtype=object)


def label(column: str, value: str) -> str:
    return f"[{column}={value}]"


class Columns:
    """The asked columns of the files in a folder, as texts."""

    def __init__(self, folder: Path, names: Iterable[str]):
        self.folder, self.names = folder, tuple(dict.fromkeys(names))
        self._files = {part: rows for part, path in _paths(folder).items() if (rows := _rows(path, self.names))} if self.names else {}

    def of(self, table: pa.Table) -> dict[str, np.ndarray]:
        """By column, the value of each row of a table with `key`; None where there is none. A file's column stands before the table's."""
        return {name: self._of(table, name) for name in self.names}

    def of_pictures(self, tables: Iterable[pa.Table]) -> dict[str, dict[str, Any]]:
        """By column, the value of each picture by its key; of texts that differ, the first counts."""
        found: dict[str, dict[str, Any]] = {name: {} for name in self.names}
        for table in tables if self.names else ():  # none is read where nothing is asked
            keys = table["key"].to_pylist()
            for name, values in self.of(table).items():
                found[name] = dict(zip(reversed(keys), reversed(values), strict=True)) | found[name]
        return found

    def _of(self, table: pa.Table, name: str) -> np.ndarray:
        files = {part: rows for part, rows in self._files.items() if name in rows.column_names}
        if not files and name not in table.column_names:
            own = ", ".join(n for n in table.column_names if n not in ("key", "text"))
            there = ", ".join(path.name for path in _paths(self.folder).values()) or "no file"
            raise ValueError(f"slices by {name}: no such column in {self.folder} ({there}), nor among the tables' own ({own})")
        if not files:
            return _objects(pc.cast(table[name], pa.string()))
        keys = table["key"].combine_chunks()
        of_web, found = pc.starts_with(keys, "web-"), pa.nulls(len(keys), pa.string())
        for part, rows in files.items():
            own = of_web if part == "web" else pc.invert(of_web)
            found = pc.if_else(own, rows[name].combine_chunks().take(_places(keys, rows["key"])), found)
        return _objects(found)


def _places(keys: pa.Array, known: pa.ChunkedArray) -> pa.Array:
    """Where each key stands, with the prefix that ingest gave it or without; null where it does not."""
    known = known.combine_chunks()
    raw = pc.replace_substring_regex(keys, _PREFIX, "")
    return pc.coalesce(pc.index_in(keys, value_set=known), pc.index_in(raw, value_set=known))


def _objects(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Equal texts are one object, so that a long column is small."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    coded = values.dictionary_encode()
    known = np.array([*coded.dictionary.to_pylist(), None], dtype=object)
    return known[pc.fill_null(coded.indices, len(known) - 1).to_numpy()]


def _paths(folder: Path) -> dict[str, Path]:
    """The file of each part. ValueError for another file, and for two of a part."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or path.suffix in (".dvc", ".md", ".txt"):
            continue
        if path.stem not in PARTS or path.suffix not in _ENDS or path.stem in found:
            ends = ", ".join(_ENDS)
            raise ValueError(f"{path}: expected one file `web` for the crawl's pictures and one `clean` for the clean set's, as {ends}")
        found[path.stem] = path
    return found


def _rows(path: Path, names: tuple[str, ...]) -> pa.Table | None:
    """`key` and those of the columns that the file has, as texts; None where it has none of them."""
    try:
        table = _table(path)
    except (pa.ArrowException, OSError, ValueError) as e:
        raise ValueError(f"{path}: can't be read ({e}); expected a table with `key` or `file_name`, and a name for each column") from None
    there = [name for name in names if name in table.column_names]
    by = next((name for name in ("key", "file_name") if name in table.column_names), None)
    if by is None:
        raise ValueError(f"{path}: no column key or file_name, so its rows can't be told; its columns are {table.column_names}")
    try:
        table = pa.table({name: pc.cast(table[name], pa.string()) for name in (by, *there)})
    except pa.ArrowException as e:
        raise ValueError(f"{path}: expected plain values in {', '.join(there)} ({e})") from None
    keys = table[by] if by == "key" else _key_of(table[by])
    counts = pc.value_counts(keys)
    if (most := pc.max(counts.field("counts")).as_py() or 0) > 1:
        again = counts.field("values")[pc.index(counts.field("counts"), most).as_py()]
        raise ValueError(f"{path}: {by} {again.as_py()!r} stands in {most} rows; expected one for each")
    return pa.table({"key": keys, **{name: table[name] for name in there}}) if there else None


def _key_of(names: pa.ChunkedArray) -> pa.ChunkedArray:
    """The key that a source gives a picture by its path."""
    return pc.replace_substring(pc.replace_substring_regex(names, r"^(?:\./)?(.*?)(?:\.[A-Za-z0-9]+)?$", r"\1"), "/", "_")


def _table(path: Path) -> pa.Table:
    if path.suffix in (".csv", ".tsv"):
        layout = pyarrow.csv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ",")
        names = pyarrow.csv.open_csv(path, parse_options=layout).schema.names
        return pyarrow.csv.read_csv(
            path, parse_options=layout, convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
        )
    if path.suffix == ".jsonl":
        return pyarrow.json.read_json(path)
    if path.suffix == ".parquet":
        return pq.read_table(path, page_checksum_verification=True)
    value = json.loads(path.read_text(encoding="utf-8"))
    images = value.get("images") if isinstance(value, dict) else value
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise ValueError("expected a list of objects, or an object with such a list as `images`")
    return pa.Table.from_pylist(images)

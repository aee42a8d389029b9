"""Rows of a task's files: JSON of any of the usual shapes, JSON lines, CSV, TSV or Parquet, for train, val or test by their names.

A row is a dict. Files that belong together, as VQA v2's questions and annotations, are joined by the id that both have; so are, in
one file, COCO's annotations and images, and MSR-VTT's sentences and videos.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from blip_core.files.rejected import Rejected
from blip_core.intake.formats import split_of_name
from blip_core.intake.formats.columns import plain
from blip_core.intake.formats.rows import kind_of, open_table, scan
from blip_core.tasks.embedded import Embedded, rows_with_pictures
from blip_core.tasks.pictures import Pictures, task_files
from blip_core.tasks.task import E, SetAside

Row = dict[str, Any]
_LISTS = ("questions", "annotations", "data", "examples", "images", "sentences")  # below which a JSON object has its rows
_JOINED = (("annotations", "images", "image_id", "id"), ("sentences", "videos", "video_id", "video_id"))  # lists of one file, their ids


def split_files(folder: Path, split: str) -> list[Path]:
    """The files of rows below a folder whose name, or a folder's above them, speaks of the split. ValueError where there is none."""
    files = row_files(folder)
    found = [path for path, said in files.items() if said == split]
    if not found:
        raise no_file(folder, split, files)
    return found


def row_files(folder: Path) -> dict[Path, str | None]:
    """All files of rows below a folder, each with the split that its name speaks of. ValueError where there is no folder."""
    files = task_files(folder).paths(".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
    return {p: split_of(p.relative_to(folder)) for p in files}


def no_file(folder: Path, split: str, files: Iterable[Path]) -> ValueError:
    names = ", ".join([str(p.relative_to(folder)) for p in files][:6]) or "no such file"
    return ValueError(f"{folder}: no file of rows whose name says {split}; found {names}; expected as {split}.jsonl or {split}.csv")


def read_rows(files: list[Path], key: str, names: tuple[str, ...] = ()) -> tuple[list[tuple[str, Row]], list[SetAside]]:
    """Rows with the places where they stand. Rows of several files with an equal `key` are one, unless a column of both says different
    things: then ids are counted anew in each file. What is no row is set aside. `names`: of columns, which a file may write in any case.
    """
    rows: dict[object, tuple[str, Row]] = {}
    aside: list[SetAside] = []
    meant = {plain(name): name for name in names}
    for file in files:
        own: set[object] = set()
        for where, row in _rows(file):
            if isinstance(row, Rejected):
                aside.append(SetAside(where, row.reason, row.detail))
                continue
            row = {k if k in names else meant.get(plain(k), k): v for k, v in row.items()}
            identity = row.get(key)
            if identity is None or identity in own:  # without one it stands alone; twice in one file it can't be two halves
                identity = where
            own.add(identity)
            said = {k: v for k, v in row.items() if v is not None}
            before = rows.get(identity, (where, {}))
            if any(before[1].get(k, v) != v for k, v in said.items()):
                identity, before = where, (where, {})
            rows[identity] = (before[0], before[1] | said)
    return list(rows.values()), aside


def examples_of(
    pictures: Pictures, files: list[Path], key: str, example: Callable[[Row, str, Pictures], E], names: tuple[str, ...]
) -> tuple[list[E], list[SetAside]]:
    """What `example` makes of each row, its place and the pictures. `names`: of the columns that it looks at.
    What it rejects is set aside. No picture is decoded."""
    rows, aside = read_rows(files, key, (key, *names))
    found = []
    for where, row in rows:
        try:
            found.append(example(row, where, pictures))
        except Rejected as e:
            aside.append(SetAside(where, e.reason, e.detail))
    return found, aside


def first_of(row: Row, names: tuple[str, ...]) -> Any:
    """The first of these columns that holds anything, one with a picture itself before all; None when none does."""
    found = [row[name] for name in names if row.get(name) not in (None, "")]
    return next((value for value in found if isinstance(value, Embedded)), found[0] if found else None)


def facts_of(row: Row, used: tuple[str, ...]) -> Row:
    """The row's other columns, as far as they are plain values."""
    return {k: v for k, v in row.items() if k not in used and isinstance(v, str | int | float | bool)}


def text_in(file: Path) -> str:
    """ValueError where it is no UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise ValueError(f"{file}: no UTF-8 text ({e.reason} at byte {e.start}); save it as UTF-8") from None


def split_of(path: Path) -> str | None:
    """By the file's own name, else by the nearest folder that speaks of one. The captions of NoCaps' test set are not published, so that
    those of its val are what is measured; nothing is chosen by them."""
    if path.name.startswith("nocaps_val"):
        return "test"
    return next(filter(None, (split_of_name(part) for part in (path.stem, *reversed(path.parts[:-1])))), None)


def _rows(file: Path) -> Iterator[tuple[str, Row | Rejected]]:
    if kind_of(file):
        try:
            table = open_table(file)
            names = _class_names(file) if table.kind == "parquet" else {}
            for found in rows_with_pictures(table) if table.kind == "parquet" else scan(table):
                yield f"{file}:{found.line}", _with_names(found.values, names)
        except Rejected as e:
            yield str(file), e
        return
    try:
        value = json.loads(file.read_bytes())  # tells UTF-8, with a BOM or without, from UTF-16
    except (ValueError, RecursionError) as e:
        yield str(file), Rejected("bad_json", str(e))
        return
    for place, row in _listed(value):
        yield f"{file}: {place}", row if isinstance(row, dict) else Rejected("bad_row", f"expected an object, got {type(row).__name__}")


def _class_names(file: Path) -> dict[str, list[str]]:
    """What the numbers in a Parquet column of the library datasets stand for, by the column's name."""
    try:
        features = json.loads((pq.read_schema(file).metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    own = {column: kind.get("feature", kind) for column, kind in features.items() if isinstance(kind, dict)}
    return {column: kind["names"] for column, kind in own.items() if isinstance(kind, dict) and isinstance(kind.get("names"), list)}


def _with_names(row: Row | Rejected, names: dict[str, list[str]]) -> Row | Rejected:
    if isinstance(row, Rejected):
        return row
    return row | {column: _named(row[column], own) for column, own in names.items() if column in row}


def _named(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_named(v, names) for v in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None


def _listed(value: object) -> Iterator[tuple[str, object]]:
    """The rows of a JSON value: a list, an object with one list or two, or rows by their id; a picture's own list of `qas` is flat."""
    if isinstance(value, dict):
        for listed, things, own, their in _JOINED:
            if isinstance(value.get(listed), list) and isinstance(value.get(things), list):
                value = {listed: _with_things(value[listed], own, value[things], their)}
        named = {name: value[name] for name in _LISTS if isinstance(value.get(name), list)}
        if not named and any(isinstance(v, str) for v in value.values()):
            yield "", value  # JSON lines of one row
        elif not named:
            yield from ((str(k), {"question_id": k, **v} if isinstance(v, dict) else v) for k, v in value.items())
        for name, rows in named.items():
            yield from ((f"{name} {place}", row) for place, row in _listed(rows))
    elif isinstance(value, list):
        for i, row in enumerate(value):
            if isinstance(row, dict) and isinstance(row.get("qas"), list):
                yield from ((f"row {i}, qas {n}", qa) for n, qa in enumerate(row["qas"]))
            else:
                yield f"row {i}", row
    else:
        yield "", value


def _with_things(rows: list[Any], own: str, things: list[Any], their: str) -> list[Any]:
    """Rows, each with what is said of the picture or video that it names; one that no row names is a row by itself."""
    by_id = {str(thing[their]): thing for thing in things if isinstance(thing, dict) and their in thing}
    found, seen = [], set()
    for row in rows:
        thing = by_id.get(str(row.get(own)), {}) if isinstance(row, dict) else {}
        seen.add(str(thing.get(their)))
        found.append({**thing, **row} if isinstance(row, dict) else row)
    return found + [thing for thing in things if not isinstance(thing, dict) or str(thing.get(their)) not in seen]

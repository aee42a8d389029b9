"""Hugging Face's Parquet data sets: the images within, as `image: {bytes, path}` or plain bytes, and a column of texts."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from blip_core.config.intake import FieldsConfig
from blip_core.files.rejected import Rejected
from blip_core.intake.formats import Record, RejectedRow, failure, named_split, split_of_name
from blip_core.intake.formats.cells import values_of
from blip_core.intake.formats.columns import SEARCH, SPLITS, column, text_columns, texts_in
from blip_core.intake.formats.files import MOST_IMAGE_BYTES, Entry, key_of, places, read_entry
from blip_core.intake.formats.rows import PARQUET_FAULTS
from blip_core.intake.walk import below
from blip_core.metadata.fields import beside

EXPECTS = "*.parquet with a column image: {bytes, path} or bytes and one of texts (text, caption, captions, ...)"

_IMAGES = ("image", "jpg", "png", "img", "image_bytes", "bytes", "picture")
_BATCH = 32  # rows in memory at a time


@dataclass(frozen=True)
class GroupUnit:
    """One row group of a file. `image` and `text` are columns."""

    name: str
    root: Path
    file: Path
    group: int
    start: int  # number of its first row
    size: int
    image: str
    texts: tuple[str, ...]
    split: str | None
    status: tuple[str, ...]  # img2dataset's columns for what it could not get

    @property
    def files(self) -> tuple[str, ...]:
        return (self.file.relative_to(self.root).as_posix(),)


def recognises(path: Path, fields: FieldsConfig = SEARCH) -> bool:
    return any(_columns(file, fields) for file in _files(path))


def units(path: Path, fields: FieldsConfig = SEARCH) -> list[GroupUnit]:
    root, found = path if path.is_dir() else path.parent, []
    for file in _files(path):
        if (columns := _columns(file, fields)) is None:
            continue
        name, metadata, start = file.relative_to(root).as_posix(), pq.read_metadata(file), 0
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            found.append(GroupUnit(f"{name} {group}", root, file, group, start, rows, *columns))
            start += rows
    return found


def read(unit: GroupUnit) -> Iterator[Record | RejectedRow]:
    name, at = unit.file.relative_to(unit.root).as_posix(), unit.start
    try:
        with pq.ParquetFile(unit.file, page_checksum_verification=True) as file:
            types = {field.name: field.type for field in file.schema_arrow}
            for batch in file.iter_batches(batch_size=_BATCH, row_groups=[unit.group]):
                for values in values_of(batch):
                    yield _item(unit, values, name, at, types)
                    at += 1
    except PARQUET_FAULTS as e:
        lost = unit.start + unit.size - at
        yield RejectedRow("", f"{name}:row {at}", "bad_table", f"{lost} rows of row group {unit.group} can't be read: {e}", lost=lost)


def _files(path: Path) -> list[Path]:
    return [p for p in below(path).paths(".parquet") if not p.name.startswith("_")]


def _columns(file: Path, fields: FieldsConfig) -> tuple[str, tuple[str, ...], str | None, tuple[str, ...]] | None:
    """The columns of image, texts and split, and those in which img2dataset tells of failures; None without these, or of what is none."""
    try:
        schema = pq.read_schema(file)
    except PARQUET_FAULTS:
        return None
    images = [f.name for f in schema if holds_image(f.type)]
    image = column(images, _IMAGES, fields.image) or (images[0] if len(images) == 1 and not fields.image else None)
    texts, split = text_columns(schema.names, fields.text), column(schema.names, SPLITS, fields.split)
    status = tuple(c for c in ("status", "error_message") if c in schema.names) if {"key", "status"} <= set(schema.names) else ()
    return (image, texts, split, status) if image and texts and not (fields.split and split is None) else None


def holds_image(kind: pa.DataType) -> bool:
    """Bytes, plain or in a struct."""
    if pa.types.is_struct(kind):
        return any(f.name == "bytes" and holds_image(f.type) for f in kind)
    if pa.types.is_dictionary(kind):
        return holds_image(kind.value_type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _item(unit: GroupUnit, values: dict[str, Any], name: str, at: int, types: dict[str, pa.DataType]) -> Record | RejectedRow:
    """The key is the file's name and the row's number: names within are often null or all the same."""
    key, where, split = f"{key_of(re.sub('(?i)[.]parquet$', '', name))}-{at}", f"{name}:row {at}", None
    texts: tuple[str, ...] | None = ()
    try:
        texts = texts_in(values, unit.texts)
        split = _split(unit, values, name)
        if unit.status and values["status"] not in ("success", None):
            raise failure(values["status"], values.get("error_message"))
        if texts is None:
            got = str([values[c] for c in unit.texts])[:100]
            raise Rejected("bad_row", f"expected a text or a list of texts under {', '.join(unit.texts)}, got {got}")
        image = values[unit.image]
        data, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
        fields = beside({f"{unit.image}_path": path, **values}, (unit.image, *unit.texts), types)
        if not data and isinstance(path, str) and path:
            paths = places(path, Path(name).parent.as_posix())
            return read_entry(unit.root, Entry(key, paths, texts, path, split, where, fields=fields))
        if not data:
            raise Rejected("missing_image", f"neither bytes nor a path under {unit.image!r}")
        if len(data) > MOST_IMAGE_BYTES:
            raise Rejected("too_many_bytes", f"{len(data)} bytes, at most {MOST_IMAGE_BYTES} are read")
        # several rows may show one picture, a caption each
        return Record(key, data, texts, hashlib.sha256(data).hexdigest()[:16], split, where, fields=fields)
    except Rejected as e:
        return RejectedRow(key, where, e.reason, e.detail, split, lost=max(1, len(texts or ())))


def _split(unit: GroupUnit, values: dict[str, Any], name: str) -> str | None:
    word = values.get(unit.split) if unit.split else None
    if word in (None, ""):
        return split_of_name(name)
    split = named_split(str(word))
    if split is None:
        raise Rejected("unknown_split", f"split {str(word)[:50]!r}, expected train, restval, val or test")
    return split

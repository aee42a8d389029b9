"""How an exported data set lies on disk: a writer for each format, a context manager with `write(split, stem, items)` for one shard."""

import hashlib
import io
import json
import os
import shutil
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, Self, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from blip_core.pictures.containers import kind_of
from blip_core.tables.captions import KEPT, SCREENS

_ROW_GROUP = 100  # images; Hugging Face's viewer reads a group at a time


@dataclass(frozen=True)
class Item:
    """One image and its texts, each with scores and provenance."""

    key: str
    image_id: str
    data: bytes
    width: int
    height: int
    candidates: list[dict[str, Any]]

    @property
    def file_name(self) -> str:
        return f"{self.key}.{kind_of(self.data)}"

    @property
    def texts(self) -> list[str]:
        return [c["text"] for c in self.candidates]

    @property
    def first(self) -> str:
        """The text for those who take one: the first that was kept."""
        return next((c["text"] for c in self.candidates if c["reason"] == KEPT), self.texts[0])

    def row(self) -> dict[str, Any]:
        """`text` for trainers that want one; `captions` and the columns beside it in the same order."""
        columns = {f"caption_{name}": [c[name] for c in self.candidates] for name in _COLUMNS}
        facts = {"key": self.key, "image_id": self.image_id, "width": self.width, "height": self.height}
        return {"text": self.first, "captions": self.texts, **columns, **facts}


_COLUMNS = {
    **dict.fromkeys(("source", "reason"), "string"),
    **dict.fromkeys(("match", "itm", "itc"), "float64"),
    **dict.fromkeys(("round", "model", "sampler", "filter"), "string"),
    **dict.fromkeys(("candidate", "seed"), "int64"),
    **dict.fromkeys(SCREENS, "bool"),
    "language": "string",
}


class _Writer(ABC):
    def __init__(self, folder: Path):
        self.folder = folder
        self._lists: dict[str, TextIO] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        for file in self._lists.values():
            file.close()

    @abstractmethod
    def write(self, split: str, stem: str, items: Iterator[Item]) -> None:
        """The items of a shard."""

    def _append(self, name: str, row: dict[str, Any], *, begin: str = "", between: str = ",\n") -> None:
        """Add a row to the list of this name."""
        if name not in self._lists:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            self._lists[name] = (self.folder / name).open("w", encoding="utf-8")
            between = begin
        self._lists[name].write(between + _dumps(row))

    def _image(self, place: str, item: Item) -> str:
        """Write the image below `place`; returns its name there."""
        path = self.folder / place / item.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(item.data)
        return path.name


class WebDatasetWriter(_Writer):
    """key.jpg (or .png, .webp), key.txt (one text) and key.json (all texts as `caption`, each candidate with its scores)."""

    def write(self, split: str, stem: str, items: Iterator[Item]) -> None:
        with tarfile.open(self.folder / f"{stem}.tar", "w", format=tarfile.GNU_FORMAT) as tar:
            for item in items:
                facts = {"key": item.key, "image_id": item.image_id, "width": item.width, "height": item.height}
                facts |= {"sha256": hashlib.sha256(item.data).hexdigest(), "caption": item.texts, "candidates": item.candidates}
                for end, data in ((kind_of(item.data), item.data), ("txt", item.first.encode()), ("json", _dumps(facts).encode())):
                    info = tarfile.TarInfo(f"{item.key}.{end}")
                    info.size, info.mode = len(data), 0o644
                    tar.addfile(info, io.BytesIO(data))


class ImageFolderWriter(_Writer):
    """<split>/metadata.jsonl with a row for each image, and the images in a folder for each shard."""

    def write(self, split: str, stem: str, items: Iterator[Item]) -> None:
        number = stem.rpartition("-")[2]
        for item in items:
            name = self._image(f"{split}/{number}", item)
            self._append(f"{split}/metadata.jsonl", {"file_name": f"{number}/{name}", **item.row()}, between="\n")


class ParquetWriter(_Writer):
    """data/<shard>.parquet with image {bytes, path}; the schema tells Hugging Face's datasets that the column is an image."""

    def write(self, split: str, stem: str, items: Iterator[Item]) -> None:
        path = self.folder / "data" / f"{stem}.parquet"
        path.parent.mkdir(exist_ok=True)
        with pq.ParquetWriter(path, PARQUET_SCHEMA, compression="zstd", write_page_checksum=True) as out:
            while batch := list(islice(items, _ROW_GROUP)):
                rows = [{"image": {"bytes": i.data, "path": i.file_name}, **i.row()} for i in batch]
                out.write_table(pa.Table.from_pylist(rows, PARQUET_SCHEMA))


def _feature(kind: str, *, many: bool = False) -> dict[str, Any] | list[dict[str, Any]]:
    """As Hugging Face's datasets describes a column; a list in the way that its old and new versions read."""
    value = {"dtype": kind, "_type": "Value"}
    return [value] if many else value


def _parquet_schema() -> pa.Schema:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [("image", image), ("text", pa.string()), ("captions", pa.list_(pa.string()))]
    fields += [(f"caption_{name}", pa.list_(pa.type_for_alias(kind))) for name, kind in _COLUMNS.items()]
    fields += [("key", pa.string()), ("image_id", pa.string()), ("width", pa.int32()), ("height", pa.int32())]
    features = {"image": {"_type": "Image"}, **{name: _feature("string") for name in ("text", "key", "image_id")}}
    features |= {"captions": _feature("string", many=True), **{f"caption_{n}": _feature(kind, many=True) for n, kind in _COLUMNS.items()}}
    features |= {"width": _feature("int32"), "height": _feature("int32")}
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})})


PARQUET_SCHEMA = _parquet_schema()


class CocoWriter(_Writer):
    """annotations/captions_<split>.json and images/<shard>/. COCO's numbers of images and captions are counted from 1."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.images, self.notes = count(1), count(1)

    def write(self, split: str, stem: str, items: Iterator[Item]) -> None:
        images, notes = (f"annotations/_{part}_{split}" for part in ("images", "notes"))
        for item in items:
            number = next(self.images)
            name = self._image(f"images/{stem}", item)
            facts = {"id": number, "file_name": f"{stem}/{name}", "width": item.width, "height": item.height}
            self._append(images, {**facts, "key": item.key, "identity": item.image_id})
            for c in item.candidates:
                self._append(notes, {"image_id": number, "id": next(self.notes), "caption": c["text"], **{n: c[n] for n in _COLUMNS}})

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        super().__exit__(kind, *details)
        splits = [name.rpartition("_images_")[2] for name in self._lists if "_images_" in name]
        for split in splits if kind is None else []:
            self._join(self.folder / "annotations", split)

    def _join(self, folder: Path, split: str) -> None:
        """The list of images before that of captions, in one file."""
        with (folder / f"captions_{split}.json").open("w", encoding="utf-8") as out:
            for begin, part in (('{"info": {}, "licenses": [],\n"images": [', "images"), ('],\n"annotations": [', "notes")):
                out.write(begin)
                with (folder / f"_{part}_{split}").open(encoding="utf-8") as rows:
                    shutil.copyfileobj(rows, out)
                os.unlink(folder / f"_{part}_{split}")
            out.write("]}\n")


class SalesforceWriter(_Writer):
    """annotation/<split>.json as the public BLIP code reads it: an entry for each text, in held-out lists for each image."""

    def write(self, split: str, stem: str, items: Iterator[Item]) -> None:
        for item in items:
            image = f"{stem}/{self._image(f'images/{stem}', item)}"
            facts = {"image": image, "image_id": item.image_id}
            entries = [{"caption": c["text"], **facts, **{n: c[n] for n in _COLUMNS}} for c in item.candidates]
            if split in ("val", "test"):
                entries = [{"image": image, "caption": item.texts}]
            for entry in entries:
                self._append(f"annotation/{split}.json", entry, begin="[")

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        for file in self._lists.values():
            file.write("]\n")
        super().__exit__(kind, *details)


WRITERS: dict[str, Callable[[Path], _Writer]] = {
    "webdataset": WebDatasetWriter,
    "imagefolder": ImageFolderWriter,
    "parquet": ParquetWriter,
    "coco": CocoWriter,
    "salesforce": SalesforceWriter,
}


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)

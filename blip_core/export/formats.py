"""How an exported data set lies on disk: a writer for each format, a context manager with `write(split, stem, items)` for one shard."""

import hashlib
import json
import os
import shutil
import tarfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, Self, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from blip_core.export.features import feature_of
from blip_core.files.tars import add_sample
from blip_core.metadata.fields import as_text, plain
from blip_core.pictures.containers import kind_of
from blip_core.tables.captions import KEPT, SCREENS

JPEG_QUALITY = 95  # of what was PNG or WebP
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
    fields: dict[str, Any]  # what the source says of the image; None where it says nothing

    @property
    def file_name(self) -> str:
        return f"{self.key}.{kind_of(self.data)}"

    @property
    def texts(self) -> list[str]:
        return [c["text"] for c in self.candidates]

    @property
    def best(self) -> dict[str, Any]:
        """For those who take one text: the first that was kept."""
        return next((c for c in self.candidates if c["reason"] == KEPT), self.candidates[0])

    @property
    def first(self) -> str:
        return self.best["text"]

    def row(self) -> dict[str, Any]:
        """`text` for trainers that want one; `captions` and the columns beside it in the same order."""
        columns = {f"caption_{name}": [c[name] for c in self.candidates] for name in COLUMNS}
        facts = {"key": self.key, "image_id": self.image_id, "width": self.width, "height": self.height}
        return {"text": self.first, "captions": self.texts, **columns, **facts, **self.fields}

    @property
    def told(self) -> dict[str, Any]:
        """The fields as JSON has them: those that have a value; lists and objects are JSON in a text, as img2dataset writes `exif`."""
        found = {name: as_text(value) if isinstance(value, list | dict) else plain(value) for name, value in self.fields.items()}
        return {name: value for name, value in found.items() if value is not None}


COLUMNS = {
    **dict.fromkeys(("source", "reason"), "string"),
    **dict.fromkeys(("match", "itm", "itc"), "float64"),
    **dict.fromkeys(("round", "model", "sampler", "filter"), "string"),
    **dict.fromkeys(("candidate", "fused_web", "fused_synthetic", "seed"), "int64"),
    **dict.fromkeys(SCREENS, "bool"),
    "language": "string",
}


class Writer(ABC):
    one_kind = False  # whether loaders refuse or lose images of a second kind

    def __init__(self, folder: Path, types: dict[str, pa.DataType]):
        """`types`: of the items' fields."""
        self.folder, self.types = folder, types
        self._lists: dict[str, TextIO] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        for file in self._lists.values():
            file.close()

    @abstractmethod
    def write(self, split: str, stem: str, items: Iterator[Item]) -> None:
        """The items of a shard."""

    def _append(self, name: str, row: dict[str, Any], *, begin: str = "") -> None:
        """Add a row to the list of this name. JSON is written in ASCII: many read it in the encoding of their system."""
        between = ",\n" if name in self._lists else begin
        if name not in self._lists:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            self._lists[name] = (self.folder / name).open("w", encoding="ascii")
        self._lists[name].write(between + json.dumps(row))

    def _image(self, place: str, item: Item) -> str:
        """Write the image below `place`; returns its name there."""
        path = self.folder / place / item.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(item.data)
        return path.name


class _ShardWriter(Writer):
    """data/<split>-<number>-of-<count>: the names by which Hugging Face's loaders find every split, whatever it is called."""

    ending: str

    def __init__(self, folder: Path, types: dict[str, pa.DataType]):
        super().__init__(folder, types)
        self._counts: Counter[str] = Counter()
        (folder / "data").mkdir()

    def _next(self, split: str) -> Path:
        self._counts[split] += 1
        return self._path(split, self._counts[split] - 1)

    def _path(self, split: str, number: int, of: str = "") -> Path:
        return self.folder / "data" / f"{split}-{number:05d}{of}.{self.ending}"

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        super().__exit__(kind, *details)
        for split, total in self._counts.items() if kind is None else ():
            for number in range(total):
                self._path(split, number).rename(self._path(split, number, f"-of-{total:05d}"))


class WebDatasetWriter(_ShardWriter):
    """key.jpg (or .png, .webp), key.txt (one text) and key.json (all texts as `caption`; `candidates`: each with its scores).

    `candidates` is JSON in a string: Hugging Face's loader takes the types of a whole data set from five samples, and where a score is
    null in these, it refuses every number that comes later. Those of the members and fields stand in the card (`features`)."""

    ending, one_kind = "tar", True

    def write(self, split: str, stem: str, items: Iterator[Item]) -> None:
        with tarfile.open(self._next(split), "w", format=tarfile.GNU_FORMAT) as tar:
            for item in items:
                facts = {"key": item.key, "image_id": item.image_id, "width": item.width, "height": item.height}
                facts |= {"sha256": hashlib.sha256(item.data).hexdigest(), "caption": item.texts, "candidates": json.dumps(item.candidates)}
                facts |= item.told
                members = {kind_of(item.data): item.data, "txt": item.first.encode(), "json": json.dumps(facts).encode()}
                add_sample(tar, item.key, members)


class ImageFolderWriter(Writer):
    """metadata.parquet for each split, with a row for each image, and the images in a folder for each shard.

    Parquet, as loaders guess types in other metadata, and then a column that is null in one split is of another type there."""

    def __init__(self, folder: Path, types: dict[str, pa.DataType]):
        super().__init__(folder, types)
        self._tables: dict[str, pq.ParquetWriter] = {}

    def write(self, split: str, stem: str, items: Iterator[Item]) -> None:
        place, number = image_folder(split), stem.rpartition("-")[2]
        rows = [{"file_name": f"{number}/{self._image(f'{place}/{number}', item)}", **item.row()} for item in items]
        schema = pa.schema([("file_name", pa.string()), *_row_fields(), *self.types.items()])
        if split not in self._tables:
            self._tables[split] = _open_parquet(self.folder / place / "metadata.parquet", schema)
        self._tables[split].write_table(pa.Table.from_pylist(rows, schema))

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        super().__exit__(kind, *details)
        for table in self._tables.values():
            table.close()


def image_folder(split: str) -> str:
    """Loaders that go by names pass over a folder that is called by no split they know: by its name here, the crawl is for training."""
    return "train-web" if split == "web" else split


class ParquetWriter(_ShardWriter):
    """Parquet with image {bytes, path}; the schema tells Hugging Face's datasets that the column is an image."""

    ending = "parquet"

    def write(self, split: str, stem: str, items: Iterator[Item]) -> None:
        schema = _parquet_schema(self.types)
        with _open_parquet(self._next(split), schema) as out:
            while batch := list(islice(items, _ROW_GROUP)):
                rows = [{"image": {"bytes": i.data, "path": i.file_name}, **i.row()} for i in batch]
                out.write_table(pa.Table.from_pylist(rows, schema))


def _open_parquet(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True)


def _row_fields() -> list[tuple[str, pa.DataType]]:
    """Of Item.row(). The same for every generation, so that all splits and exports go together, whatever is null in them."""
    fields = [("text", pa.string()), ("captions", pa.list_(pa.string()))]
    fields += [(f"caption_{name}", pa.list_(pa.type_for_alias(kind))) for name, kind in COLUMNS.items()]
    return [*fields, ("key", pa.string()), ("image_id", pa.string()), ("width", pa.int32()), ("height", pa.int32())]


def _parquet_schema(types: dict[str, pa.DataType]) -> pa.Schema:
    fields = [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), *_row_fields(), *types.items()]
    features = {"image": {"_type": "Image"}, **{name: feature_of(kind) for name, kind in fields[1:]}}
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})})


class CocoWriter(Writer):
    """annotations/captions_<split>.json and images/<shard>/. COCO's numbers of images and captions are counted from 1."""

    def __init__(self, folder: Path, types: dict[str, pa.DataType]):
        super().__init__(folder, types)
        self.images, self.notes = count(1), count(1)

    def write(self, split: str, stem: str, items: Iterator[Item]) -> None:
        images, notes = (f"annotations/_{part}_{split}" for part in ("images", "notes"))
        for item in items:
            number = next(self.images)
            name = self._image(f"images/{stem}", item)
            facts = {"id": number, "file_name": f"{stem}/{name}", "width": item.width, "height": item.height}
            self._append(images, {**facts, "key": item.key, "identity": item.image_id, **item.told})
            for c in item.candidates:
                self._append(notes, {"image_id": number, "id": next(self.notes), "caption": c["text"], **{n: c[n] for n in COLUMNS}})

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        super().__exit__(kind, *details)
        splits = [name.rpartition("_images_")[2] for name in self._lists if "_images_" in name]
        for split in splits if kind is None else []:
            self._join(self.folder / "annotations", split)

    def _join(self, folder: Path, split: str) -> None:
        """The list of images before that of captions, in one file."""
        with (folder / f"captions_{split}.json").open("w", encoding="ascii") as out:
            for begin, part in (('{"info": {}, "licenses": [],\n"images": [', "images"), ('],\n"annotations": [', "notes")):
                out.write(begin)
                with (folder / f"_{part}_{split}").open(encoding="ascii") as rows:
                    shutil.copyfileobj(rows, out)
                os.unlink(folder / f"_{part}_{split}")
            out.write("]}\n")


class SalesforceWriter(Writer):
    """annotation/<split>.json as the public BLIP code reads it: an entry for each text, in held-out lists for each image."""

    def write(self, split: str, stem: str, items: Iterator[Item]) -> None:
        for item in items:
            image = f"{stem}/{self._image(f'images/{stem}', item)}"
            facts = {"image": image, "image_id": item.image_id, **item.told}
            entries = [{"caption": c["text"], **facts, **{n: c[n] for n in COLUMNS}} for c in item.candidates]
            if split in ("val", "test"):
                entries = [{"image": image, "caption": item.texts, **item.told}]
            for entry in entries:
                self._append(f"annotation/{split}.json", entry, begin="[")

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        for file in self._lists.values():
            file.write("]\n")
        super().__exit__(kind, *details)

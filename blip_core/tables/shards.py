"""Shards: immutable WebDataset tars of images, each with an index beside it for random reads.

`ShardWriter` makes them, `ShardImages` reads a sealed folder (one with a manifest.json). Equal images are equal bytes: the tar
holds no time, owner or machine. The index appears after its tar, so a shard with an index is whole.
"""

import hashlib
import os
import re
import tarfile
import uuid
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from blip_core.pictures.containers import kind_of
from blip_core.tables.captions import read_table, write_table
from blip_core.tables.manifest import read_manifest

KEY = re.compile(r"[A-Za-z0-9_-]{1,200}")

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("image_id", pa.string()),  # identity of the picture, as in the caption tables
        ("offset", pa.int64()),  # of the first byte of the image in the tar
        ("size", pa.int64()),  # bytes of the image
        ("width", pa.int32()),  # pixels
        ("height", pa.int32()),
        ("sha256", pa.string()),  # of the image
        ("phash", pa.uint64()),  # fingerprint, see duplicates.py; null: nobody looked, or a picture too plain for one
        ("dhash", pa.uint64()),
    ]
)

_OPEN_FILES = 256  # a quarter of the usual limit of a process


class ShardWriter:
    """Writes `<prefix>-00000.tar`, `-00001.tar`, ... of at most `num_images` each, with their indexes. Use as a context manager:
    when the block is left by an exception, the unfinished shard vanishes."""

    def __init__(self, folder: Path, prefix: str, *, num_images: int):
        self.folder, self.prefix, self.num_images = folder, prefix, num_images
        self.stems: list[str] = []
        self._file: BinaryIO | None = None
        self._rows: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, key: str, data: bytes, *, image_id: str, width: int, height: int, fingerprint: tuple[int, int] | None = None) -> str:
        """Append one JPEG, PNG or WebP; returns the stem of its shard."""
        assert KEY.fullmatch(key), key
        if len(self._rows) == self.num_images:
            self._finish()
        file = self._file or self._begin()
        file.write(_header(f"{key}.{kind_of(data)}", len(data)))
        offset = file.tell()
        file.write(data + bytes(-len(data) % tarfile.BLOCKSIZE))
        sha256 = hashlib.sha256(data).hexdigest()
        row = {"key": key, "image_id": image_id, "offset": offset, "size": len(data), "width": width, "height": height, "sha256": sha256}
        self._rows.append(row | dict(zip(("phash", "dhash"), fingerprint or (None, None), strict=True)))
        return self.stems[-1]

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._finish()
        elif self._file is not None:
            self._file.close()
            self._temporary.unlink(missing_ok=True)

    def _begin(self) -> BinaryIO:
        self.stems.append(f"{self.prefix}-{len(self.stems):05d}")
        self._temporary = self.folder / f"_tmp.{self.stems[-1]}.tar.{uuid.uuid4().hex}"
        self._file = self._temporary.open("wb")
        return self._file

    def _finish(self) -> None:
        if self._file is None:
            return
        self._file.write(bytes(2 * tarfile.BLOCKSIZE))
        self._file.write(bytes(-self._file.tell() % tarfile.RECORDSIZE))
        self._file.close()
        os.replace(self._temporary, self.folder / f"{self.stems[-1]}.tar")
        write_table(pa.Table.from_pylist(self._rows, INDEX_SCHEMA), index_path(self.folder, self.stems[-1]))
        self._file, self._rows = None, []


def index_path(folder: Path, stem: str) -> Path:
    return folder / f"{stem}.index.parquet"


def read_index(path: Path) -> pa.Table:
    """One shard's index. ValueError when it is missing, broken or none."""
    table = read_table(path)
    if not table.schema.equals(INDEX_SCHEMA):
        raise ValueError(f"{path}: no index of a shard: expected {INDEX_SCHEMA.names}, got {table.schema.names}; run ingest again")
    return table


class ShardImages:
    """Random access to the images of a sealed folder. Pickles without its open files, so any worker process may use it.

    `at_once`: of so many shards the index is held; who walks from shard to shard needs few, who jumps about needs all (None).
    """

    def __init__(self, folder: Path, *, at_once: int | None = None):
        self.folder, self.at_once = folder, at_once
        self.shards = [name.removesuffix(".tar") for name in sorted(read_manifest(folder)["files"]) if name.endswith(".tar")]
        self._indexes: OrderedDict[str, _Index] = OrderedDict()
        self._files: OrderedDict[str, BinaryIO] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_indexes": OrderedDict(), "_files": OrderedDict()}

    def bytes(self, shard: str, key: str) -> bytes:
        """The stored file. ValueError names a shard or key that is not there and a tar that is too short."""
        index = self._index(shard)
        row = index.row(key)
        offset, size = int(index.offset[row]), int(index.size[row])
        file = self._file(shard)  # held while it is read: another thread may push it out meanwhile
        data = os.pread(file.fileno(), size, offset)
        if len(data) != size:
            tar = self.folder / f"{shard}.tar"
            raise ValueError(f"{tar}: image {key!r} should have {size} bytes at {offset}, got {len(data)}; run ingest again")
        return data

    def size(self, shard: str, key: str) -> tuple[int, int]:
        """Width and height in pixels."""
        index = self._index(shard)
        row = index.row(key)
        return int(index.width[row]), int(index.height[row])

    def _index(self, shard: str) -> "_Index":
        index = self._indexes.get(shard)
        if index is None:
            if shard not in self.shards:
                raise ValueError(f"{self.folder}: no shard {shard!r} among {len(self.shards)}; captions and shards are not of one ingest")
            index = self._indexes[shard] = _Index(index_path(self.folder, shard))
            if self.at_once is not None and len(self._indexes) > self.at_once:
                self._indexes.popitem(last=False)
        return index

    def _file(self, shard: str) -> BinaryIO:
        """Open files are few; one that falls out is closed when the last thread that reads it lets go."""
        file = self._files.pop(shard, None) or (self.folder / f"{shard}.tar").open("rb", buffering=0)
        self._files[shard] = file
        if len(self._files) > _OPEN_FILES:
            self._files.popitem(last=False)
        return file


class _Index:
    """One shard's index in memory: 28 bytes an image and its key."""

    def __init__(self, path: Path):
        table = read_index(path)
        self.path = path
        self.offset, self.size, self.width, self.height = (table[c].to_numpy() for c in ("offset", "size", "width", "height"))
        keys = np.array(table["key"].to_pylist(), dtype=np.bytes_)
        self._order = np.argsort(keys).astype(np.int32)
        self._keys = keys[self._order]

    def row(self, key: str) -> int:
        wanted = key.encode()
        place = int(self._keys.searchsorted(wanted))
        if place == len(self._keys) or self._keys[place] != wanted:
            raise ValueError(f"{self.path}: no image {key!r} among its {len(self._keys)}; captions and shards are not of one ingest")
        return int(self._order[place])


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644  # mtime, uid and gid are 0 in a fresh TarInfo
    return info.tobuf(tarfile.GNU_FORMAT)

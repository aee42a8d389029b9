"""Shards: immutable WebDataset tars of JPEG images, each with an index beside it for random reads.

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
from typing import BinaryIO

import pyarrow as pa

from blip_core.captions import read_manifest, read_table, write_table

KEY = re.compile(r"[A-Za-z0-9_-]{1,200}")

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("image_id", pa.string()),  # identity of the picture, as in the caption tables
        ("offset", pa.int64()),  # of the first byte of the JPEG in the tar
        ("size", pa.int64()),  # bytes of the JPEG
        ("width", pa.int32()),  # pixels
        ("height", pa.int32()),
        ("sha256", pa.string()),  # of the JPEG
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
        self._rows: list[dict] = []
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, key: str, jpeg: bytes, *, image_id: str, width: int, height: int) -> str:
        """Append one image; returns the stem of its shard."""
        assert KEY.fullmatch(key), key
        if len(self._rows) == self.num_images:
            self._finish()
        if self._file is None:
            self._begin()
        self._file.write(_header(f"{key}.jpg", len(jpeg)))
        offset = self._file.tell()
        self._file.write(jpeg + bytes(-len(jpeg) % tarfile.BLOCKSIZE))
        sha256 = hashlib.sha256(jpeg).hexdigest()
        self._rows.append(
            {"key": key, "image_id": image_id, "offset": offset, "size": len(jpeg), "width": width, "height": height, "sha256": sha256}
        )
        return self.stems[-1]

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self._finish()
        elif self._file is not None:
            self._file.close()
            self._temporary.unlink(missing_ok=True)

    def _begin(self) -> None:
        self.stems.append(f"{self.prefix}-{len(self.stems):05d}")
        self._temporary = self.folder / f"_tmp.{self.stems[-1]}.tar.{uuid.uuid4().hex}"
        self._file = self._temporary.open("wb")

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
    """Random access to the images of a sealed folder. Pickles without its open files, so any worker process may use it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.shards = [name.removesuffix(".tar") for name in sorted(read_manifest(folder)["files"]) if name.endswith(".tar")]
        self._indexes: dict[str, _Index] = {}
        self._files: OrderedDict[str, BinaryIO] = OrderedDict()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_indexes": {}, "_files": OrderedDict()}

    def bytes(self, shard: str, key: str) -> bytes:
        """The stored JPEG. ValueError names a shard or key that is not there and a tar that is too short."""
        index = self._index(shard)
        row = index.row(key)
        offset, size = int(index.offset[row]), int(index.size[row])
        data = os.pread(self._file(shard).fileno(), size, offset)
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
        if shard not in self._indexes:
            if shard not in self.shards:
                raise ValueError(f"{self.folder}: no shard {shard!r} among {len(self.shards)}; captions and shards are not of one ingest")
            self._indexes[shard] = _Index(index_path(self.folder, shard))
        return self._indexes[shard]

    def _file(self, shard: str) -> BinaryIO:
        """Open files are few; one that falls out is closed when the last thread that reads it lets go."""
        file = self._files.pop(shard, None) or (self.folder / f"{shard}.tar").open("rb", buffering=0)
        self._files[shard] = file
        if len(self._files) > _OPEN_FILES:
            self._files.popitem(last=False)
        return file


class _Index:
    """One shard's index in memory: 40 bytes an image and its key."""

    def __init__(self, path: Path):
        table = read_index(path)
        self.path = path
        self.offset, self.size, self.width, self.height = (table[c].to_numpy() for c in ("offset", "size", "width", "height"))
        self._rows = {key: row for row, key in enumerate(table["key"].to_pylist())}

    def row(self, key: str) -> int:
        if key not in self._rows:
            raise ValueError(f"{self.path}: no image {key!r} among its {len(self._rows)}; captions and shards are not of one ingest")
        return self._rows[key]


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644  # mtime, uid and gid are 0 in a fresh TarInfo
    return info.tobuf(tarfile.GNU_FORMAT)

"""Near copies by what an image encoder makes of the pictures: those of held-out ones leave, those within the crawl are joined or dropped.

What the hashes found goes first. A picture that they joined to an earlier one shares the fate of that one, and is not sought anew.
"""

import logging
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from blip_core.compute.ahead import read_ahead
from blip_core.config.intake import MeaningConfig
from blip_core.config.screens import Screen
from blip_core.files.atomic import new_file
from blip_core.intake.alike import firsts, nearest, on_grid, require_faiss
from blip_core.intake.embedder import Embedder, Prepared, load_embedder
from blip_core.intake.near_copies import Places, drop_leaks, join_copies
from blip_core.intake.staged import Staged
from blip_core.intake.stored import digest, picture
from blip_core.tables.shards import index_path, read_index

log = logging.getLogger(__name__)

REASON, HELDOUT_REASON = "near_copy_by_meaning", "heldout_near_copy_by_meaning"


@dataclass
class Embeddings:
    """Those of whole shards, made by `embedder` where none are in the folder `kept`. `used`: the files that were asked for."""

    cfg: MeaningConfig
    embedder: Embedder
    kept: Path
    used: set[Path] = field(default_factory=set)

    @staticmethod
    def open(cfg: MeaningConfig | None, kept: Path) -> "Embeddings | None":
        """ValueError when faiss is missing, or the folder is no image encoder."""
        if cfg is None:
            return None
        require_faiss()
        return Embeddings(cfg, load_embedder(cfg), kept)

    def of(self, shard: Staged, *, mirrored: bool = False) -> Path:
        """An array as `on_grid` gives it, a row for each picture of the shard's index."""
        index = read_index(index_path(shard.task.folder, shard.stem))
        asked = self.embedder.identity + " mirrored" * mirrored
        path = self.kept / f"{digest(index, asked)}.npy"
        if not path.exists():
            vectors = self._made(shard, index, mirrored=mirrored)
            with new_file(path) as temporary, temporary.open("wb") as file:
                np.save(file, vectors)
        self.used.add(path)
        return path

    def _made(self, shard: Staged, index: pa.Table, *, mirrored: bool) -> np.ndarray:
        places, size = list(zip(index["offset"].to_pylist(), index["size"].to_pylist(), strict=True)), self.embedder.batch_size
        batches = (places[start : start + size] for start in range(0, len(places), size))
        with shard.tar.open("rb") as tar:
            read = partial(self._read, tar, mirrored=mirrored)
            vectors = np.concatenate([self.embedder.vectors(own) for _, own in read_ahead(read, batches)])
        broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(broken):
            raise ValueError(
                f"the encoder of ingest.near_copies.meaning gives {index['key'][int(broken[0])]} (and {len(broken) - 1} more of "
                f"{len(index)} pictures) an embedding with NaN or infinite numbers; try precision: fp32, or another folder"
            )
        return on_grid(vectors)

    def _read(self, tar: BinaryIO, place: tuple[int, int], *, mirrored: bool) -> Prepared:
        pixels = picture(tar, *place)
        return self.embedder.prepared(np.ascontiguousarray(pixels[:, ::-1]) if mirrored else pixels)


class Vectors:
    """Some rows of several files, as one array that is read where it is asked for."""

    def __init__(self, files: list[Path], rows: list[np.ndarray]):
        self.files, self.rows = files, rows
        self._ends = np.cumsum([len(own) for own in rows])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, _ = part.indices(len(self))
        found = []
        for number in range(*np.searchsorted(self._ends, [start, stop - 1], side="right") + [0, 1]):
            begin = self._ends[number] - len(self.rows[number])
            own = self.rows[number][max(0, start - begin) : stop - begin]
            found.append(np.load(self.files[number], mmap_mode="r")[own])
        return np.concatenate(found)


def drop_near_heldout(heldout: list[Staged], training: list[Staged], embeddings: Embeddings, cosine: float) -> None:
    known, vectors = _embedded(heldout, embeddings)
    places, own = _embedded(training, embeddings)
    mirrored = [embeddings.of(shard, mirrored=True) for shard in heldout]
    both = Vectors(vectors.files + mirrored, vectors.rows + vectors.rows)
    found, cosines = nearest(own, both, cosine=cosine)
    drop_leaks(places, known, found, HELDOUT_REASON, lambda number: _told(cosines[number]))


def join(shards: list[Staged], embeddings: Embeddings, then: Screen, cosine: float) -> None:
    places, vectors = _embedded(shards, embeddings)
    first, cosines = firsts(vectors, cosine=cosine)
    joined = [dict(shard.same_as) for shard in shards]  # by the hashes
    became = join_copies(places, first, then, REASON, lambda number: _told(cosines[number]))
    for shard, own in zip(shards, joined, strict=True):
        for key, image_id in own.items():
            if image_id in became and then == "drop":
                shard.dropped[key] = (REASON, f"by its hashes a near copy of one that is a near copy of {became[image_id]}")
            elif image_id in became:
                shard.same_as[key] = became[image_id]


def _embedded(shards: list[Staged], embeddings: Embeddings) -> tuple[Places, Vectors]:
    """Of what is still kept, is joined to no other and has an embedding."""
    files, rows = [], []
    for shard in tqdm(shards, desc="embed", unit="shard", disable=None):
        files.append(embeddings.of(shard))
        keys = shard.index("key")["key"]
        some = np.load(files[-1], mmap_mode="r").any(axis=1)
        stays = pc.and_(shard.stays(keys), pc.invert(pc.is_in(keys, pa.array(shard.same_as, pa.string())))).to_numpy()
        rows.append(np.flatnonzero(stays & some))
        without = np.flatnonzero(stays & ~some)
        if len(without) and not shard.counts["missing_embedding"]:  # so that it is said once
            log.warning(
                "%d pictures, as %s, have an embedding of zeros: they are no copies by meaning", len(without), keys[int(without[0])]
            )
        shard.counts["missing_embedding"] = len(without)
    return Places.of(shards, rows), Vectors(files, rows)


def _told(cosine: float) -> str:
    return f"the cosine of their embeddings is {cosine:.4f}"

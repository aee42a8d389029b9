"""The second half of ingest: of all units together, what only the whole can show is set aside, and the shards get their numbers.

A key that two units share is kept once. A picture that is held out leaves whatever part comes later in PROTECTED, and so do its near
copies on the training side. Near copies within the crawl are marked or dropped as the parameters say. In memory are eight bytes a key
and sixteen a picture; while near copies are sought, some 250 for a moment.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blip_core.config.intake import IngestConfig, NearCopiesConfig
from blip_core.config.screens import PicturesConfig
from blip_core.intake.beside import FieldTables
from blip_core.intake.duplicates import distances, fingerprint, firsts, nearest
from blip_core.intake.units import Task, fields_path, quarantine_row
from blip_core.pictures.images import decode_rgb
from blip_core.screens.fields import screen_pictures
from blip_core.tables.captions import NO_TEXT, read_table, write_table
from blip_core.tables.counting import Walk, repeated
from blip_core.tables.shards import ShardWriter, index_path, read_index
from blip_core.texts.screens import completion, tally

PROTECTED = ("test", "val", "train", "web")  # a picture that occurs twice belongs to the first of them
HELDOUT = ("test", "val")
GENERATION = ("web", "train")


@dataclass
class Staged:
    """One shard as its unit left it, and what the whole says of its images."""

    task: Task
    stem: str
    dropped: dict[str, tuple[str, str]] = field(default_factory=dict)  # key -> reason, detail
    same_as: dict[str, str] = field(default_factory=dict)  # key -> image_id of the picture that it is a near copy of
    marked: dict[str, list[str]] = field(default_factory=dict)  # key -> the screens of pictures that hit it
    screened: Counter[str] = field(default_factory=Counter)  # what those screens count

    def index(self, *columns: str) -> pa.Table:
        return read_table(index_path(self.task.folder, self.stem), list(columns))

    def texts(self) -> pa.Table:
        """Its caption table as the whole wants it."""
        return self.kept(read_table(self.task.folder / f"{self.stem}.parquet"))

    def kept(self, table: pa.Table) -> pa.Table:
        """Rows of these images that stay, with the identity of their picture."""
        if self.dropped:
            table = table.filter(pc.invert(pc.is_in(table["key"], pa.array(self.dropped, pa.string()))))
        if self.same_as:
            rows = zip(table["key"].to_pylist(), table["image_id"].to_pylist(), strict=True)
            ids = pa.array([self.same_as.get(key, image_id) for key, image_id in rows], pa.string())
            table = table.set_column(table.column_names.index("image_id"), "image_id", ids)
        return table


def choose(tasks: list[Task], cfg: NearCopiesConfig, pictures: PicturesConfig) -> dict[str, list[Staged]]:
    """The shards of each split in order, with what the whole says of their images."""
    staged = {split: list(_staged(tasks, split)) for split in PROTECTED}
    heldout: dict[str, str] = {}  # sha256 -> key
    for split in PROTECTED:
        _drop_repeated_keys(staged[split])
        for shard in staged[split]:
            _drop_copies(shard, heldout)
        if split in HELDOUT:
            for shard in staged[split]:
                index = shard.index("sha256", "key")
                heldout |= zip(index["sha256"].to_pylist(), index["key"].to_pylist(), strict=True)
    for shard in staged["web"] if pictures.screens else ():
        _screen(shard, pictures)
    if cfg.heldout_distance is not None:
        _drop_near_heldout([s for split in HELDOUT for s in staged[split]], staged["train"] + staged["web"], cfg.heldout_distance)
    if cfg.web != "off":
        _join_near_copies(staged["web"], cfg)
    return staged


def quarantined(staged: dict[str, list[Staged]]) -> list[dict[str, Any]]:
    """A row for each image that was set aside here."""
    return [
        quarantine_row(shard.task.part, key, f"{shard.task.place}/{shard.task.unit_name}", *why)
        for own in staged.values()
        for shard in own
        for key, why in shard.dropped.items()
    ]


def _staged(tasks: list[Task], split: str) -> Iterator[Staged]:
    part = "web" if split == "web" else "clean"
    for task in tasks:
        if task.part == part:
            yield from (Staged(task, tar.stem) for tar in sorted(task.folder.glob(f"{split}-*.tar")))


def _drop_repeated_keys(shards: list[Staged]) -> None:
    keys = set(repeated(Walk(lambda: (s.index("key") for s in shards)), ["key"])["key"].to_pylist())
    seen: set[str] = set()
    for shard in shards if keys else ():
        for key in shard.index("key")["key"].to_pylist():
            if key in seen:
                shard.dropped[key] = ("duplicate_key", "an earlier file has it")
            elif key in keys:
                seen.add(key)


def _drop_copies(shard: Staged, heldout: dict[str, str]) -> None:
    index = shard.index("key", "sha256")
    leaks = index.filter(pc.is_in(index["sha256"], pa.array(heldout, pa.string())))
    for key, sha256 in zip(leaks["key"].to_pylist(), leaks["sha256"].to_pylist(), strict=True):
        shard.dropped[key] = ("leaks_heldout", f"the same bytes as {heldout[sha256]}")


def _screen(shard: Staged, cfg: PicturesConfig) -> None:
    """Before near copies are sought: one must not be the copy of a picture that a screen drops."""
    table = read_table(fields_path(shard.task.folder, shard.stem))
    table = table.filter(pc.invert(pc.is_in(table["key"], pa.array(shard.dropped, pa.string()))))
    found = screen_pictures(table, cfg.screens)
    shard.dropped |= found.dropped
    shard.marked, shard.screened = found.marked, found.counts


@dataclass(frozen=True)
class _Pictures:
    """Fingerprints uint64 [n, 2] of what is still kept of some shards, and where each stands: number of the shard and row."""

    shards: list[Staged]
    prints: np.ndarray
    shard: np.ndarray
    row: np.ndarray

    def values(self, numbers: np.ndarray, column: str) -> list[str]:
        """What the index says of these."""
        found = [""] * len(numbers)
        for shard in np.unique(self.shard[numbers]):
            values = self.shards[shard].index(column)[column]
            for at in np.flatnonzero(self.shard[numbers] == shard):
                found[at] = values[int(self.row[numbers[at]])].as_py()
        return found


def _pictures(shards: list[Staged]) -> _Pictures:
    prints, numbers, rows = [np.empty((0, 2), np.uint64)], [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    for number, shard in enumerate(shards):
        index = shard.index("key", "phash", "dhash")
        there = pc.and_(index["phash"].is_valid(), pc.invert(pc.is_in(index["key"], pa.array(shard.dropped, pa.string()))))
        row = np.flatnonzero(there)
        index = index.take(row)
        prints.append(np.stack([index["phash"].to_numpy(), index["dhash"].to_numpy()], axis=1))
        numbers.append(np.full(len(row), number, np.int32))
        rows.append(row.astype(np.int32))
    return _Pictures(shards, np.concatenate(prints), np.concatenate(numbers), np.concatenate(rows))


def _drop_near_heldout(heldout: list[Staged], training: list[Staged], distance: int) -> None:
    known, ours = _pictures(heldout), _pictures(training)
    keys = known.values(np.arange(len(known.prints)), "key")
    prints = np.concatenate([known.prints, _mirrored(known)])
    found = nearest(ours.prints, prints, distance=distance)
    hits = np.flatnonzero(found >= 0)
    for hit, key in zip(hits, ours.values(hits, "key"), strict=True):
        number = found[hit]
        p, d = distances(ours.prints[hit], prints[number])
        what = "the mirror image of " if number >= len(keys) else ""
        detail = f"a near copy of {what}{keys[number % len(keys)]}: {p} and {d} of 64 bits differ"
        ours.shards[ours.shard[hit]].dropped[key] = ("heldout_near_copy", detail)


def _mirrored(pictures: _Pictures) -> np.ndarray:
    """Fingerprints of the pictures as a mirror shows them. They cannot be had from the fingerprints: a tenth would be missed."""
    prints = pictures.prints.copy()
    for number, shard in enumerate(pictures.shards):
        index = shard.index("offset", "size")
        own = np.flatnonzero(pictures.shard == number)
        with (shard.task.folder / f"{shard.stem}.tar").open("rb") as tar:
            for at in own:
                row = int(pictures.row[at])
                data = os.pread(tar.fileno(), index["size"][row].as_py(), index["offset"][row].as_py())
                prints[at] = fingerprint(decode_rgb(data)[:, ::-1]) or prints[at]
    return prints


def _join_near_copies(shards: list[Staged], cfg: NearCopiesConfig) -> None:
    """Near copies within the crawl: dropped, or given the identity of the first. What has the same bytes has that identity already."""
    pictures = _pictures(shards)
    first = firsts(pictures.prints, distance=cfg.web_distance)
    copies = np.flatnonzero(first != np.arange(len(first)))
    columns = [pictures.values(numbers, c) for numbers, c in ((copies, "key"), (copies, "image_id"), (first[copies], "image_id"))]
    originals = pictures.values(first[copies], "key") if cfg.web == "drop" else [""] * len(copies)
    for copy, key, own_id, first_id, original in zip(copies, *columns, originals, strict=True):
        shard = shards[pictures.shard[copy]]
        if own_id == first_id:
            continue
        if cfg.web == "drop":
            p, d = distances(pictures.prints[copy], pictures.prints[first[copy]])
            shard.dropped[key] = ("near_copy", f"a near copy of {original}: {p} and {d} of 64 bits differ")
        else:
            shard.same_as[key] = first_id


def place(
    staged: dict[str, list[Staged]], shards: Path, generation: Path, heldout: Path, fields: FieldTables, *, cfg: IngestConfig
) -> Counter[str]:
    """Number the shards and put them and their tables into place; returns counts of images, texts, shards and what was marked."""
    counts: Counter[str] = Counter()
    screen = completion(Walk(lambda: (shard.texts() for shard in staged["web"])), cfg.screens)
    for split in PROTECTED:
        tables = generation if split in GENERATION else heldout
        for shard in staged[split]:
            stem = f"{split}-{counts[f'shards_{split}']:05d}"
            table = screen(shard.texts()) if split == "web" else shard.texts()
            fields.place(shard.task.folder, shard.stem, stem, dropped=shard.dropped, marked=shard.marked)
            counts.update(shard.screened)
            if table.num_rows:
                blank = pc.sum(pc.equal(table["reason"], NO_TEXT), min_count=0).as_py()
                _place(shard, shards, stem, num_images=cfg.shard_images)
                write_table(table, tables / f"{stem}.parquet")
                counts.update({f"images_{split}": pc.count_distinct(table["key"]).as_py(), f"texts_{split}": table.num_rows - blank})
                counts.update({"images_without_text": blank})
                counts.update({f"shards_{split}": 1}, **tally(table, cfg.screens) if split == "web" else {})
    if cfg.near_copies.web == "mark":
        counts["marked_near_copy"] = sum(len(shard.same_as) for shard in staged["web"])
    return counts


def _place(shard: Staged, out: Path, stem: str, *, num_images: int) -> None:
    """One staged shard under its final name: linked where it stays as it is, written anew without the dropped rows otherwise."""
    old = shard.task.folder / f"{shard.stem}.tar"
    index = shard.kept(read_index(index_path(old.parent, shard.stem)))
    if shard.dropped:
        _rewrite(old, index, out, stem, num_images=num_images)
    else:
        _link(old, out / f"{stem}.tar")
        if shard.same_as:
            write_table(index, index_path(out, stem))
        else:
            _link(index_path(old.parent, shard.stem), index_path(out, stem))


def _rewrite(old: Path, index: pa.Table, out: Path, stem: str, *, num_images: int) -> None:
    folder = out / f"_tmp.{stem}"
    with old.open("rb") as tar, ShardWriter(folder, "kept", num_images=num_images) as writer:
        for row in index.to_pylist():
            data = os.pread(tar.fileno(), row["size"], row["offset"])
            prints = None if row["phash"] is None else (row["phash"], row["dhash"])
            writer.add(row["key"], data, image_id=row["image_id"], width=row["width"], height=row["height"], fingerprint=prints)
    os.rename(folder / "kept-00000.tar", out / f"{stem}.tar")
    os.rename(index_path(folder, "kept-00000"), index_path(out, stem))
    folder.rmdir()


def _link(source: Path, out: Path) -> None:
    """A second name for the bytes, so that the staged unit stays whole until all is done; a copy on another file system."""
    try:
        os.link(source, out)
    except OSError:
        shutil.copyfile(source, out)

"""The second half of ingest: of all units together, what only the whole can show is set aside, and the shards get their numbers.

A key that two units share is kept once. A picture that is held out leaves whatever part comes later in PROTECTED, and so do its near
copies on the training side. Near copies within the crawl are marked or dropped as the parameters say. In memory are eight bytes a key
and sixteen a picture; what near copies take, near_copies.py says.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from blip_core.config.intake import IngestConfig, NearCopiesConfig
from blip_core.config.screens import PicturesConfig
from blip_core.intake import by_meaning, near_copies
from blip_core.intake.beside import FieldTables
from blip_core.intake.by_meaning import Embeddings
from blip_core.intake.staged import Staged
from blip_core.intake.units import Task, fields_path, quarantine_row
from blip_core.screens.fields import screen_pictures
from blip_core.tables.captions import NO_TEXT, read_table, write_table
from blip_core.tables.counting import Walk, repeated
from blip_core.tables.shards import ShardWriter, index_path, read_index
from blip_core.texts.screens import completion, tally

PROTECTED = ("test", "val", "train", "web")  # a picture that occurs twice belongs to the first of them
HELDOUT = ("test", "val")
GENERATION = ("web", "train")


def choose(tasks: list[Task], cfg: NearCopiesConfig, pictures: PicturesConfig, embeddings: Embeddings | None) -> dict[str, list[Staged]]:
    """The shards of each split in order, with what the whole says of their images. `embeddings`: where cfg.meaning asks for some."""
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
    _set_near_copies_aside(staged, cfg, embeddings)
    return staged


def quarantined(staged: dict[str, list[Staged]]) -> list[dict[str, Any]]:
    """A row for each image that was set aside here."""
    return [
        quarantine_row(shard.task.part, key, f"{shard.task.place}/{shard.task.unit_name}", *why)
        for own in staged.values()
        for shard in own
        for key, why in shard.dropped.items()
    ]


def _set_near_copies_aside(staged: dict[str, list[Staged]], cfg: NearCopiesConfig, embeddings: Embeddings | None) -> None:
    """First what leaks, by the hashes and then by meaning; then the crawl likewise."""
    heldout, training = [s for split in HELDOUT for s in staged[split]], staged["train"] + staged["web"]
    if cfg.heldout_distance is not None:
        near_copies.drop_near_heldout(heldout, training, cfg.heldout_distance)
    if embeddings and embeddings.cfg.heldout_cosine is not None:
        by_meaning.drop_near_heldout(heldout, training, embeddings, embeddings.cfg.heldout_cosine)
    if cfg.web != "off":
        near_copies.join(staged["web"], cfg.web, cfg.web_distance)
    if embeddings and embeddings.cfg.web != "off":
        by_meaning.join(staged["web"], embeddings, embeddings.cfg.web, embeddings.cfg.web_cosine)


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
    table = table.filter(shard.stays(table["key"]))
    found = screen_pictures(table, cfg.screens)
    shard.dropped |= found.dropped
    shard.marked = found.marked
    shard.counts.update(found.counts)


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
            counts.update(shard.counts)
            if table.num_rows:
                blank = pc.sum(pc.equal(table["reason"], NO_TEXT), min_count=0).as_py()
                _place(shard, shards, stem, num_images=cfg.shard_images)
                write_table(table, tables / f"{stem}.parquet")
                counts.update({f"images_{split}": pc.count_distinct(table["key"]).as_py(), f"texts_{split}": table.num_rows - blank})
                counts.update({"images_without_text": blank})
                counts.update({f"shards_{split}": 1}, **tally(table, cfg.screens) if split == "web" else {})
    return counts


def _place(shard: Staged, out: Path, stem: str, *, num_images: int) -> None:
    """One staged shard under its final name: linked where it stays as it is, written anew without the dropped rows otherwise."""
    old = shard.tar
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

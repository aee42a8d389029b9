"""The first half of ingest: one unit of the input becomes a folder of shards, caption tables and a quarantine table.

A unit's result depends on the unit and the parameters alone. It appears by rename, so units may run anywhere, in any order, and a
killed run goes on with the units that are missing.
"""

import hashlib
import os
import shutil
import uuid
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from blip_core.captions import KEPT, caption_table, write_json, write_table
from blip_core.config import IngestConfig
from blip_core.formats import Record, RejectedRow, deal_split, format_module
from blip_core.images import admit
from blip_core.rejected import Rejected
from blip_core.shards import KEY, ShardWriter
from blip_core.texts import clean_text

QUARANTINE_SCHEMA = pa.schema([(name, pa.string()) for name in ("key", "where", "reason", "detail", "part")])
DEALT = {"train": 0.8, "val": 0.1, "test": 0.1}  # of a clean set whose files name no split

_MOST_DETAIL = 300


@dataclass(frozen=True)
class Task:
    """One unit of one part (web or clean) and the folder that it becomes."""

    part: str
    place: str  # of the part below the data folder: what `where` begins with
    format: str
    unit: object
    folder: Path
    cfg: IngestConfig


def take_in(task: Task) -> None:
    """Read the unit and write its folder; nothing to do where it is there."""
    if task.folder.exists():
        return
    temporary = task.folder.parent / f"_tmp.{task.folder.name}.{uuid.uuid4().hex}"
    try:
        with ExitStack() as stack:
            intake = _Intake(task, temporary, stack)
            for item in format_module(task.format).read(task.unit):
                intake.take(item)
        intake.write_tables()
        _rename(temporary, task.folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def quarantine_row(part: str, key: str, where: str, reason: str, detail: str) -> dict[str, str]:
    """A row whose texts, which may come from a hostile file, fit into a table and on a screen."""
    row = {"key": key, "where": where, "reason": reason, "detail": detail, "part": part}
    return {name: text.encode("utf-8", "backslashreplace").decode()[:_MOST_DETAIL] for name, text in row.items()}


def _rename(temporary: Path, folder: Path) -> None:
    try:
        os.rename(temporary, folder)
    except OSError:
        if not folder.exists():  # another process was faster, with the same bytes
            raise


class _Intake:
    """What was taken from one unit so far. `lost` counts the texts that were set aside, one for what has no known number."""

    def __init__(self, task: Task, folder: Path, stack: ExitStack):
        self.task, self.folder, self.stack = task, folder, stack
        self.lost = 0
        self._keys: set[str] = set()
        self._writers: dict[str, ShardWriter] = {}
        self._captions: dict[str, list[dict]] = defaultdict(list)  # by the stem of the shard
        self._quarantine: list[dict] = []
        folder.mkdir(parents=True)

    def take(self, item: Record | RejectedRow) -> None:
        if isinstance(item, RejectedRow):
            self._set_aside(self._key(item.key, item.split), item.where, Rejected(item.reason, item.detail), texts=1)
        else:
            self._take_record(item)

    def write_tables(self) -> None:
        for stem, rows in self._captions.items():
            write_table(caption_table(rows), self.folder / f"{stem}.parquet")
        write_table(pa.Table.from_pylist(self._quarantine, QUARANTINE_SCHEMA), self.folder / "quarantine.parquet")
        write_json({"lost": self.lost}, self.folder / "counts.json")

    def _take_record(self, record: Record) -> None:
        split = self._split(record)
        key = self._key(record.key, split)
        texts = self._texts(record, key)
        if not texts:
            return
        try:
            self._check_key(key)
            cfg = self.task.cfg
            jpeg, width, height = admit(record.image, cfg.images, short_side=cfg.short_side, quality=cfg.quality)
        except Rejected as e:
            self._set_aside(key, record.where, e, texts=len(texts))
            return
        self._keys.add(key)
        self._store(split, key, record, jpeg, (width, height), texts)

    def _store(self, split: str, key: str, record: Record, jpeg: bytes, size: tuple[int, int], texts: list[str]) -> None:
        if split == "web":
            source, image_id = "web", hashlib.sha256(jpeg).hexdigest()[:16]
        else:
            source, image_id = "human", f"clean-{record.image_id or record.key}"
        stem = self._writer(split).add(key, jpeg, image_id=image_id, width=size[0], height=size[1])
        self._captions[stem] += [
            {"key": key, "image_id": image_id, "text": text, "source": source, "candidate": i, "reason": KEPT}
            for i, text in enumerate(texts)
        ]

    def _split(self, record: Record) -> str:
        if self.task.part == "web":
            return "web"
        return record.split or deal_split(record.image_id or record.key, DEALT)

    def _key(self, key: str, split: str | None) -> str:
        """The key by which the image is known from here on; a row without one has none."""
        prefix = "web" if self.task.part == "web" else split
        return f"{prefix}-{key}" if key and prefix else key

    def _texts(self, record: Record, key: str) -> list[str]:
        """The texts that can be used; the others are set aside one by one."""
        texts = []
        for text in record.texts:
            try:
                texts.append(clean_text(text, self.task.cfg.texts))
            except Rejected as e:
                self._set_aside(key, record.where, e, texts=1)
        return texts

    def _check_key(self, key: str) -> None:
        if not KEY.fullmatch(key):
            raise Rejected("unsafe_key", f"{key[:100]!r}: a key may hold up to 200 of A-Z a-z 0-9 _ -")
        if key in self._keys:
            raise Rejected("duplicate_key", "an earlier sample has it; the members of a sample must stand together, and keys be unique")

    def _writer(self, split: str) -> ShardWriter:
        if split not in self._writers:
            self._writers[split] = self.stack.enter_context(ShardWriter(self.folder, split, num_images=self.task.cfg.shard_images))
        return self._writers[split]

    def _set_aside(self, key: str, where: str, rejected: Rejected, *, texts: int) -> None:
        self.lost += texts
        place = f"{self.task.place}/{where}"
        self._quarantine.append(quarantine_row(self.task.part, key, place, rejected.reason, rejected.detail))

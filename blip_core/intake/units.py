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
from typing import Any

import pyarrow as pa

from blip_core.config.intake import IngestConfig
from blip_core.files.content import hash64, write_json
from blip_core.files.rejected import Rejected
from blip_core.intake.account import hashed
from blip_core.intake.bounds import bounded, survive
from blip_core.intake.duplicates import fingerprint
from blip_core.intake.formats import Record, RejectedRow, deal_split, format_module
from blip_core.metadata.columns import ShardColumns
from blip_core.metadata.fields import Fields, free_name
from blip_core.metadata.keeping import Keeping
from blip_core.pictures.images import Admitted, admit
from blip_core.screens.measures import measure
from blip_core.tables.captions import KEPT, NO_TEXT, caption_table, write_table
from blip_core.tables.shards import KEY, ShardWriter
from blip_core.texts.clean import lost_texts, usable
from blip_core.texts.screens import fill

QUARANTINE_SCHEMA = pa.schema([(name, pa.string()) for name in ("key", "where", "reason", "detail", "part")])

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

    @property
    def unit_name(self) -> str:
        return getattr(self.unit, "name", str(self.unit))


def take_in(task: Task, *, careful: bool = False) -> None:
    """Read the unit and write its folder; nothing to do where it is there. `careful`: an image that would end this process is noticed."""
    if task.folder.exists():
        return
    temporary = task.folder.parent / f"_tmp.{task.folder.name}.{uuid.uuid4().hex}"
    try:
        with ExitStack() as stack:
            intake = _Intake(task, temporary, stack, careful=careful)
            for item in format_module(task.format).read(task.unit):
                intake.take(item)
        intake.write_tables()
        _rename(temporary, task.folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def with_measured(fields: Fields, measured: dict[str, float]) -> Fields:
    """A field of the source that is called as one of ours gets another name."""
    values, types = ({free_name(name, measured): value for name, value in found.items()} for found in (fields.values, fields.types))
    return Fields({**values, **measured}, types) if measured else fields


def fields_path(folder: Path, stem: str) -> Path:
    """Of a staged shard's table of fields."""
    return folder / f"{stem}.fields.parquet"


def temporary_folders(tasks: list[Task]) -> list[Path]:
    """What was begun of these and neither finished nor cleared away, since its process died."""
    names = {task.folder.name for task in tasks}
    begun = (folder for parent in {task.folder.parent for task in tasks} for folder in parent.glob("_tmp.*"))
    return [folder for folder in begun if folder.name.split(".")[1] in names]


def split_of(record: Record, part: str, cfg: IngestConfig) -> str:
    """web for the crawl; of the clean set the split that the record declares, else the one that its image is dealt."""
    if part == "web":
        return "web"
    if cfg.split.by == "declared" and record.split:
        return record.split
    shares = {"train": cfg.split.train, "val": cfg.split.val, "test": cfg.split.test}
    return deal_split(record.image_id or record.key, shares, seed=cfg.split.seed)


def chain_key(key: str, part: str, split: str | None) -> str:
    """By which the image is known from ingest on; a row without a key has none."""
    prefix = "web" if part == "web" else split
    return f"{prefix}-{key}" if key and prefix else key


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

    def __init__(self, task: Task, folder: Path, stack: ExitStack, *, careful: bool):
        self.task, self.folder, self.stack, self.careful = task, folder, stack, careful
        self.lost = 0
        self._used = hashed(getattr(task.unit, "files", ()))
        self._keys: set[str] = set()
        self._writers: dict[str, ShardWriter] = {}
        self._captions: dict[str, list[dict[str, Any]]] = defaultdict(list)  # by the stem of the shard
        self._quarantine: list[dict[str, Any]] = []
        self._keeping = Keeping(task.cfg.metadata)
        self._fields: dict[str, tuple[str, ShardColumns]] = {}  # by split, those of the shard that is being written, and its stem
        folder.mkdir(parents=True)

    def take(self, item: Record | RejectedRow) -> None:
        if item.file:
            self._used.add(hash64(item.file))
        if isinstance(item, RejectedRow):
            split = item.split if self.task.cfg.split.by == "declared" else None
            self._set_aside(chain_key(item.key, self.task.part, split), item.where, Rejected(item.reason, item.detail), texts=item.lost)
        else:
            self._take_record(item)

    def write_tables(self) -> None:
        for stem, rows in self._captions.items():
            table, screens = caption_table(rows), self.task.cfg.screens
            if self.task.part == "web":
                table = fill(table, screens, max_repeat=screens.max_repeat, raw=[r["raw"] for r in rows])
            write_table(table, self.folder / f"{stem}.parquet")
        write_table(pa.Table.from_pylist(self._quarantine, QUARANTINE_SCHEMA), self.folder / "quarantine.parquet")
        write_table(pa.table({"file": pa.array(sorted(self._used), pa.int64())}), self.folder / "files.parquet")
        for split in list(self._fields):
            self._write_fields(split)
        write_json({"lost": self.lost, "left_out": self._keeping.left_out}, self.folder / "counts.json")

    def _take_record(self, record: Record) -> None:
        split = split_of(record, self.task.part, self.task.cfg)
        key = chain_key(record.key, self.task.part, split)
        texts = self._texts(record, key)
        if not texts and not self._captioned(record, key):
            return
        try:
            self._check_key(key)
            image = self._admit(record.image)
        except Rejected as e:
            self._set_aside(key, record.where, e, texts=max(1, len(texts)))
            return
        self._keys.add(key)
        self._store(split, key, record, image, texts)

    def _admit(self, data: bytes) -> Admitted:
        cfg = self.task.cfg

        def act() -> Admitted:
            with bounded(cfg.images):
                return admit(data, cfg.images, short_side=cfg.short_side, quality=cfg.quality, format=cfg.format)

        if self.careful:
            survive(act)
        return act()

    def _store(self, split: str, key: str, record: Record, image: Admitted, texts: list[tuple[str, str]]) -> None:
        if split == "web":
            source, image_id = "web", hashlib.sha256(image.data).hexdigest()[:16]
        else:
            source, image_id = "human", f"clean-{record.image_id or record.key}"
        prints = fingerprint(image.pixels) if self.task.cfg.near_copies.look else None
        stem = self._writer(split).add(key, image.data, image_id=image_id, width=image.width, height=image.height, fingerprint=prints)
        measured = measure(image.pixels) if split == "web" and self.task.cfg.pictures.measure else {}
        self._add_fields(split, stem, key, record.fields, measured)
        self._captions[stem] += [
            {"key": key, "image_id": image_id, "text": text, "raw": raw, "source": source, "candidate": i, "reason": KEPT}
            for i, (raw, text) in enumerate(texts)
        ]
        if not texts:
            alone = {"key": key, "image_id": image_id, "text": "", "raw": "", "source": source, "candidate": 0, "reason": NO_TEXT}
            self._captions[stem].append(alone)

    def _add_fields(self, split: str, stem: str, key: str, fields: Fields, measured: dict[str, float]) -> None:
        """One shard of a split is in memory at a time."""
        if split in self._fields and self._fields[split][0] != stem:
            self._write_fields(split)
        _, columns = self._fields.setdefault(split, (stem, ShardColumns()))
        columns.add(key, with_measured(self._keeping.of(fields), measured))

    def _write_fields(self, split: str) -> None:
        stem, columns = self._fields.pop(split)
        write_table(columns.table(max_fields=self.task.cfg.metadata.max_fields), fields_path(self.folder, stem))

    def _captioned(self, record: Record, key: str) -> bool:
        """Whether a picture without a usable text stays, for a captioner; told where it does not and nothing said so yet."""
        if self.task.part == "web" and self.task.cfg.without_text == "caption":
            return True
        if not record.texts:
            self._set_aside(key, record.where, Rejected("missing_text", "no text with it"), texts=1)
        return False

    def _texts(self, record: Record, key: str) -> list[tuple[str, str]]:
        """The texts that can be used, each once, as found and as stored; the others are set aside one by one."""

        def set_aside(e: Rejected) -> None:
            self._set_aside(key, record.where, e, texts=lost_texts(e))

        return usable(record.texts, self.task.cfg.texts, set_aside)

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

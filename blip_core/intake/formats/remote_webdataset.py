"""A WebDataset on the net: each shard is fetched with its side files when its turn comes, read as a local one, and removed."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from blip_core.config.intake import FieldsConfig, RemoteConfig
from blip_core.intake.formats import Record, RejectedRow, webdataset
from blip_core.intake.formats.columns import SEARCH
from blip_core.intake.formats.side_files import STATS, is_side_table
from blip_core.intake.formats.webdataset import TarUnit, is_tar, key_prefix, named, stem_of
from blip_core.remote.elsewhere import storage_of
from blip_core.remote.storage import Stored

EXPECTS = webdataset.EXPECTS


@dataclass(frozen=True)
class RemoteUnit:
    """The objects of one shard, by their path below the root. `scratch`: where its folder of local files is made."""

    name: str
    tar: str | None
    table: str | None
    objects: dict[str, Stored]
    prefix: str
    scratch: Path
    cfg: RemoteConfig
    caption: str | None = None
    picture: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(self.objects)

    @property
    def size(self) -> int:
        return self.objects[self.tar].size if self.tar else 0


def units(objects: dict[str, Stored], fields: FieldsConfig = SEARCH, *, scratch: Path, cfg: RemoteConfig) -> list[RemoteUnit]:
    """As the local format has them. It fetches the tables without a tar, and of the others as many as show the first side table."""
    tars = named(name for name in objects if is_tar(name))
    tables = {stem_of(name): name for name in objects if name.endswith(".parquet")}
    stats = {stem_of(name): name for name in objects if name.endswith(STATS)}
    with spool(scratch) as folder:
        sides = {stem for stem in sorted(tables.keys() - tars.keys()) if _is_side(objects[tables[stem]], folder, cfg)}
        paired = (objects[tables[stem]] for stem in sorted(tables.keys() & tars.keys()))
        plain = not sides and not any(_is_side(stored, folder, cfg) for stored in paired)
    found = []
    for stem in sorted(tars.keys() | sides):
        names = [names[stem] for names in (tars, tables, stats) if stem in names]
        prefix = key_prefix(stem) if plain else ""
        own = {n: objects[n] for n in names}
        found.append(RemoteUnit(stem, tars.get(stem), tables.get(stem), own, prefix, scratch, cfg, fields.text, fields.image))
    return found


def read(unit: RemoteUnit) -> Iterator[Record | RejectedRow]:
    storage = storage_of(next(iter(unit.objects.values())).url, unit.cfg)
    with spool(unit.scratch) as folder:
        for name, stored in unit.objects.items():
            storage.fetch(stored, folder / name)
        tar, table = (folder / name if name else None for name in (unit.tar, unit.table))
        stats = next((folder / name for name in unit.objects if name.endswith(STATS)), None)
        side = table if table and is_side_table(table) else None
        yield from webdataset.read(TarUnit(unit.name, folder, tar, side, unit.prefix, unit.caption, unit.picture, stats))


@contextmanager
def spool(scratch: Path) -> Iterator[Path]:
    """An empty folder for the time of the block. Folders that killed processes left are removed: their locks went with them."""
    scratch.mkdir(parents=True, exist_ok=True)
    for left in scratch.glob("_spool.*.lock"):
        try:
            with FileLock(left, timeout=0):
                shutil.rmtree(left.with_suffix(""), ignore_errors=True)
                left.unlink(missing_ok=True)
        except Timeout:  # its process lives
            continue
    folder = scratch / f"_spool.{uuid.uuid4().hex}"
    lock = folder.with_name(f"{folder.name}.lock")
    with FileLock(lock):
        try:
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)


def _is_side(stored: Stored, folder: Path, cfg: RemoteConfig) -> bool:
    path = folder / "table.parquet"
    storage_of(stored.url, cfg).fetch(stored, path)
    return is_side_table(path)

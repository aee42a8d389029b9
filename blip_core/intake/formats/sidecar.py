"""A text file beside each image: 1.jpg and 1.txt, as kohya's trainers and many scrapers keep them. Each line is a text.

img2dataset writes such folders too (its output format `files`), with a side table for each; what that lists as failed is told.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from blip_core.files.rejected import Rejected
from blip_core.intake.formats import SPLITS, Record, RejectedRow, split_of_name
from blip_core.intake.formats.columns import IMAGE_ENDS
from blip_core.intake.formats.files import Entry, key_of, read_entry
from blip_core.intake.formats.webdataset import is_side_table, read_side_table
from blip_core.intake.walk import below
from blip_core.texts.clean import lines_of

EXPECTS = "<name>.jpg|png|webp with <name>.txt (or .caption) beside it, in any folders below"

_TEXT_ENDS = (".txt", ".caption")
_MOST_TEXT = 1 << 16
_UNIT_FILES = 1000

Pair = tuple[tuple[str, ...], tuple[str, ...]]  # the images and the texts of one stem


@dataclass(frozen=True)
class PairUnit:
    """Stems of the folder's files, each with its images and texts: paths below the root."""

    name: str
    root: Path
    split: str | None
    pairs: tuple[Pair, ...]

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(name for pair in self.pairs for names in pair for name in names)


@dataclass(frozen=True)
class SideUnit:
    """img2dataset's table for the folder of its name."""

    name: str
    root: Path
    table: Path

    @property
    def files(self) -> tuple[str, ...]:
        return (self.name,)


def recognises(path: Path) -> bool:
    return path.is_dir() and any(images and texts for images, texts in _pairs(path))


def units(path: Path) -> list[PairUnit | SideUnit]:
    found: list[PairUnit | SideUnit] = []
    own: dict[str | None, list[Pair]] = {split: [] for split in (*SPLITS, None)}
    for images, texts in _pairs(path):
        own[split_of_name((images or texts)[0].rpartition("/")[0])].append((images, texts))
    for split, pairs in own.items():
        for start in range(0, len(pairs), _UNIT_FILES):
            found.append(PairUnit(f"{split or 'any'} {start}", path, split, tuple(pairs[start : start + _UNIT_FILES])))
    tables = (p for p in below(path).paths(".parquet") if is_side_table(p))
    return found + [SideUnit(table.relative_to(path).as_posix(), path, table) for table in tables]


def read(unit: PairUnit | SideUnit) -> Iterator[Record | RejectedRow]:
    if isinstance(unit, SideUnit):
        yield from _failed(unit)
        return
    for images, texts in unit.pairs:
        where = (images or texts)[0]
        key = key_of(where.rpartition(".")[0])
        try:
            if not images:
                raise Rejected("missing_image", f"no image beside {texts[0]!r}")
            if len(images) > 1:
                raise Rejected("duplicate_member", f"{', '.join(images)} share a text")
            lines = tuple(line for text in texts for line in _lines(unit.root / text))
            yield read_entry(unit.root, Entry(key, images, lines, where.rpartition(".")[0], unit.split, where))
        except Rejected as e:
            yield RejectedRow(key, where, e.reason, e.detail, unit.split)


def _failed(unit: SideUnit) -> Iterator[RejectedRow]:
    """Rows without an image, and rows whose image is gone."""
    folder = unit.table.with_suffix("")
    found = {p.stem for p in folder.iterdir() if p.suffix.lower() in IMAGE_ENDS} if folder.is_dir() else set()
    yield from read_side_table(unit.root, unit.table, found, prefix="", where=f"the images of {folder.relative_to(unit.root).as_posix()}/")


def _lines(path: Path) -> list[str]:
    """The texts of one file; a single empty one of an empty file, so that it is told as such."""
    size = path.stat().st_size
    if size > _MOST_TEXT:
        raise Rejected("too_many_bytes", f"{size} bytes of text, at most {_MOST_TEXT} are read")
    return lines_of(path.read_bytes())


def _pairs(root: Path) -> Iterator[Pair]:
    """Images and texts of each stem, folder by folder."""
    for folder, found in sorted(below(root).folders.items(), key=lambda item: item[0].split("/")):
        names = sorted(name for name in found if name.lower().endswith(IMAGE_ENDS + _TEXT_ENDS))
        for _, own in groupby(sorted(names, key=_stem), key=_stem):
            paths = [f"{folder}/{name}" if folder else name for name in own]
            images, texts = (tuple(p for p in paths if p.lower().endswith(ends)) for ends in (IMAGE_ENDS, _TEXT_ENDS))
            yield images, texts


def _stem(name: str) -> str:
    return name.rpartition(".")[0]

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
from blip_core.texts.clean import decode_text

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


@dataclass(frozen=True)
class SideUnit:
    """img2dataset's table for the folder of its name."""

    name: str
    root: Path
    table: Path


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
    tables = (p for p in sorted(path.rglob("*.parquet")) if not p.name.startswith(".") and is_side_table(p))
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
            if not texts:
                raise Rejected("missing_text", f"no {' or '.join(_TEXT_ENDS)} beside {where!r}")
            if len(images) > 1:
                raise Rejected("duplicate_member", f"{', '.join(images)} share a text")
            lines = [line for text in texts for line in _lines(unit.root / text)]
            yield read_entry(unit.root, Entry(key, images, tuple(dict.fromkeys(lines)), where.rpartition(".")[0], unit.split, where))
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
    text = decode_text(path.read_bytes()).removeprefix("\ufeff")
    return [line for line in text.splitlines() if line.strip()] or [""]


def _pairs(root: Path) -> Iterator[Pair]:
    """Images and texts of each stem, folder by folder."""
    for folder in (root, *sorted(p for p in root.rglob("*") if p.is_dir() and not p.name.startswith("."))):
        files = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_ENDS + _TEXT_ENDS and p.is_file() and not p.name.startswith(".")]
        for _, own in groupby(sorted(files), key=lambda p: p.stem):
            names = [(p.suffix.lower(), p.relative_to(root).as_posix()) for p in own]
            yield tuple(n for end, n in names if end in IMAGE_ENDS), tuple(n for end, n in names if end in _TEXT_ENDS)

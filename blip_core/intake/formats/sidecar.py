"""A text file beside each image: 1.jpg and 1.txt, as kohya's trainers and many scrapers keep them, read as the members of a tar are.

img2dataset writes such folders too (its output format `files`), with a side table for each; what that lists as failed is told.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

from blip_core.files.rejected import Rejected
from blip_core.intake.formats import SPLITS, Record, RejectedRow, split_of_name
from blip_core.intake.formats.columns import IMAGE_ENDS
from blip_core.intake.formats.files import Entry, key_of, read_entry
from blip_core.intake.formats.side_files import is_side_table, read_side_table
from blip_core.intake.formats.webdataset import LINES, MOST_JSON, MOST_TEXT, told_by
from blip_core.intake.walk import below

EXPECTS = "<name>.jpg|png|webp with <name>.txt (or .caption, or .json with a caption) beside it, in any folders below"

_LINE_ENDS = tuple(f".{end}" for end in LINES)
_TEXT_ENDS = (*_LINE_ENDS, ".json")
_UNIT_FILES = 1000
_FEW = 20

Pair = tuple[tuple[str, ...], tuple[str, ...]]  # the images and the texts of one stem


@dataclass(frozen=True)
class PairUnit:
    """Stems of the folder's files, each with its images and texts: paths below the root."""

    name: str
    root: Path
    split: str | None
    pairs: tuple[Pair, ...]
    others: tuple[str, ...] = ()  # pictures of another modality beside those of the pairs

    @property
    def files(self) -> tuple[str, ...]:
        return (*(name for pair in self.pairs for names in pair for name in names), *self.others)

    @property
    def size(self) -> int:
        return len(self.pairs)


@dataclass(frozen=True)
class SideUnit:
    """img2dataset's table for the folder of its name."""

    name: str
    root: Path
    table: Path
    size = 1

    @property
    def files(self) -> tuple[str, ...]:
        return (self.name,)


def recognises(path: Path) -> bool:
    if not path.is_dir():
        return False
    both = [texts for images, texts in _pairs(path) if images and texts]
    told = (name for texts in both for name in texts if name.lower().endswith(_LINE_ENDS))
    return any(told) or any(_says_something(path, texts) for texts in islice(both, _FEW))


def units(path: Path) -> list[PairUnit | SideUnit]:
    found: list[PairUnit | SideUnit] = []
    own: dict[str | None, list[Pair]] = {split: [] for split in (*SPLITS, None)}
    pairs, others = _without_modalities(_pairs(path))
    for images, texts in pairs:
        own[split_of_name((images or texts)[0].rpartition("/")[0])].append((images, texts))
    for split, pairs in own.items():
        for start in range(0, len(pairs), _UNIT_FILES):
            found.append(PairUnit(f"{split or 'any'} {start}", path, split, tuple(pairs[start : start + _UNIT_FILES])))
    if others:
        found.append(PairUnit("other modalities", path, None, (), others))
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
            members = _read(unit.root, texts)
            found, fields, lost = told_by(members)
            fault: tuple[str, ...] = ()
            if not images:
                fault = ("missing_image", f"no image beside {texts[0]!r}")
            elif len(images) > 1:
                fault = ("duplicate_member", f"{', '.join(images)} share a text")
            if lost:
                yield RejectedRow(key, where, lost.reason, lost.detail, unit.split, lost=0)
            yield read_entry(unit.root, Entry(key, images, found, where.rpartition(".")[0], unit.split, where, fault, fields=fields))
        except Rejected as e:
            yield RejectedRow(key, where, e.reason, e.detail, unit.split)
    if unit.others:
        kinds = Counter(f".{'.'.join(name.rpartition('/')[2].split('.')[-2:])}" for name in unit.others)
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        yield RejectedRow("", unit.others[0], "other_modality", f"pictures beside pictures, not read: {told}", unit.split, lost=0)


def _failed(unit: SideUnit) -> Iterator[RejectedRow]:
    """Rows without an image, and rows whose image is gone."""
    folder = unit.table.with_suffix("")
    found = {p.stem for p in folder.iterdir() if p.suffix.lower() in IMAGE_ENDS} if folder.is_dir() else set()
    yield from read_side_table(unit.root, unit.table, found, prefix="", where=f"the images of {folder.relative_to(unit.root).as_posix()}/")


def _read(root: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """The files of texts by their endings."""
    found: dict[str, bytes] = {}
    for name in names:
        end, size = name.rpartition(".")[2].lower(), root.joinpath(name).stat().st_size
        if size > (most := MOST_JSON if end == "json" else MOST_TEXT):
            raise Rejected("too_many_bytes", f"{name}: {size} bytes of text, at most {most} are read")
        found[end] = b"\n".join(filter(None, (found.get(end), root.joinpath(name).read_bytes())))
    return found


def _says_something(root: Path, names: tuple[str, ...]) -> bool:
    try:
        return bool(told_by(_read(root, names))[0])
    except Rejected:
        return False


def _without_modalities(pairs: Iterator[Pair]) -> tuple[list[Pair], tuple[str, ...]]:
    """Pictures such as 7.depth.png that have no text of their own, beside 7.jpg, are apart."""
    found = list(pairs)
    stems = {_stem(images[0]) for images, _ in found if images}
    kept: list[Pair] = []
    others: list[str] = []
    for images, texts in found:
        own = _stem(images[0]) if images else ""
        if images and not texts and own.rpartition("/")[2].partition(".")[1] and _first(own) in stems:
            others += images
        else:
            kept.append((images, texts))
    return kept, tuple(others)


def _first(stem: str) -> str:
    """The stem up to the first dot of the name."""
    folder, slash, name = stem.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _pairs(root: Path) -> Iterator[Pair]:
    """Images and texts of each stem, folder by folder."""
    for folder, found in sorted(below(root).folders.items(), key=lambda item: item[0].split("/")):
        names = sorted(name for name in found if name.lower().endswith(IMAGE_ENDS + _TEXT_ENDS))
        for _, own in groupby(sorted(names, key=_stem), key=_stem):
            paths = [f"{folder}/{name}" if folder else name for name in own]
            images = tuple(p for p in paths if p.lower().endswith(IMAGE_ENDS))
            texts = tuple(p for p in paths if p.lower().endswith(_TEXT_ENDS if images else _LINE_ENDS))  # a .json may be anything
            if images or texts:
                yield images, texts


def _stem(name: str) -> str:
    """Of a picture, and of its text: 1.txt or 1.jpg.txt beside 1.jpg, an accent as one character or as two."""
    stem = name.rpartition(".")[0]
    if name.lower().endswith(_LINE_ENDS) and stem.lower().endswith(IMAGE_ENDS):
        stem = stem.rpartition(".")[0]
    return unicodedata.normalize("NFC", stem)

"""Images that lie as files beside a table (CSV, TSV, JSON lines, Parquet), one row or several for each: what formats of this kind share.

Neither pass holds the table. The first notes for each row a hash of its image and where it stands, 33 bytes a row; so the rows of one
image meet, wherever they stand, and the second pass reads the rows of its unit alone.
"""

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from blip_core.files.rejected import Rejected
from blip_core.intake.formats import SPLITS, Record, RejectedRow, named_split, split_of_name
from blip_core.intake.formats.cells import Values
from blip_core.intake.formats.columns import is_url, texts_in, without_number
from blip_core.intake.formats.files import Entry, key_of, places, read_entry
from blip_core.intake.formats.inline import is_inline
from blip_core.intake.formats.rows import Row, Table, fetch, scan
from blip_core.metadata.fields import Fields, beside, joined

_UNIT_ROWS = 1000

Found = tuple[Row, str, str | None, tuple[str, ...], Fields]  # a row with its image, split, texts and what else it says


@dataclass(frozen=True)
class Listing:
    """A table whose columns are understood. `path_splits`: the folder in an image's name tells its split."""

    root: Path
    table: Table
    image: str
    texts: tuple[str, ...]
    split: str | None
    path_splits: bool = False
    folders: tuple[str, ...] = ()  # where images may lie besides
    lists: tuple[tuple[str, str], ...] = ()  # name of an image and its split, by the split lists that lie beside
    beside: tuple[str, ...] = ()  # these lists, by their path below the root

    @property
    def columns(self) -> list[str]:
        return [c for c in dict.fromkeys((self.image, *self.texts, self.split)) if c is not None]

    @property
    def name(self) -> str:
        return self.table.path.relative_to(self.root).as_posix()

    @cached_property
    def _by_name(self) -> dict[str, str]:
        return dict(self.lists)

    def split_of(self, values: Values) -> str | None:
        """By the row, by a list of names, by the image's folder, by the table's name; Rejected for a word that is no split."""
        if self.split is not None and values.get(self.split) not in (None, ""):
            found = named_split(str(values[self.split]).strip())
            if found is None:
                raise Rejected("unknown_split", f"split {str(values[self.split])[:50]!r}, expected train, restval, val or test")
            return found
        if self.lists and (listed := self._by_name.get(without_number(str(values.get(self.image)).strip()))):
            return listed
        folder = str(values.get(self.image)).rpartition("/")[0] if self.path_splits else ""
        return (split_of_name(folder) if folder else None) or split_of_name(self.name)


@dataclass(frozen=True, eq=False)
class RowUnit:
    name: str
    listing: Listing
    places: np.ndarray  # int64 [rows, 2]: at and line of each; those of one image stand together

    @property
    def files(self) -> tuple[str, ...]:
        return (self.listing.name, *self.listing.beside)

    @property
    def size(self) -> int:
        return len(self.places)


def units(listings: list[Listing]) -> list[RowUnit]:
    return [unit for listing in listings for unit in _slices(listing)]


def read(unit: RowUnit) -> Iterator[Record | RejectedRow]:
    listing, name = unit.listing, None
    group: list[Found] = []
    for row in fetch(listing.table, unit.places.tolist()):
        try:
            values = _values(row)
            image = _image(listing, values)
            found = (image, listing.split_of(values), _texts(listing, values), _fields(listing, values))
        except Rejected as e:
            yield RejectedRow("", _where(listing, row), e.reason, e.detail)
            continue
        if group and image != name:
            yield _record(listing, group)
            group = []
        name = image
        group.append((row, *found))
    if group:
        yield _record(listing, group)


def _slices(listing: Listing) -> list[RowUnit]:
    """Units of a thousand rows and more, so that an image's rows stay together; a split's rows in units of its own."""
    ats, lines, images, splits = array("q"), array("q"), array("Q"), array("b")
    for row in scan(listing.table, listing.columns):
        ats.append(row.at)
        lines.append(row.line)
        images.append(_identity(listing, row))
        splits.append(_rank(listing, row))
    if not ats:
        return [RowUnit(f"{listing.name} any 0", listing, np.empty((0, 2), np.int64))]
    at, line, image, split = (np.frombuffer(a, a.typecode) for a in (ats, lines, images, splits))
    _, first, inverse = np.unique(image, return_index=True, return_inverse=True)
    order = np.lexsort((at, first[inverse], split))
    found, start = [], 0
    image, split = image[order], split[order]
    while start < len(order):
        end = min(start + _UNIT_ROWS, len(order))
        end = start + int(np.searchsorted(split[start:end], split[start], side="right"))
        while end < len(order) and image[end] == image[end - 1] and split[end] == split[end - 1]:
            end += 1
        part = order[start:end]
        word = (*SPLITS, "any")[split[start]]
        found.append(RowUnit(f"{listing.name} {word} {start}", listing, np.stack([at[part], line[part]], axis=1)))
        start = end
    return found


def _identity(listing: Listing, row: Row) -> int:
    """Equal for the rows of one image; a bad row is alone."""
    try:
        name = _image(listing, _values(row))
    except Rejected:
        name = f"\0{row.line}"
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _rank(listing: Listing, row: Row) -> int:
    try:
        split = listing.split_of(row.values) if isinstance(row.values, dict) else None
    except Rejected:
        split = None
    return SPLITS.index(split) if split else len(SPLITS)


def _values(row: Row) -> Values:
    if isinstance(row.values, Rejected):
        raise row.values
    return row.values


def _image(listing: Listing, values: Values) -> str:
    name = values.get(listing.image)
    if is_url(name):
        raise Rejected("missing_image", f"a URL, no file: {name[:100]!r}; `blip fetch` gets images of a list")
    if not isinstance(name, str) or not name.strip():
        raise Rejected("bad_row", f"expected the name of an image under {listing.image!r}, got {str(name)[:100]!r}")
    return without_number(name.strip())


def _texts(listing: Listing, values: Values) -> tuple[str, ...]:
    texts = texts_in(values, listing.texts, written=listing.table.kind == "csv")
    if texts is None:
        got = str([values.get(c) for c in listing.texts])[:100]
        raise Rejected("bad_row", f"expected a text or a list of texts under {', '.join(listing.texts)}, got {got}")
    return texts


def _fields(listing: Listing, values: Values) -> Fields:
    """Of a CSV an empty cell is no value, and all others are texts. The name of the picture's file is a field too."""
    used = {*listing.texts, listing.image} if is_inline(values.get(listing.image)) else {*listing.texts}
    told = {name: value for name, value in values.items() if value != ""} if listing.table.kind == "csv" else values
    return beside(told, used, listing.table.types)


def _record(listing: Listing, group: list[Found]) -> Record | RejectedRow:
    row, image, split, *_ = group[0]
    folder = listing.table.path.parent.relative_to(listing.root).as_posix()
    name = image if folder == "." else f"{folder}/{image}"
    texts = tuple(text for *_, texts, _ in group for text in texts)
    fields = joined(fields for *_, fields in group)
    if is_inline(image):
        key, identity = f"{key_of(listing.name)}-{row.line}", hashlib.sha256(image.encode()).hexdigest()[:16]
        return read_entry(listing.root, Entry(key, (), texts, identity, split, _where(listing, row), inline=image, fields=fields))
    entry = Entry(key_of(name), places(image, folder, ".", *listing.folders), texts, name, split, _where(listing, row), fields=fields)
    return read_entry(listing.root, entry)


def _where(listing: Listing, row: Row) -> str:
    return f"{listing.name}:{'row' if listing.table.kind == 'parquet' else 'line'} {row.line}"

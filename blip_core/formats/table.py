"""A table with a column of image files and one of captions: open_clip's `filepath<TAB>title`, ROCO's `name, caption`, any of that kind.

Columns are found by their names in any case; without names, by what the first row holds.
"""

from itertools import islice
from pathlib import Path

from blip_core.formats.columns import FILES, SPLITS, TEXTS, column, is_image_name, is_url, texts_of
from blip_core.formats.files import places
from blip_core.formats.listing import BadTable, Listing, RowUnit, read
from blip_core.formats.listing import units as list_units
from blip_core.formats.rows import ENDS, Table, open_table, scan, without_header
from blip_core.rejected import Rejected

__all__ = ["EXPECTS", "read", "recognises", "units"]

EXPECTS = "*.csv|tsv|jsonl|parquet with a column of image files (filepath, image, name, ...) and one of texts (caption, title, text, ...)"

_FEW = 20


def recognises(path: Path) -> bool:
    return any(isinstance(found, Listing) for found in _listings(path))


def units(path: Path) -> list[RowUnit | BadTable]:
    found = _listings(path)
    return list_units([f for f in found if isinstance(f, Listing)], [f for f in found if isinstance(f, BadTable)])


def unreadable(path: Path) -> list[str]:
    """The tables that can't be read and why."""
    return [f"{found.name}: {found.detail}" for found in _listings(path) if isinstance(found, BadTable)]


def table_files(path: Path) -> list[Path]:
    """`path` itself, or the tables in it and up to two folders below, sorted."""
    found = [path] if path.is_file() else [p for depth in ("*", "*/*", "*/*/*") for p in path.glob(depth)]
    return sorted(p for p in found if p.suffix.lower() in ENDS and p.is_file() and not p.name.startswith((".", "_")))


def _listings(path: Path) -> list[Listing | BadTable]:
    """Tables that are understood and tables that can't be read; tables of other things are left out."""
    root, found = path if path.is_dir() else path.parent, []
    for file in table_files(path):
        try:
            found.append(_understood(root, open_table(file)))
        except Rejected as e:
            found.append(BadTable(file.relative_to(root).as_posix(), e.detail))
    return [f for f in found if f is not None]


def _understood(root: Path, table: Table) -> Listing | None:
    text = column(table.names, TEXTS)
    candidates = [c for c in (column(table.names, (meaning,)) for meaning in FILES) if c is not None and c != text]
    for image in candidates if text is not None else []:
        listing = Listing(root, table, image, text, column(table.names, SPLITS))
        if _names_images(listing):
            return listing
    return _by_first_row(root, table) if table.kind == "csv" else None


def _names_images(listing: Listing) -> bool:
    """Whether the column holds names of images or, without an extension, of images that are there: many a table has a column `name`."""
    folder = listing.table.path.parent.relative_to(listing.root).as_posix()
    rows = islice(scan(listing.table, listing.columns), _FEW)
    values = [row.values.get(listing.image) for row in rows if isinstance(row.values, dict)]
    names = [v for v in values if isinstance(v, str) and v.strip() and not is_url(v)]
    return any(is_image_name(v.strip()) or any((listing.root / p).is_file() for p in places(v.strip(), folder)) for v in names)


def _by_first_row(root: Path, table: Table) -> Listing | None:
    """A table without names of columns: one cell of its first line is an image, the longest other one a text."""
    images = [i for i, cell in enumerate(table.names) if is_image_name(cell)]
    others = [i for i, cell in enumerate(table.names) if i not in images and texts_of(cell) and not is_url(cell)]
    if len(images) != 1 or not others:
        return None
    text = max(others, key=lambda i: len(table.names[i]))
    return Listing(root, without_header(table), str(images[0]), str(text), None)

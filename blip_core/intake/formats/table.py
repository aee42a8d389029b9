"""A table with a column of image files and one of captions: open_clip's `filepath<TAB>title`, ROCO's `name, caption`, any of that kind.

Columns are found by their names in any case; without names, by what the first row holds.
"""

from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from blip_core.config.intake import FieldsConfig
from blip_core.files.rejected import Rejected
from blip_core.intake.formats.columns import FILES, IMAGE_ENDS, SEARCH, SPLITS, column, is_image_name, is_url, shown, text_columns, texts_of
from blip_core.intake.formats.files import image_folder, places, present
from blip_core.intake.formats.inline import is_inline
from blip_core.intake.formats.listing import Listing, RowUnit, read
from blip_core.intake.formats.listing import units as list_units
from blip_core.intake.formats.rows import Table, first_row, kind_of, open_table, scan, without_header
from blip_core.intake.formats.splits import split_lists
from blip_core.intake.walk import below

__all__ = ["EXPECTS", "read", "recognises", "units"]

EXPECTS = (
    "*.csv|tsv|jsonl|token|parquet or captions.txt with a column of image files (filepath, image, name, ...) and one of texts "
    "(caption, title, text, ...)"
)

_FEW = 20
_DESCRIBED = 5


def recognises(path: Path, fields: FieldsConfig = SEARCH) -> bool:
    return bool(_listings(path, fields))


def units(path: Path, fields: FieldsConfig = SEARCH) -> list[RowUnit]:
    return list_units(_listings(path, fields))


def described(path: Path) -> list[str]:
    """For a message: the columns of the first tables, and why others can't be read."""
    root, found = path if path.is_dir() else path.parent, []
    for file in table_files(path)[:_DESCRIBED]:
        try:
            found.append(f"{file.relative_to(root).as_posix()} has the columns {shown(open_table(file).names)}")
        except Rejected as e:
            found.append(f"{file.relative_to(root).as_posix()}: {e.detail}")
    return found


def table_files(path: Path) -> list[Path]:
    """`path` itself, or the tables in it and below, sorted; JSON lines also where they are called .json."""
    found = below(path)
    pictures = found.stems(IMAGE_ENDS)
    names = (p.relative_to(found.root).as_posix() for p in found.paths() if not p.name.startswith("_"))
    alone = (name for name in names if not name.lower().endswith(".json") or name.rpartition(".")[0] not in pictures)
    return [found.root / name for name in alone if kind_of(found.root / name)]


def _listings(path: Path, fields: FieldsConfig) -> list[Listing]:
    """Tables that are understood. Others, and those that can't be read, are told as every file that nobody read (account.py)."""
    root, files = path if path.is_dir() else path.parent, table_files(path)
    folders = image_folder(root) if files else ()
    found = []
    for file in files:
        with suppress(Rejected):
            found.append(_understood(root, open_table(file, fields.csv), fields, folders))
    return [listing for listing in found if listing is not None]


def _understood(root: Path, table: Table, fields: FieldsConfig, folders: tuple[str, ...]) -> Listing | None:
    """`folders`: where images may lie besides."""
    texts, split = text_columns(table.names, fields.text), column(table.names, SPLITS, fields.split)
    meanings = [(meaning,) for meaning in FILES] if fields.image is None else [()]
    candidates = [c for c in (column(table.names, meaning, fields.image) for meaning in meanings) if c is not None and c not in texts]
    if texts and not candidates and fields.image is None:
        candidates = _inline(table)
    for image in candidates if texts and not (fields.split and split is None) else []:
        listing = Listing(root, table, image, texts, split, folders=folders, **_lists(root, table))
        if _names_images(listing):
            return listing
    return _by_first_row(root, table, folders) if fields == SEARCH.model_copy(update={"csv": fields.csv}) else None


def _names_images(listing: Listing) -> bool:
    """Whether the column holds names of images or, without an extension, of images that are there: many a table has a column `name`."""
    folder = listing.table.path.parent.relative_to(listing.root).as_posix()
    rows = islice(scan(listing.table, listing.columns), _FEW)
    values = [row.values.get(listing.image) for row in rows if isinstance(row.values, dict)]
    names = [v for v in values if isinstance(v, str) and v.strip() and not is_url(v)]
    return any(
        is_inline(v) or is_image_name(v.strip()) or present(listing.root, places(v.strip(), folder, ".", *listing.folders)) for v in names
    )


def _inline(table: Table) -> list[str]:
    """Columns whose first cell is a picture."""
    first = next((row.values for row in scan(table) if isinstance(row.values, dict)), {})
    return [name for name, cell in first.items() if is_inline(cell)]


def _by_first_row(root: Path, table: Table, folders: tuple[str, ...]) -> Listing | None:
    """A table without names of columns: one cell of its first row is an image, the longest other one a text."""
    first = first_row(table)
    images = [name for name, cell in first.items() if is_image_name(cell) or is_inline(cell)]
    others = {name: len(str(cell)) for name, cell in first.items() if name not in images and texts_of(cell) and not is_url(cell)}
    if len(images) != 1 or not others:
        return None
    text = max(others, key=others.__getitem__)
    return Listing(root, without_header(table), images[0], (text,), None, folders=folders, **_lists(root, table))


def _lists(root: Path, table: Table) -> dict[str, Any]:
    """The split lists beside the table, and what they say."""
    found = split_lists(table.path.parent)
    beside = tuple(path.relative_to(root).as_posix() for path in found)
    return {"beside": beside, "lists": tuple(dict(pair for pairs in found.values() for pair in pairs).items())}

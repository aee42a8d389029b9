"""Hugging Face's imagefolder: metadata.csv, .jsonl or .parquet beside the images, in the folder or in one folder for each split.

Loaders that get the bare path may drop the metadata without a word; here a metadata file without captions is an error.
"""

from pathlib import Path

from blip_core.config.intake import FieldsConfig
from blip_core.files.rejected import Rejected
from blip_core.intake.formats.columns import SEARCH, TEXTS, column, text_columns
from blip_core.intake.formats.listing import Listing, RowUnit, read
from blip_core.intake.formats.listing import units as list_units
from blip_core.intake.formats.rows import open_table
from blip_core.intake.walk import below

__all__ = ["EXPECTS", "read", "recognises", "units"]

EXPECTS = "metadata.csv|jsonl|parquet with the columns file_name and text (or caption), beside the images, here or in split folders"

_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def recognises(path: Path, fields: FieldsConfig = SEARCH) -> bool:
    return bool(_files(path))


def units(path: Path, fields: FieldsConfig = SEARCH) -> list[RowUnit]:
    root, listings = path if path.is_dir() else path.parent, []
    for file in _files(path):
        try:
            table = open_table(file, fields.csv)
        except Rejected:  # told as every file that nobody read (account.py)
            continue
        image, texts = _image_column(table.names, fields.image), text_columns(table.names, fields.text)
        if image is None or not texts:
            captions = fields.text or f"captions ({', '.join(TEXTS[:5])}, ...)"
            lacking = (fields.image or "file_name") if image is None else captions
            raise ValueError(
                f"{file}: no column for {lacking}; its columns are {list(table.names)}. Rename one of them, or name it in "
                "ingest.web_fields or clean_fields"
            )
        listings.append(Listing(root, table, image, texts, column(table.names, ("split",), fields.split), path_splits=True))
    return list_units(listings)


def _image_column(names: tuple[str, ...], declared: str | None) -> str | None:
    one = column(names, ("file_name",), declared)
    return one if one or declared else next((n for n in names if n.strip().lower().endswith("_file_name")), None)


def _files(path: Path) -> list[Path]:
    return [file for file in below(path).paths(*_NAMES) if file.name.lower() in _NAMES]

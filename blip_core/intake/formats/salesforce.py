"""Lists as the public BLIP code reads them: [{image, caption}], with a caption in training lists and a list of captions in val and test;
and other lists of objects that name an image file and a text ([{file_name, text}] and the like).

The whole list is parsed in memory. A training list has an entry for each caption: those of one image are brought together here, or
ITM would take a picture's own captions for its negatives.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from blip_core.config.intake import FieldsConfig
from blip_core.files.rejected import Rejected
from blip_core.intake.formats import files, named_split, split_of_name
from blip_core.intake.formats.columns import (
    FILES,
    IMAGE_FILE,
    NAME_IT,
    SEARCH,
    SUFFIXED,
    TEXTS,
    column,
    is_url,
    suffixed,
    text_columns,
    texts_in,
)
from blip_core.intake.formats.files import Entry, FileUnit, read
from blip_core.intake.formats.inline import IN_JSON, is_inline
from blip_core.intake.formats.rows import is_json_lines
from blip_core.metadata.fields import Fields, beside, joined
from blip_core.tables.shards import KEY

__all__ = ["EXPECTS", "read", "recognises", "units"]

EXPECTS = "*.json with [{image: path, caption: text or list of texts, image_id?}], here or in annotation(s)/, and the images"

_IMAGES, _CAPTIONS = ("image", *FILES), ("caption", *TEXTS)


def recognises(path: Path, fields: FieldsConfig = SEARCH) -> bool:
    return bool(_lists(path, fields))


def units(path: Path, fields: FieldsConfig = SEARCH) -> list[FileUnit]:
    root = path if path.is_dir() else path.parent
    folders = files.image_folder(root)
    return [unit for file in _lists(path, fields) for unit in files.slices(root, file.name, _entries(file, fields, folders), of=file)]


def _lists(path: Path, fields: FieldsConfig) -> list[Path]:
    texts = [rf"{w}(?:[ _-]?\d+)?" for w in _CAPTIONS] + [SUFFIXED]
    if fields.text:
        texts = [re.escape(name.strip()) for name in fields.text.split(",")]
    found = files.json_files(path)
    lists = [p for p in found if _names_images(p, fields) and files.head_holds(p, *texts, opens="[")]
    # alone JSON lines are a table, which is not read whole; beside lists they are one of them
    return [p for p in found if p in lists or is_json_lines(p)] if lists else []


def _names_images(path: Path, fields: FieldsConfig) -> bool:
    """A key `image` is the public code's; under any other, names of image files must stand: a shop's list has a `name` too."""
    if fields.image:
        return files.head_holds(path, re.escape(fields.image), opens="[")
    named = files.head_holds(path, "image", opens="[") or files.head_holds(path, *FILES, opens="[", value=IMAGE_FILE)
    return named or files.head_holds(path, r"\w+", opens="[", value=IN_JSON)


def _entries(file: Path, fields: FieldsConfig, folders: tuple[str, ...]) -> list[Entry]:
    """An entry for each image, in order of appearance, and one for each row that can't be used."""
    entries: list[Entry] = []
    fields_of: list[list[Fields]] = []
    place: dict[tuple[str | None, str | None], int] = {}
    for i, row in enumerate(files.load_rows(file)):
        entry = _entry(row, f"{file.name}:[{i}]", split_of_name(file.stem), fields, folders)
        at = place.get((entry.image_id, entry.split)) if entry.image_id else None
        if at is not None:
            entries[at] = replace(entries[at], texts=entries[at].texts + entry.texts)
            fields_of[at].append(entry.fields)
            continue
        if entry.image_id:
            place[entry.image_id, entry.split] = len(entries)
        entries.append(entry)
        fields_of.append([entry.fields])
    return [replace(entry, fields=joined(rows)) for entry, rows in zip(entries, fields_of, strict=True)]


def _entry(row: object, where: str, split: str | None, fields: FieldsConfig, folders: tuple[str, ...]) -> Entry:
    """The image's path is its identity: `image_id` is text here and a number there, and starts anew in each list."""
    try:
        name, texts, split, told = _fields(row, split, fields)
    except Rejected as e:
        return Entry("", (), (), None, split, where, (e.reason, e.detail))
    if is_inline(name):
        return Entry(f"{files.key_of(where)}", (), texts, None, split, where, inline=name, fields=told)
    return Entry(key_of_path(name), files.places(name, ".", *folders), texts, name, split, where, fields=told)


def key_of_path(name: str) -> str:
    """COCO's names are known by themselves; others may be the same in two folders."""
    stem = name.rpartition("/")[2].rpartition(".")[0]
    return stem if stem.startswith("COCO_") and KEY.fullmatch(stem) else files.key_of(name)


def _fields(row: object, split: str | None, fields: FieldsConfig) -> tuple[str, tuple[str, ...], str | None, Fields]:
    """The image's name, the texts, the split, and what else the row says."""
    if isinstance(row, Rejected):
        raise row
    if not isinstance(row, dict):
        raise Rejected("bad_row", f"expected an object with image and caption, got {type(row).__name__}")
    image, captions = column(list(row), _IMAGES, fields.image), _captions(row, fields)
    name, texts = row.get(image) or next(filter(is_inline, row.values()), None), texts_in(row, captions)
    if name is None and is_url(row.get("url")):
        raise Rejected("missing_image", f"a URL and no image: {row['url'][:100]!r}; `blip fetch` gets images of a list")
    if is_url(name):
        raise Rejected("missing_image", f"a URL where a file is expected: {name[:100]!r}; `blip fetch` gets images of a list")
    if not isinstance(name, str) or not name.strip():
        raise Rejected("bad_row", f"expected image and caption, got the fields {sorted(map(str, row))[:10]}")
    if not captions and (several := suffixed(list(row))):
        raise Rejected("bad_row", f"which column holds the texts is not plain: {', '.join(several)}; {NAME_IT}")
    if texts is None or not captions:
        raise Rejected("bad_row", f"expected a caption or a list of captions, got {str([row[c] for c in captions])[:100]}")
    declared = column(list(row), ("split",), fields.split)
    if declared and (split := named_split(str(row[declared]))) is None:
        raise Rejected("unknown_split", f"split {str(row[declared])[:50]!r}, expected train, restval, val or test")
    used = [column for column, value in row.items() if column in captions or is_inline(value)]
    return name, texts, split, beside(row, used)


def _captions(row: dict[str, Any], fields: FieldsConfig) -> tuple[str, ...]:
    one = None if fields.text else column(list(row), ("caption",))
    return (one,) if one else text_columns(list(row), fields.text)

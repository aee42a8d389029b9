"""COCO captions: captions_train2014.json, captions_val2014.json and the like, in the folder or in its `annotations`.

COCO publishes no captions of its test images. Without a list of test captions, half of the val images are dealt into test.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from blip_core.intake.formats import deal_split, files, split_of_name
from blip_core.intake.formats.files import Entry, FileUnit, read
from blip_core.metadata.fields import Fields, beside, joined
from blip_core.tables.shards import KEY

__all__ = ["EXPECTS", "read", "recognises", "units"]

EXPECTS = "captions_*.json with {images: [{id, file_name}], annotations: [{image_id, caption}]}, here or in annotations/, and the images"


def recognises(path: Path) -> bool:
    return bool(_lists(path))


def units(path: Path) -> list[FileUnit]:
    lists = _lists(path)
    has_test = any(split_of_name(p.stem) == "test" for p in lists)
    root = path if path.is_dir() else path.parent
    found, others = [], files.image_folder(root)
    for file, value in _captioned(lists):
        # one folder of another name will do, but not train's for the pictures of val: names may repeat
        split = split_of_name(file.stem)
        own = tuple(f for f in others if split is None or split_of_name(f) in (None, split))
        found += files.slices(root, file.name, _entries(file, value, has_test, own), of=file)
    return found


def notes(path: Path) -> tuple[str, ...]:
    """Said where test is dealt out of val."""
    splits = {split_of_name(p.stem) for p in _lists(path)}
    if "val" in splits and "test" not in splits:
        return ("no list of test captions: half of the pictures of val are dealt into test, by their id",)
    return ()


def _lists(path: Path) -> list[Path]:
    """Lists of captions; of several JSON files, those that are called so (COCO's own folder also holds instances and key points)."""
    found = files.json_files(path)
    named = [p for p in found if p.name.startswith("captions")] or found
    return [p for p in named if files.head_holds(p, "annotations", "file_name")]


def _captioned(lists: list[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Each list with what it holds. One whose annotations have no field of captions, as boxes and key points, is of another task;
    ValueError where all are."""
    strange, found = "", False
    for file in lists:
        value = files.load_json(file)
        rows = files.listed(file, value, "annotations")
        if not rows or any(isinstance(row, dict) and "caption" in row for row in rows):
            found = True
            yield file, value
            continue
        fields = sorted(rows[0]) if isinstance(rows[0], dict) else rows[0]
        strange = strange or f"{file}: annotations[0]: expected image_id and caption, got {fields!r:.200}; is this a list of captions?"
    if not found:
        raise ValueError(strange)


def _entries(file: Path, value: dict[str, Any], has_test: bool, others: tuple[str, ...]) -> list[Entry]:
    """An entry for each image with its captions, and one for each image or annotation that can't be used."""
    rows = files.listed(file, value, "annotations")
    captions, entries = _captions(file, rows)
    images = [image if isinstance(image, dict) else {} for image in files.listed(file, value, "images")]
    licences = _licences(value.get("licenses"))
    names: dict[object, dict[str, None]] = defaultdict(dict)  # by id, in order
    for image in images:
        names[_identity(image.get("id"))][str(image.get("file_name"))] = None
    seen: set[object] = set()
    for i, image in enumerate(images):
        identity = _identity(image.get("id"))
        if identity in seen and len(names[identity]) == 1:
            again = ("duplicate_key", "the list has this image before")
            entries.append(Entry(str(identity), (), (), None, None, f"{file.name}:images[{i}]", again))
            continue
        seen.add(identity)
        own = captions.get(identity, {})
        entry = _entry(image, tuple(own.values()), f"{file.name}:images[{i}]", file.stem, names, has_test, others)
        entries.append(replace(entry, fields=_fields(image, [rows[number] for number in own], licences)))
    for number in captions.keys() - names.keys():
        for i, text in captions[number].items():
            fault = ("missing_image", f"no image of the list has the id {number!r}")
            entries.append(Entry("", (), (text,), None, None, f"{file.name}:annotations[{i}]", fault))
    return entries


def _captions(file: Path, rows: list[Any]) -> tuple[dict[object, dict[int, str]], list[Entry]]:
    """Captions by the image's id and their number in the list; an entry for each row that holds none."""
    captions: dict[object, dict[int, str]] = defaultdict(dict)
    bad = []
    for i, row in enumerate(rows):
        number = _identity(row.get("image_id")) if isinstance(row, dict) else None
        if number is not None and isinstance(row.get("caption"), str):
            captions[number][i] = row["caption"]
            continue
        got = {name: row.get(name) for name in ("image_id", "caption")} if isinstance(row, dict) else row
        fault = ("bad_row", f"expected image_id and caption, got {got!r:.200}")
        bad.append(Entry("", (), (), None, None, f"{file.name}:annotations[{i}]", fault))
    return captions, bad


def _licences(rows: object) -> dict[object, dict[str, Any]]:
    """What the list says of each licence, by its id."""
    found = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return {_identity(row.get("id")): {f"license_{n}": v for n, v in row.items() if n != "id"} for row in found}


def _fields(image: dict[str, Any], annotations: list[dict[str, Any]], licences: dict[object, dict[str, Any]]) -> Fields:
    """Those of the image, with name and URL of its licence; and those of its captions but the text, with annotation_ before them."""
    told = [{f"annotation_{n}": v for n, v in row.items() if n not in ("image_id", "caption")} for row in annotations]
    named = licences.get(_identity(image.get("license")), {})
    return beside({**joined(beside(row, ()) for row in told).values, **named, **image}, ())


def _identity(value: object) -> object:
    """1, 1.0, "1" and "000001" are one id, as tools write it; None for what is none."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"\d+(?:\.0+)?", value.strip()):
        return int(value.partition(".")[0])
    return value if isinstance(value, int | str) and value != "" else None


def _entry(
    image: dict[str, Any],
    texts: tuple[str, ...],
    where: str,
    stem: str,
    names: dict[object, dict[str, None]],
    has_test: bool,
    others: tuple[str, ...],
) -> Entry:
    """`names`: those of the list's images by their id. `others`: folders where pictures may lie besides."""
    name, identity = image.get("file_name"), _identity(image.get("id"))
    fault: tuple[str, ...] = ()
    if not isinstance(name, str) or identity is None:
        fault = ("bad_row", f"expected id and file_name, got the fields {sorted(map(str, image))}")
    elif len(names[identity]) > 1:
        fault = ("duplicate_key", f"{', '.join(list(names[identity])[:3])} have the id {identity!r}: whose its captions are can't be told")
    name, number = str(name), str(identity)
    base = name.rpartition("/")[2].rpartition("\\")[2].rpartition(".")[0]
    folder = stem.removeprefix("captions_")
    paths = files.places(name, ".", folder, f"images/{folder}", *others)
    return Entry(base if KEY.fullmatch(base) else number, paths, texts, number, _split(stem, number, has_test), where, fault)


def _split(stem: str, number: str, has_test: bool) -> str | None:
    split = split_of_name(stem)
    return deal_split(number, {"val": 0.5, "test": 0.5}) if split == "val" and not has_test else split

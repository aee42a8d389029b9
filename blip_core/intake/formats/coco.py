"""COCO captions: captions_train2014.json, captions_val2014.json and the like, in the folder or in its `annotations`.

COCO publishes no captions of its test images. Without a list of test captions, half of the val images are dealt into test.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

from blip_core.intake.formats import deal_split, files, split_of_name
from blip_core.intake.formats.files import Entry, FileUnit, read
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
    for file in lists:
        # one folder of another name will do, but not train's for the pictures of val: names may repeat
        split = split_of_name(file.stem)
        own = tuple(f for f in others if split is None or split_of_name(f) in (None, split))
        entries = [_entry(image, texts, where, file.stem, has_test, own) for image, texts, where in _images(file)]
        found += files.slices(root, file.name, entries)
    return found


def _lists(path: Path) -> list[Path]:
    """Lists of captions; of several JSON files, those that are called so (COCO's own folder also holds instances and key points)."""
    found = files.json_files(path) + (files.json_files(path / "annotations") if path.is_dir() else [])
    named = [p for p in found if p.name.startswith("captions")] or found
    return [p for p in named if files.head_holds(p, "annotations", "file_name")]


def _images(file: Path) -> list[tuple[dict[str, Any], tuple[str, ...], str]]:
    """Each image of one list with its captions and where it stands."""
    value = files.load_json(file)
    captions = defaultdict(list)
    for i, row in enumerate(files.listed(file, value, "annotations")):
        if not isinstance(row, dict) or "image_id" not in row or not isinstance(row.get("caption"), str):
            fields = sorted(row) if isinstance(row, dict) else row
            raise ValueError(f"{file}: annotations[{i}]: expected image_id and caption, got {fields!r:.200}; is this a list of captions?")
        captions[str(row["image_id"])].append(row["caption"])
    images = [image if isinstance(image, dict) else {} for image in files.listed(file, value, "images")]
    return [(image, tuple(captions[str(image.get("id"))]), f"{file.name}:images[{i}]") for i, image in enumerate(images)]


def _entry(image: dict[str, Any], texts: tuple[str, ...], where: str, stem: str, has_test: bool, others: tuple[str, ...]) -> Entry:
    name, number = image.get("file_name"), str(image.get("id"))
    fault: tuple[str, ...] = ()
    if not isinstance(name, str) or image.get("id") is None:
        fault = ("bad_row", f"expected id and file_name, got the fields {sorted(map(str, image))}")
    name = str(name)
    base = name.rpartition("/")[2].rpartition(".")[0]
    folder = stem.removeprefix("captions_")
    paths = (name, *(f"{place}/{name}" for place in ("images", folder, f"images/{folder}", *others)))
    return Entry(base if KEY.fullmatch(base) else number, paths, texts, number, _split(stem, number, has_test), where, fault)


def _split(stem: str, number: str, has_test: bool) -> str | None:
    split = split_of_name(stem)
    return deal_split(number, {"val": 0.5, "test": 0.5}) if split == "val" and not has_test else split

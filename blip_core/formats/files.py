"""Images that lie as files beside a list of captions: what the formats of this kind share."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from blip_core.formats import SPLITS, Record, RejectedRow
from blip_core.rejected import Rejected

MOST_IMAGE_BYTES = 64 << 20  # what is read at all; ingest's own limit is a parameter
_UNIT_ENTRIES = 1000
_HEAD = 1 << 20
_MOST_NAME, _MOST_PATH = 255, 2000  # bytes; the system refuses more


@dataclass(frozen=True)
class Entry:
    """One row of the list. `paths`: where the image may lie, below the root, in the order of looking."""

    key: str
    paths: tuple[str, ...]
    texts: tuple[str, ...]
    image_id: str | None
    split: str | None
    where: str
    fault: tuple[str, ...] = ()  # reason and detail of a row that can't be used


@dataclass(frozen=True)
class FileUnit:
    name: str
    root: Path
    entries: tuple[Entry, ...]


def slices(root: Path, name: str, entries: list[Entry]) -> list[FileUnit]:
    """Units of a thousand entries of one split each: shards of val and test then are not cut into crumbs."""
    units = []
    for split in (*SPLITS, None):
        own = [e for e in entries if e.split == split]
        for start in range(0, len(own), _UNIT_ENTRIES):
            part = own[start : start + _UNIT_ENTRIES]
            units.append(FileUnit(f"{name} {split or 'any'} {start}", root, tuple(part)))
    return units


def read(unit: FileUnit) -> Iterator[Record | RejectedRow]:
    for entry in unit.entries:
        try:
            if entry.fault:
                raise Rejected(*entry.fault)
            if not entry.texts:
                raise Rejected("missing_text", "no caption in the list")
            yield Record(entry.key, _image(unit.root, entry.paths), entry.texts, entry.image_id, entry.split, entry.where)
        except Rejected as e:
            yield RejectedRow(entry.key, entry.where, e.reason, e.detail, entry.split)


def _image(root: Path, paths: tuple[str, ...]) -> bytes:
    for path in map(PurePosixPath, paths):
        lengths = [len(part.encode("utf-8", "replace")) for part in path.parts]
        if path.is_absolute() or ".." in path.parts or max(lengths, default=0) > _MOST_NAME or sum(lengths) > _MOST_PATH:
            raise Rejected("unsafe_key", f"the image's path {str(path)[:200]!r} leaves the folder or is too long")
    found = next((root / p for p in paths if (root / p).is_file()), None)
    if found is None:
        raise Rejected("missing_image", f"no file {' or '.join(paths)}")
    size = found.stat().st_size
    if size > MOST_IMAGE_BYTES:
        raise Rejected("too_many_bytes", f"{size} bytes, at most {MOST_IMAGE_BYTES} are read")
    return found.read_bytes()


def json_files(path: Path, *, pattern: str = "*.json") -> list[Path]:
    """`path` itself, or the JSON files in the folder, sorted."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".json" else []
    return sorted(p for p in path.glob(pattern) if p.is_file() and not p.name.startswith("."))


def head_holds(path: Path, *words: str) -> bool:
    """Whether the file is a JSON object that names one of these keys in its first megabyte."""
    with path.open("rb") as f:
        head = f.read(_HEAD)
    return head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{") and any(re.search(rb'"%s"\s*:' % w.encode(), head) for w in words)


def load_json(path: Path) -> dict:
    """A JSON object, whole. ValueError names the file and, for a syntax error, its line."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path}: not valid JSON: {e}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def listed(path: Path, value: dict, field: str) -> list:
    """A list that the object must hold."""
    found = value.get(field)
    if not isinstance(found, list):
        raise ValueError(f"{path}: expected a list under {field!r}, got {type(found).__name__}; the object's keys are {sorted(value)[:10]}")
    return found

"""Images that lie as files beside a list of captions: what the formats of this kind share."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from blip_core.files.rejected import Rejected
from blip_core.intake.formats import SPLITS, Record, RejectedRow
from blip_core.intake.formats.columns import IMAGE_ENDS
from blip_core.intake.formats.inline import picture_of
from blip_core.intake.formats.rows import is_json_lines, open_table, scan
from blip_core.intake.walk import below
from blip_core.metadata.fields import NO_FIELDS, Fields
from blip_core.tables.shards import KEY

MOST_IMAGE_BYTES = 64 << 20  # what is read at all; ingest's own limit is a parameter
_UNIT_ENTRIES = 1000
_HEAD = 1 << 20
_MOST_NAME, _MOST_PATH = 255, 2000  # bytes; the system refuses more
_MOST_FOLDERS = 8  # of another machine's path that are looked for
_MOST_READABLE_KEY = 120
_WRAPPERS = ("data", "rows", "items", "samples", "records", "examples")
_WRAPPED = re.compile(rb'^\{(?:[^{}\[\]]|\{[^{}]*\})*"(?:%s)"\s*:\s*\[\s*\{' % b"|".join(w.encode() for w in _WRAPPERS))


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
    inline: str = ""  # the picture itself, where it stands in the list
    fields: Fields = NO_FIELDS


@dataclass(frozen=True)
class FileUnit:
    name: str
    root: Path
    entries: tuple[Entry, ...]
    files: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(self.entries)


def slices(root: Path, name: str, entries: list[Entry], *, of: Path | None = None) -> list[FileUnit]:
    """Units of a thousand entries of one split each: shards of val and test then are not cut into crumbs. `of`: the list, where they
    come from one."""
    listed = (of.relative_to(root).as_posix(),) if of else ()
    units = []
    for split in (*SPLITS, None):
        own = [e for e in entries if e.split == split]
        for start in range(0, len(own), _UNIT_ENTRIES):
            part = own[start : start + _UNIT_ENTRIES]
            units.append(FileUnit(f"{name} {split or 'any'} {start}", root, tuple(part), listed))
    return units or [FileUnit(f"{name} any 0", root, (), listed)] * bool(of)


def read(unit: FileUnit) -> Iterator[Record | RejectedRow]:
    for entry in unit.entries:
        yield read_entry(unit.root, entry)


def read_entry(root: Path, entry: Entry) -> Record | RejectedRow:
    """The record of an entry, also of one without a text. What is lost with it are its texts, one at least."""
    name = ""
    try:
        if entry.fault:
            raise Rejected(*entry.fault)
        if entry.inline:
            return _record(entry, picture_of(entry.inline))
        name = _find(root, entry.paths)
        return _record(entry, _image(root / name), name)
    except Rejected as e:
        return RejectedRow(entry.key, entry.where, e.reason, e.detail, entry.split, max(1, len(entry.texts)), name)


def _record(entry: Entry, data: bytes, name: str = "") -> Record:
    return Record(entry.key, data, entry.texts, entry.image_id, entry.split, entry.where, name, entry.fields)


def places(name: str, *folders: str) -> tuple[str, ...]:
    """Where an image of this name may lie below the root: in one of the folders, in their `images`, with an extension where it has none.

    Lists often carry the paths of their author's machine. Of an absolute one its ends are tried, down to the last folder and name:
    a bare name could be another picture's."""
    name = name.replace("\\", "/")
    drive = re.match(r"[A-Za-z]:/", name)
    parts = [p for p in name[2 * bool(drive) :].split("/") if p not in ("", ".")]
    absolute = drive or name.startswith("/")
    first = max(0, len(parts) - _MOST_FOLDERS)
    ends = ["/".join(parts[i:]) for i in range(first, max(first + 1, len(parts) - 1))] if absolute else ["/".join(parts)]
    dressed = [e + x for e in ends for x in (("",) if e.lower().endswith(IMAGE_ENDS) else ("", *IMAGE_ENDS))]
    found = [f"{folder}/{middle}{e}".removeprefix("./") for e in dressed for folder in (*folders, ".") for middle in ("", "images/")]
    return tuple(dict.fromkeys(found))


def image_folder(root: Path) -> tuple[str, ...]:
    """The one folder below, two deep at most, that holds images, whatever it is called: flickr30k-images, Flicker8k_Dataset. None when
    there are several, as names may repeat in them."""
    found = [
        folder
        for folder, names in below(root).folders.items()
        if folder and folder.count("/") < 2 and any(name.lower().endswith(IMAGE_ENDS) for name in names)
    ]
    return (found[0],) if len(found) == 1 else ()


def key_of(name: str) -> str:
    """A key from an image's path: readable where the path allows it, and another for every other path."""
    stem = name.rpartition(".")[0] if name.lower().endswith(IMAGE_ENDS) else name
    key = stem.strip("./").replace("/", "_")
    if KEY.fullmatch(key) and len(key) <= _MOST_READABLE_KEY:
        return key
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', key)[-60:]}-{digest}".lstrip("_-")


def _find(root: Path, paths: tuple[str, ...]) -> str:
    """The first of the paths where a file lies."""
    for path in map(PurePosixPath, paths):
        lengths = [len(part.encode("utf-8", "replace")) for part in path.parts]
        if path.is_absolute() or ".." in path.parts or max(lengths, default=0) > _MOST_NAME or sum(lengths) > _MOST_PATH:
            raise Rejected("unsafe_key", f"the image's path {str(path)[:200]!r} leaves the folder or is too long")
    found = present(root, paths)
    if found is None:
        raise Rejected("missing_image", f"no file {' or '.join(paths)}")
    return PurePosixPath(found).as_posix()


def present(root: Path, paths: tuple[str, ...]) -> str | None:
    """The first of the paths below the root where a file lies, as it is written or in another spelling."""
    spelled = (other for path in paths for other in _spellings(path))
    return next((p for p in chain(paths, spelled) if _is_file(root / p)), None)


def _is_file(path: Path) -> bool:
    """Also of what can't be a path at all, such as a text of thousands of characters."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _image(file: Path) -> bytes:
    size = file.stat().st_size
    if size > MOST_IMAGE_BYTES:
        raise Rejected("too_many_bytes", f"{size} bytes, at most {MOST_IMAGE_BYTES} are read")
    return file.read_bytes()


def _spellings(path: str) -> Iterator[str]:
    """a.JPG for a.jpg and back, of a list that was made where file names have no case; and an accent as one character or as two, in which
    file systems differ; or both."""
    for form in (path,) if path.isascii() else (path, unicodedata.normalize("NFC", path), unicodedata.normalize("NFD", path)):
        stem, dot, end = form.rpartition(".")
        yield from (form, stem + dot + (end.upper() if end.islower() else end.lower()))


def json_files(path: Path) -> list[Path]:
    """`path` itself, or the JSON files in the folder and in its `annotations`, sorted. Those of folders further below may be of another
    data set; they are told as not understood."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".json" else []
    places = [path, *(path / name for name in ("annotation", "annotations"))]
    found = (entry for place in places if place.is_dir() for entry in sorted(place.iterdir()))
    return [p for p in found if p.suffix.lower() == ".json" and p.is_file() and not p.name.startswith(".")]


def head_holds(path: Path, *words: str, opens: str = "{", value: bytes = b"") -> bool:
    """Whether the file is a JSON object (`opens` "[": a list) that names one of these keys (regular expressions) in its first megabyte,
    before a value that begins with `value` (likewise)."""
    head = head_of(path)
    begins = head.startswith(opens.encode()) or (opens == "[" and _WRAPPED.search(head) is not None)
    return begins and any(re.search(rb'"%s"\s*:\s*%s' % (w.encode(), value), head, re.IGNORECASE) for w in words)


def head_of(path: Path) -> bytes:
    """The file's first megabyte, from its first sign on."""
    with path.open("rb") as f:
        return f.read(_HEAD).removeprefix(b"\xef\xbb\xbf").lstrip()


def load_rows(path: Path) -> list[Any]:
    """A JSON list, the one that an object holds under `data` or the like, or the objects of JSON lines; Rejected for a line that is
    none."""
    if is_json_lines(path):
        return [row.values for row in scan(open_table(path))]
    value = load_json(path, (dict, list))
    if isinstance(value, list):
        return value
    return next((rows for name, rows in value.items() if name in _WRAPPERS and isinstance(rows, list)), [])


def load_json(path: Path, kind: type | tuple[type, ...] = dict) -> Any:
    """A JSON object (or a list, by `kind`), whole. ValueError names the file and, for a syntax error, its line.

    Bytes that are no UTF-8 become lone surrogates, which no text may hold: they cost their text, not the list."""
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        value = json.loads(data.decode("utf-8", "surrogateescape") if data[:1] in b"{[ \r\n\t" else data)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path}: not valid JSON: {e}") from None
    if not isinstance(value, kind):
        raise ValueError(f"{path}: expected a JSON {'object' if kind is dict else 'list'}, got {type(value).__name__}")
    return value


def listed(path: Path, value: dict[str, Any], field: str) -> list[Any]:
    """A list that the object must hold."""
    found = value.get(field)
    if not isinstance(found, list):
        raise ValueError(f"{path}: expected a list under {field!r}, got {type(found).__name__}; the object's keys are {sorted(value)[:10]}")
    return found

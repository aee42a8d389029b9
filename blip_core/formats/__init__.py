"""One module per input format. All offer the same four names, so that ingest does not care which one it reads:

    EXPECTS: str                                    what a folder of this format holds, for error messages
    recognises(path: Path) -> bool                  by a look at the files; cheap
    units(path: Path) -> list[unit]                 work for one process each, in a fixed order; a unit pickles and has a `name`
    read(unit) -> Iterator[Record | RejectedRow]    every sample or row of the unit, in a fixed order, one in memory at a time

To add a format, write the module and put its name into FORMATS. Where images lie as files beside a list, `files.py` (a JSON list,
parsed whole) or `listing.py` (a table, read row by row) has units and read already: only the list has to be understood.
"""

import hashlib
import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

# in this order: the first that recognises a folder reads it
FORMATS = ("webdataset", "karpathy", "salesforce", "coco", "imagefolder", "parquet", "table", "sidecar")
SPLITS = ("train", "val", "test")
_SPLIT_WORDS = {"train": "train", "restval": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}


@dataclass(frozen=True)
class Record:
    """One image with its texts, as found: nothing is cleaned or decoded yet."""

    key: str
    image: bytes
    texts: tuple[str, ...]
    image_id: str | None  # identity of the picture where the format knows one
    split: str | None  # one of SPLITS; None where the format does not say
    where: str  # file and line or member, from the format's own folder on


@dataclass(frozen=True)
class RejectedRow:
    """Something that makes no record. `reason` is one of rejected.REASONS; `key` is empty where none is known."""

    key: str
    where: str
    reason: str
    detail: str
    split: str | None = None


def recognise(path: Path, name: str | None = None) -> ModuleType:
    """The module that reads the files at `path`: the one of this `name`, or the first that recognises them. ValueError says what was
    found there and what is expected."""
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder; `make data` makes the built-in sample, or put your own data there")
    modules = [format_module(name) for name in ((name,) if name else FORMATS)]
    for module in modules:
        if module.recognises(path):
            return module
    if advice := importlib.import_module("blip_core.formats.urls").advice(path):
        raise ValueError(advice)
    found = sorted(p.name + "/" * p.is_dir() for p in path.iterdir()) if path.is_dir() else [path.name]
    listed = f"{len(found)} entries: {', '.join(found[:8])}{', ...' * (len(found) > 8)}" if found else "nothing"
    if broken := importlib.import_module("blip_core.formats.table").unreadable(path):
        listed += f" ({'; '.join(broken)[:500]})"
    expected = "".join(f"\n  {name}: {module.EXPECTS}" for name, module in zip((name,) if name else FORMATS, modules, strict=True))
    raise ValueError(f"{path}: no known format; found {listed}. Expected one of{expected}\n`make data` makes the built-in sample")


def format_module(name: str) -> ModuleType:
    return importlib.import_module(f"blip_core.formats.{name}")


def split_of_name(name: str) -> str | None:
    """The split that a file or folder name speaks of, as in captions_val2014.json or train-00000.tar."""
    words = re.findall(r"[a-z]+", name.lower())
    splits = {_SPLIT_WORDS[w] for w in words if w in _SPLIT_WORDS}
    return splits.pop() if len(splits) == 1 else None


def named_split(name: str) -> str | None:
    """A split by the word that a file gives for it; restval joins train. None for an unknown word."""
    return _SPLIT_WORDS.get(name.lower())


def deal_split(identity: str, shares: dict[str, float]) -> str:
    """A split for a picture without one: by a hash of its identity, so that it stays where it is when others come or go."""
    draw = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") / 2**64 * sum(shares.values())
    for split, share in shares.items():
        draw -= share
        if draw < 0:
            return split
    return split

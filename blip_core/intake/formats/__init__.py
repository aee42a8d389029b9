"""One module per input format. All offer the same four names, so that ingest does not care which one it reads:

    EXPECTS: str                                    what a folder of this format holds, for error messages
    recognises(path: Path) -> bool                  by a look at the files; cheap
    units(path: Path) -> list[unit]                 work for one process each, in a fixed order; a unit pickles, has a `name`, a
                                                    `size` (its samples; of a tar its bytes), and `files`: those that it reads, by
                                                    their path below the root. What no unit and no record names is told as not
                                                    understood (account.py). Those of DECLARABLE also take `fields`: columns by name
                                                    instead of by a search
    read(unit) -> Iterator[Record | RejectedRow]    every sample or row of the unit, in a fixed order, one in memory at a time

To add a format, write the module and put its name into FORMATS. Where images lie as files beside a list, `files.py` (a JSON list,
parsed whole) or `listing.py` (a table, read row by row) has units and read already: only the list has to be understood.
"""

import hashlib
import importlib
import re
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from blip_core.config.intake import FieldsConfig
from blip_core.files.rejected import REASONS, Rejected
from blip_core.intake.formats.columns import SEARCH
from blip_core.metadata.fields import NO_FIELDS, Fields

# in this order: the first that recognises a folder reads it
FORMATS = ("webdataset", "karpathy", "salesforce", "coco", "imagefolder", "parquet", "table", "sidecar")
DECLARABLE = ("webdataset", "salesforce", "imagefolder", "parquet", "table")
SPLITS = ("train", "val", "test")
_MOST_FILES = 10_000  # that are counted for a message
_SPLIT_WORDS = {"train": "train", "restval": "train", "test": "test"}
_SPLIT_WORDS |= dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "val")


@dataclass(frozen=True)
class Record:
    """One image with its texts, as found: nothing is cleaned or decoded yet."""

    key: str
    image: bytes
    texts: tuple[str, ...]
    image_id: str | None  # identity of the picture where the format knows one
    split: str | None  # one of SPLITS; None where the format does not say
    where: str  # file and line or member, from the format's own folder on
    file: str = ""  # path below the root of the picture's own file, where it has one
    fields: Fields = NO_FIELDS  # what else the source says of it


@dataclass(frozen=True)
class RejectedRow:
    """Something that makes no record. `reason` is one of rejected.REASONS; `key` is empty where none is known. `lost`: how many texts go
    with it; `file` as a record has it."""

    key: str
    where: str
    reason: str
    detail: str
    split: str | None = None
    lost: int = 1
    file: str = ""


def recognise(path: Path, name: str | None = None, fields: FieldsConfig = SEARCH) -> ModuleType:
    """The module that reads the files at `path`: the one of this `name`, or the first that recognises them with these columns.
    ValueError says what was found there and what is expected."""
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder{_beside(path)}; `blip sample --out data` writes a sample, or put your own there")
    for module in (found := _candidates(path, name, fields)):
        if recognises(module, path, fields):
            return module
    if advice := importlib.import_module("blip_core.intake.formats.urls").advice(path):
        raise ValueError(advice)
    raise ValueError(
        f"{path}: no known format; {_listed(path)}{'' if name else _nearest(path)}{_declared(fields)}{_expected(found)}\n"
        "`blip sample --out data` writes a sample"
    )


def recognises(module: ModuleType, path: Path, fields: FieldsConfig = SEARCH) -> bool:
    return module.recognises(path) if fields == SEARCH else module.recognises(path, fields)


def units(module: ModuleType, path: Path, fields: FieldsConfig = SEARCH) -> list[Any]:
    return module.units(path) if fields == SEARCH else module.units(path, fields)


def _candidates(path: Path, name: str | None, fields: FieldsConfig) -> list[ModuleType]:
    names = [n for n in ((name,) if name else FORMATS) if fields == SEARCH or n in DECLARABLE]
    if not names:
        raise ValueError(f"{path}: {name} has its fields by definition; web_fields and clean_fields are for {', '.join(DECLARABLE)}")
    return [format_module(n) for n in names]


def _beside(path: Path) -> str:
    """What there is instead, for who has mistyped."""
    names = sorted(p.name for p in path.parent.iterdir())[:8] if path.parent.is_dir() else []
    return f" ({path.parent} holds {', '.join(names)})" if names else ""


def _nearest(path: Path) -> str:
    said = importlib.import_module("blip_core.intake.formats.nearest").nearest(path)
    return f".\n{said}" if said else ""


def _listed(path: Path) -> str:
    found = sorted(p.name + "/" * p.is_dir() for p in path.iterdir()) if path.is_dir() else [path.name]
    text = f"found {len(found)} entries: {', '.join(found[:8])}{', ...' * (len(found) > 8)}" if found else "found nothing"
    if len(found) > 8 or any(name.endswith("/") for name in found):
        kinds = Counter(p.suffix.lower() or "without an ending" for p in islice(path.rglob("*"), _MOST_FILES) if p.is_file())
        ordered = sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0]))
        text += f"; files by their ending: {', '.join(f'{n} {end}' for end, n in ordered[:6]) or 'none'}"
    seen = "; ".join(importlib.import_module("blip_core.intake.formats.table").described(path))
    below = [f"{p.name}/ ({m})" for p in sorted(path.iterdir())[:20] if p.is_dir() and (m := _name_of(p))] if path.is_dir() else []
    text += f". Below it lie {', '.join(below)}: name one of these" if below else ""
    advice = "; ingest.web_fields and clean_fields, or inspect --image and --text, say which columns hold image and text" if seen else ""
    return f"{text} ({seen[:600]}{advice})" if seen else text


def _name_of(path: Path) -> str | None:
    return next((name for name in FORMATS if format_module(name).recognises(path)), None)


def _declared(fields: FieldsConfig) -> str:
    told = ", ".join(f"{meaning} = {name!r}" for meaning, name in fields.model_dump().items() if name is not None)
    return f". Looked for the declared {told}" if told else ""


def _expected(modules: list[ModuleType]) -> str:
    return ". Expected one of" + "".join(f"\n  {m.__name__.rpartition('.')[2]}: {m.EXPECTS}" for m in modules)


def format_module(name: str) -> ModuleType:
    return importlib.import_module(f"blip_core.intake.formats.{name}")


def failure(status: object, message: object) -> Rejected:
    """Why img2dataset has no image, by the columns status and error_message of its tables."""
    known = status in REASONS and str(status).startswith("failed_")
    return Rejected(str(status), str(message or "")) if known else Rejected("failed_upstream", f"status {str(status)!r}: {message}")


def split_of_name(name: str) -> str | None:
    """The split that a file or folder name speaks of, as in captions_val2014.json or train-00000.tar."""
    words = re.findall(r"[a-z]+", name.lower())
    splits = {_SPLIT_WORDS[w] for w in words if w in _SPLIT_WORDS}
    return splits.pop() if len(splits) == 1 else None


def named_split(name: str) -> str | None:
    """A split by the word that a file gives for it; restval joins train. None for an unknown word."""
    return _SPLIT_WORDS.get(name.lower())


def deal_split(identity: str, shares: dict[str, float], *, seed: int = 0) -> str:
    """A split for a picture without one: by a hash of its identity, so that it stays where it is when others come or go."""
    digest = hashlib.sha256(f"{seed} {identity}".encode("utf-8", "surrogatepass")).digest()
    draw = int.from_bytes(digest[:8], "big") / 2**64 * sum(shares.values())
    for split, share in shares.items():
        draw -= share
        if draw < 0:
            return split
    return split

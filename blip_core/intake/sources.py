"""Where a part of the data lies: below the data folder, in S3, or wherever else fsspec reads (https, gs, ...).

A part is named as WebDataset users name it: a folder or a prefix, one tar, tars by braces (`s3://b/p/{00000..00099}.tar`), or a list
of these. What lies elsewhere is first listed into a small file below the data folder, by `blip list`: names, sizes and
ETags. So DVC sees a change there as a change of the data, and ingest reads the very objects that were listed or says what changed.

Tars stay where they are and are fetched one at a time. Anything else (lists with single images, Parquet) is first copied whole.
"""

import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

from tqdm import tqdm

from blip_core.config.intake import FieldsConfig, IngestConfig, Place, RemoteConfig
from blip_core.files.content import hash64, write_json
from blip_core.intake.account import Account, account, account_by_name
from blip_core.intake.formats import format_module, recognise, units
from blip_core.intake.formats.columns import SEARCH
from blip_core.intake.walk import below
from blip_core.remote.elsewhere import storage_of
from blip_core.remote.storage import Stored

PARTS = ("web", "clean")
_MOST_NAMES = 1_000_000  # that braces may stand for
_LONGEST_NAME = 255  # bytes; file systems refuse more


@dataclass(frozen=True)
class Source:
    """`place`: what the quarantine table's `where` begins with. `format`: the module of blip_core/intake/formats that reads the units."""

    place: str
    format: str
    units: list[Any]
    root: Path | None = None  # of a part on this machine whose files are all accounted for
    objects: dict[str, int] = field(default_factory=dict)  # name and size of what lies elsewhere
    notes: tuple[str, ...] = ()  # what a person should know of how it is read

    def account(self, used: set[int], *, texts: int) -> Account:
        """Of files that no unit read, given the hashes of those that one did."""

        def was_used(name: str) -> bool:
            return hash64(name) in used

        if self.root is not None:
            return account(below(self.root), was_used, texts=texts)
        return account_by_name(self.objects, was_used, texts=texts)


@dataclass(frozen=True)
class Listing:
    """Objects by their name below the URL `base`, in the order of reading."""

    base: str
    objects: dict[str, Stored]


def open_source(data: Path, part: str, cfg: IngestConfig, *, scratch: Path) -> Source:
    """The units of a part. ValueError when nothing is there that can be read, or the listing of a remote part is missing or of another."""
    place, chosen, fields = (getattr(cfg, f"{part}{end}") for end in ("", "_format", "_fields"))
    if is_remote(place):
        return _open_remote(_read_listing(data, part, place), chosen, fields, scratch / f"_copy.{part}", scratch, cfg.remote)
    return _open_local(data, place, chosen, fields)


def look(place: str, cfg: RemoteConfig, *, scratch: Path, fields: FieldsConfig = SEARCH) -> Source:
    """The units of a place that is no part of the data yet, without a listing."""
    if is_remote(place):
        return _open_remote(_find(place, cfg), None, fields, scratch / "_copy", scratch, cfg)
    return _open_local(Path(), place, None, fields)


def identity(data: Path, part: str, place: Place) -> Iterator[str]:
    """Lines that change when the part's files or objects do."""
    if is_remote(place):
        listing = _read_listing(data, part, place)
        yield from (f"{asdict(stored)}" for stored in listing.objects.values())
        return
    for path in filter(Path.exists, local_files(data, place)):
        found = below(path)
        for file in (found.root / name for name in found.names):
            stat = file.stat()
            yield f"{os.path.relpath(file, data)} {stat.st_size} {stat.st_mtime_ns}"


def write_listings(data: Path, cfg: IngestConfig) -> list[str]:
    """List each part that lies on the net and write what was found, where it changed; returns lines for a person."""
    lines = []
    for part in PARTS:
        place, path = getattr(cfg, part), _listing_path(data, part)
        if not is_remote(place):
            continue
        listing = _find(place, cfg.remote)
        _check_names(listing)
        value = {"source": place, "base": listing.base, "objects": {name: _entry(s) for name, s in listing.objects.items()}}
        old = json.loads(path.read_text()) if path.exists() else None
        if old != json.loads(json.dumps(value)):
            write_json(value, path)
        size = sum(stored.size for stored in listing.objects.values())
        lines.append(f"{path}: {len(listing.objects)} objects, {size / 1e9:.3f} GB at {as_written(place)}; {_difference(old, value)}")
    return lines


def is_remote(place: Place) -> bool:
    """Whether the part lies in S3 or elsewhere on the net. ValueError for a list that mixes schemes."""
    schemes = {scheme_of(name) for name in _names(place)}
    if len(schemes) != 1:
        raise ValueError(f"{as_written(place)}: expected names that all lie on this machine or all at one scheme (s3://), at least one")
    return schemes.pop() != "file"


def scheme_of(name: str) -> str:
    """`file` for a path."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", name)
    return found[1] if found else "file"


def shown(data: Path, cfg: IngestConfig, part: str) -> str:
    """Where the part lies, for a message."""
    place = getattr(cfg, part)
    return as_written(place) if is_remote(place) else ", ".join(map(str, local_files(data, place)[:3]))


def expand(place: Place) -> list[str]:
    """Every name that the place stands for: `{00000..00099}` counts, `{a,b}` lists; others in braces stay as they are."""
    return [name for written in _names(place) for name in _expand(written)]


def _names(place: Place) -> list[str]:
    return [name for written in ([place] if isinstance(place, str) else place) for name in written.split("::")]


def _expand(name: str) -> list[str]:
    pieces: list[list[str]] = []
    count = 1
    for i, piece in enumerate(re.split(r"\{([^{}]*)\}", name)):
        options = _options(piece) if i % 2 else [piece]
        count *= len(options)
        if count > _MOST_NAMES:
            raise ValueError(f"{name}: stands for more than {_MOST_NAMES} names")
        pieces.append(options)
    return ["".join(chosen) for chosen in product(*pieces)]


def _options(inside: str) -> list[str]:
    if match := re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", inside):
        first, last = int(match[1]), int(match[2])
        if last < first or last - first >= _MOST_NAMES:
            raise ValueError(f"{{{inside}}}: expected a count upwards, to at most {_MOST_NAMES} names")
        width = len(match[1]) if match[1].startswith("0") else 1
        return [f"{number:0{width}d}" for number in range(first, last + 1)]
    return inside.split(",") if "," in inside else [f"{{{inside}}}"]


def as_written(place: Place) -> str:
    return place if isinstance(place, str) else ", ".join(place)


def local_files(data: Path, place: Place) -> list[Path]:
    """The folders and files that a place on this machine names."""
    paths = []
    for name in expand(place):
        path = Path(unquote(urlsplit(name).path)) if name.startswith("file:") else Path(name)
        paths.append(data / path)
    return paths


def _open_local(data: Path, place: Place, chosen: str | None, fields: FieldsConfig) -> Source:
    paths = local_files(data, place)
    if len(paths) == 1:
        module = recognise(paths[0], chosen, fields)
        return Source(
            as_written(place), module.__name__.rpartition(".")[2], units(module, paths[0], fields), paths[0], notes=_notes(module, paths[0])
        )
    webdataset = format_module("webdataset")
    for path in paths:
        if not (path.is_file() and webdataset.is_tar(path.name)):
            raise ValueError(f"{path}: {'no tar' if path.exists() else 'no such file'}; several names must be those of tars")
    root = Path(os.path.commonpath([path.parent for path in paths]))
    return Source(os.path.relpath(root, data), "webdataset", webdataset.units_of(root, paths, fields))


def _open_remote(listing: Listing, chosen: str | None, fields: FieldsConfig, copy: Path, scratch: Path, cfg: RemoteConfig) -> Source:
    _check_names(listing)
    place = listing.base.rstrip("/")
    if chosen in (None, "webdataset") and any(map(format_module("webdataset").is_tar, listing.objects)):
        name = "remote_webdataset"
        sizes = {name: stored.size for name, stored in listing.objects.items()}
        return Source(place, name, format_module(name).units(listing.objects, fields, scratch=scratch, cfg=cfg), objects=sizes)
    _copy(listing, copy, cfg)
    try:
        module = recognise(copy, chosen, fields)
    except ValueError as e:
        raise ValueError(str(e).replace(str(copy), place)) from None
    return Source(place, module.__name__.rpartition(".")[2], units(module, copy, fields), copy, notes=_notes(module, copy))


def _notes(module: ModuleType, path: Path) -> tuple[str, ...]:
    """What a format has to say of these files, where it has something to say."""
    return module.notes(path) if hasattr(module, "notes") else ()


def _copy(listing: Listing, folder: Path, cfg: RemoteConfig) -> None:
    """Fetch all objects; those that an earlier run fetched stay, as files appear whole."""
    storage = storage_of(listing.base, cfg)
    todo = [(stored, folder / name) for name, stored in listing.objects.items() if not (folder / name).exists()]
    with ThreadPoolExecutor(cfg.connections) as pool, tqdm(total=len(todo), desc=listing.base, unit="file", disable=None) as bar:
        try:
            for future in [pool.submit(storage.fetch, *pair) for pair in todo]:
                future.result()
                bar.update()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _find(place: Place, cfg: RemoteConfig) -> Listing:
    """What lies there now. ValueError names what does not."""
    names = expand(place)
    storage, scheme = storage_of(names[0], cfg), f"{scheme_of(names[0])}://"
    with ThreadPoolExecutor(cfg.connections) as pool:
        found = list(pool.map(storage.find, names))
    if missing := [name for name, objects in zip(names, found, strict=True) if not objects]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"{', '.join(missing[:3])}{more}: nothing lies there that these credentials may see; expected an object, a prefix, or names "
            "by braces, {00000..00099}"
        )
    folders = [name if objects[0].url != name else name.rpartition("/")[0] for name, objects in zip(names, found, strict=True)]
    base = scheme + os.path.commonpath([f"/{name.removeprefix(scheme)}".rstrip("/") for name in folders]).lstrip("/")
    base = base if base == scheme else f"{base}/"
    return Listing(base, {stored.url.removeprefix(base): stored for objects in found for stored in objects})


def _check_names(listing: Listing) -> None:
    """Names become those of local files, so none may leave the folder or mean another's file."""
    for name in listing.objects:
        parts = name.split("/")
        if any(part in ("", ".", "..") or "\0" in part or len(part.encode()) > _LONGEST_NAME for part in parts):
            raise ValueError(f"{listing.base}{name}: this name can't be a local file's; rename the object, or name a narrower prefix")


def _listing_path(data: Path, part: str) -> Path:
    return data / f"{part}.objects.json"


def _entry(stored: Stored) -> dict[str, Any]:
    entry = asdict(stored)
    del entry["url"]
    return {name: value for name, value in entry.items() if value is not None}


def _read_listing(data: Path, part: str, place: Place) -> Listing:
    path, advice = _listing_path(data, part), "`blip list` writes it, `dvc add data` notes the change"
    if not path.exists():
        raise ValueError(f"{path}: missing, the listing of ingest.{part} = {as_written(place)}; {advice}")
    try:
        value = json.loads(path.read_bytes())
        source, base = value["source"], value["base"]
        objects = {name: Stored(base + name, **entry) for name, entry in value["objects"].items()}
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{path}: not a listing ({type(e).__name__} {e}); {advice}") from None
    if _names(source) != _names(place):
        raise ValueError(f"{path}: lists {as_written(source)}, but ingest.{part} is {as_written(place)}; {advice}")
    return Listing(base, objects)


def _difference(old: dict[str, Any] | None, new: dict[str, Any]) -> str:
    if old is None:
        return "`dvc add data` notes it"
    before, now = old.get("objects", {}), new["objects"]
    changed = sum(before[name] != now[name] for name in before.keys() & now.keys())
    counts = {"new": len(now.keys() - before.keys()), "gone": len(before.keys() - now.keys()), "changed": changed}
    told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    return f"{told}: `dvc add data` notes it" if told else "as before"

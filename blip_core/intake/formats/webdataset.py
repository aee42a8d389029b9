"""WebDataset tars: those of img2dataset with their side files, and plain ones.

img2dataset writes NNNNN.tar with the successes, NNNNN.parquet with all rows and NNNNN_stats.json with counts. The side files tell
what the tar should hold, so a lost sample shows. The members of one sample stand together in a tar.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from blip_core.config.intake import FieldsConfig
from blip_core.files.rejected import Rejected
from blip_core.intake.formats import Record, RejectedRow, split_of_name
from blip_core.intake.formats.columns import IMAGE_ENDS, SEARCH, column
from blip_core.intake.formats.files import MOST_IMAGE_BYTES
from blip_core.intake.formats.side_files import STATS, is_side_table, read_side_table, read_stats, side_rows
from blip_core.intake.formats.tar import Member, members
from blip_core.intake.walk import below
from blip_core.metadata.fields import NO_FIELDS, Fields, beside
from blip_core.texts.clean import lines_of

EXPECTS = "NNNNN.tar with <key>.jpg|png|webp and <key>.txt or <key>.json, as img2dataset writes them (with NNNNN.parquet beside) or plain"

_IMAGES = tuple(end[1:] for end in IMAGE_ENDS)
LINES = ("txt", "text", "caption")  # endings of files that hold a text a line
MOST_TEXT = 1 << 16  # bytes of one
MOST_JSON = 1 << 18
_WANTED = {**dict.fromkeys(_IMAGES, MOST_IMAGE_BYTES), **dict.fromkeys(LINES, MOST_TEXT), "json": MOST_JSON}
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_CAPTIONS = ("caption", "captions", "text")  # in any case: LAION writes TEXT
_LISTED = re.compile(rb'^\s*\[|"captions?"\s*:\s*\[', re.IGNORECASE)
_PART = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class TarUnit:
    """One shard of the input: its tar, its side table, or both. `name` is their path below the root, without an extension."""

    name: str
    root: Path
    tar: Path | None
    table: Path | None
    prefix: str  # put before each key
    caption: str | None = None  # the JSON's key of the caption where it is declared; the .txt then is no matter
    picture: str | None = None  # the extension of the picture where it is declared, as `rgb.png`
    stats: Path | None = None

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(p.relative_to(self.root).as_posix() for p in (self.tar, self.table, self.stats) if p)

    @property
    def size(self) -> int:
        return self.tar.stat().st_size if self.tar else 0


@dataclass
class _Sample:
    """The members of one key so far."""

    key: str
    where: str
    images: list[bytes] = field(default_factory=list)
    texts: dict[str, bytes] = field(default_factory=dict)  # of LINES and json
    others: list[str] = field(default_factory=list)  # extensions of members of another kind, as depth.png
    fault: Rejected | None = None


def recognises(path: Path, fields: FieldsConfig = SEARCH) -> bool:
    return bool(_tars(path)) and fields.split is None


def units(path: Path, fields: FieldsConfig = SEARCH) -> list[TarUnit]:
    """A side table without its tar is a unit too: what it lists as downloaded has been lost."""
    found = below(path)
    root = found.root
    tars = {name: root / tar for name, tar in named(p.relative_to(root).as_posix() for p in found.paths(*_TARS)).items()}
    tables, stats = ({stem_of(p.relative_to(root).as_posix()): p for p in found.paths(end)} for end in (".parquet", STATS))
    tables = {name: p for name, p in tables.items() if is_side_table(p)}
    return [
        TarUnit(
            name, root, tars.get(name), tables.get(name), "" if tables else key_prefix(name), fields.text, fields.image, stats.get(name)
        )
        for name in sorted(tars.keys() | tables.keys())
    ]


def units_of(root: Path, tars: list[Path], fields: FieldsConfig = SEARCH) -> list[TarUnit]:
    """Tars that were named one by one, without their side tables."""
    own = named(tar.relative_to(root).as_posix() for tar in tars)
    return [TarUnit(name, root, root / own[name], None, key_prefix(name), fields.text, fields.image) for name in sorted(own)]


def read(unit: TarUnit) -> Iterator[Record | RejectedRow]:
    found: set[str] = set()  # last parts of the keys in the tar
    if unit.tar:
        yield from _read_tar(unit, unit.tar, found)
    if unit.table:
        where = f"the {len(found)} samples of {unit.tar.name}" if unit.tar else "any: there is no tar of this name"
        yield from read_side_table(unit.root, unit.table, found, prefix=unit.prefix, where=where)
    elif unit.tar and unit.stats:
        yield from read_stats(unit.root, unit.stats, found, unit.tar.name)


def is_tar(name: str) -> bool:
    """By the path's last part; hidden files are passed over."""
    return name.lower().endswith(_TARS) and not name.rpartition("/")[2].startswith(".")


def named(tars: Iterable[str]) -> dict[str, str]:
    """Each tar by its stem, or by its whole name where another has that stem already: 0.tar.gz beside 0.tar."""
    found: dict[str, str] = {}
    for name in tars:
        stem = stem_of(name)
        found[name if stem in found else stem] = name
    return found


def stem_of(name: str) -> str:
    """What a tar and its side files have in common: their path below the root, without an extension."""
    return next((name[: -len(e)] for e in (*_TARS, ".parquet", STATS) if name.lower().endswith(e)), name)


def key_prefix(name: str) -> str:
    """For the keys of a tar without side files: those of plain tars may count from 0 again, img2dataset's are unique."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name) + "-"


def _tars(path: Path) -> list[Path]:
    return below(path).paths(*_TARS)


def _read_tar(unit: TarUnit, path: Path, found: set[str]) -> Iterator[Record | RejectedRow]:
    tar, sample, num_members = path.relative_to(unit.root).as_posix(), None, 0
    split, others = split_of_name(unit.name), Counter[str]()
    fault = None
    try:
        for member in members(path, _WANTED):
            num_members += 1
            where = f"{tar}:{member.name}"
            try:
                place = _place(member, others)
            except Rejected as e:
                yield RejectedRow("", where, e.reason, e.detail, split)
                continue
            if place is None:
                continue
            key, extension = place
            if sample is None or sample.key != key:
                yield from _finish(unit, sample, split, found, others)
                sample = _Sample(key, where)
            _add(sample, extension, member, unit.picture)
        if not num_members:
            raise Rejected("empty_tar", "an end-of-archive mark and nothing else")
    except Rejected as e:
        fault = e
    if fault and sample and not sample.texts:
        sample.fault = Rejected("missing_text", "the tar ends behind its picture")
    yield from _finish(unit, sample, split, found, others)
    if others:
        told = ", ".join(f"{count} {end}" for end, count in sorted(others.items()))
        yield RejectedRow("", tar, "other_modality", f"members beside pictures and texts, not read: {told}", split, lost=0)
    if fault:
        yield RejectedRow("", tar, fault.reason, fault.detail, split)


def _place(member: Member, others: Counter[str]) -> tuple[str, str] | None:
    """Key and lower-case extension, which begins at the first dot of the name: 7.depth.png belongs to 7. None for what is no part of a
    sample; what is neither picture nor text by its last ending is counted in `others`."""
    path = PurePosixPath(member.name)
    if member.kind == "folder" or path.name.startswith("."):
        return None
    stem, dot, extension = path.name.partition(".")
    if not dot or extension.lower().rpartition(".")[2] not in _WANTED:
        others[f".{extension.lower()}" if dot else "without an ending"] += 1
        return None
    if path.is_absolute() or ".." in path.parts:
        raise Rejected("unsafe_key", f"{member.name!r} leaves the archive's folder")
    if member.kind != "file":
        raise Rejected("not_regular", f"{member.name!r} is a link or a device")
    parts = [p for p in path.parent.parts if p != "."] + [stem]
    if not all(_PART.fullmatch(p) for p in parts):
        raise Rejected("unsafe_key", f"{member.name!r}: a key may hold A-Z a-z 0-9 _ - only")
    return "/".join(parts), extension.lower()


def _add(sample: _Sample, extension: str, member: Member, picture: str | None) -> None:
    """`picture`: the declared extension of pictures; without one it is any ending of pictures that stands alone."""
    wanted = extension == picture.lower().lstrip(".") if picture else extension in _IMAGES
    if not wanted and extension not in (*LINES, "json"):
        sample.others.append(extension)
    elif member.data is None:
        most = _WANTED[extension.rpartition(".")[2]]
        sample.fault = Rejected("too_many_bytes", f"{member.name!r} has {member.size} bytes, at most {most} are read")
    elif (wanted and sample.images) or extension in sample.texts:
        sample.fault = Rejected("duplicate_member", f"{member.name!r} comes after another of its kind")
    elif wanted:
        sample.images.append(member.data)
    else:
        sample.texts[extension] = member.data


def _finish(
    unit: TarUnit, sample: _Sample | None, split: str | None, found: set[str], others: Counter[str]
) -> Iterator[Record | RejectedRow]:
    """The record of a sample that is complete, or why it makes none."""
    if sample is None:
        return
    if sample.others and not sample.images and not sample.texts:
        yield from _dotted(sample, split)
        return
    others.update(f".{extension}" for extension in sample.others)
    found.add(sample.key.rpartition("/")[2])
    key = unit.prefix + sample.key.replace("/", "_")
    texts: tuple[str, ...] = ()
    try:
        texts, fields, fault = told_by(sample.texts, unit.caption)
        if sample.fault:
            raise sample.fault
        if not sample.images:
            raise Rejected("missing_image", _without_image(sample))
        if "json" not in sample.texts and unit.table:
            fields = beside_texts(side_rows(unit.table).get(sample.key.rpartition("/")[2], {}), texts, unit.caption)
        if fault:
            yield RejectedRow(key, sample.where, fault.reason, fault.detail, split, lost=0)
        yield Record(key, sample.images[0], texts, None, split, sample.where, fields=fields)
    except Rejected as e:
        yield RejectedRow(key, sample.where, e.reason, e.detail, split, lost=max(1, len(texts)))


def _without_image(sample: _Sample) -> str:
    there = ", ".join(sorted([*sample.texts, *sample.others]))
    if kinds := [extension for extension in sample.others if extension.rpartition(".")[2] in _IMAGES]:
        return f"only {there}: which of them is the picture? Name its ending, as {kinds[0]}, in ingest.web_fields.image or clean_fields"
    return f"only {there}; the members of a sample must stand together"


def _dotted(sample: _Sample, split: str | None) -> Iterator[RejectedRow]:
    """Nothing but names such as photo.1.jpg: keys with a dot, or pictures of a kind that has to be named."""
    for stem in dict.fromkeys(extension.rpartition(".")[0] for extension in sample.others):
        detail = (
            f"{sample.key.rpartition('/')[2]}.{stem}: rename it without the dot; or is {stem} the kind of the picture, as depth is in "
            "7.depth.png? Then name its ending in ingest.web_fields.image or clean_fields"
        )
        yield RejectedRow("", sample.where, "dotted_key", detail, split)


def told_by(found: dict[str, bytes], declared: str | None = None) -> tuple[tuple[str, ...], Fields, Rejected | None]:
    """Texts and fields beside a picture, from its files by their endings, and the fault of a JSON that costs its fields alone.

    The texts are the lines of the .txt; without one, the JSON's caption. Captions that the JSON lists (as LAVIS and `export` do, whose .txt
    is one of them) are taken in any case. A `declared` key of the JSON goes before all. Rejected where a caption is sought in a JSON that
    can't be read. The fields are what the JSON says but the texts."""
    texts = [line for end in LINES if end in found and not declared for line in lines_of(found[end])]
    data, fault = found.get("json", b""), None
    value: Any = {}
    try:
        value = json.loads(data) if data else {}
    except (ValueError, RecursionError) as e:
        fault = str(e)
    if data and (not texts or _LISTED.search(data)):
        if fault is not None:
            raise Rejected("bad_json", fault)
        texts += [caption for caption in _captions(value, declared) if caption not in texts]
    if fault is not None:
        return tuple(texts), NO_FIELDS, Rejected("bad_json", f"its fields are lost: {fault}")
    return tuple(texts), beside_texts(value, tuple(texts), declared) if isinstance(value, dict) else NO_FIELDS, None


def beside_texts(value: dict[str, Any], texts: tuple[str, ...], declared: str | None) -> Fields:
    """Without the caption; one that is none of the texts, as the .txt goes before it, stays as a field."""
    caption = column(list(value), _CAPTIONS, declared)
    told = value.get(caption) if caption else None
    known = {" ".join(text.split()) for text in (*texts, " ".join(texts))}
    is_text = all(isinstance(t, str) and " ".join(t.split()) in known for t in (told if isinstance(told, list) else [told]))
    return beside(value, (caption,) if is_text else ())


def _captions(value: Any, declared: str | None) -> list[str]:
    caption = value.get(column(list(value), _CAPTIONS, declared)) if isinstance(value, dict) else value
    captions = caption if isinstance(caption, list) else [] if caption is None else [caption]
    if not all(isinstance(c, str) for c in captions):
        raise Rejected("bad_json", f"expected a caption or a list of captions, got {str(value)[:100]}")
    return captions

"""Where every file below a place went: read, or told as not understood. What a format passes over would be lost without a word.

A file counts as read when a unit names it or a record came of it. Of the rest, what belongs to any data set and holds no samples
(a README, checksums, annotations of another task) is only counted; everything else is a row of the quarantine table and counts
against ingest.max_rejected: a picture as a text, a list or an archive as many texts as its share of the bytes that were read.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from blip_core.files.content import hash64
from blip_core.files.rejected import Rejected
from blip_core.intake.formats import RejectedRow
from blip_core.intake.formats.columns import IMAGE_ENDS, shown
from blip_core.intake.formats.files import head_of
from blip_core.intake.formats.nearest import is_archive
from blip_core.intake.formats.rows import kind_of, open_table
from blip_core.intake.walk import Below, is_hidden

_TOPICS = r"readme|licen[cs]es?|copying|notice|citation|changelog|authors|contributing|manifest|md5sums?|sha\d+sums?"
_NOTES = rf"(?:{_TOPICS})(?:[_-]\w+)?(?:\.txt)?"
_FACTS = r"(?:(?:web|clean)\.(?:files|objects)|dataset_infos?|dataset_dict|state|manifest)\.json|_success|_metadata|_common_metadata"
_NOTES_END = r"md|rst|pdf|html?|sh|py|ipynb|log|md5|sha\d+|crc|lock|ya?ml|toml|bib|cff|idx|index|url|urls"
_ASIDE = re.compile(rf"{_NOTES}|{_FACTS}|.*\.(?:{_NOTES_END})", re.IGNORECASE)
_OTHER_TASK = re.compile(rb'"(?:bbox|segmentation|keypoints|categories)"\s*:')
_TEXT = re.compile(rb'"(?:captions?|texts?|sentences?|phrases?)"\s*:\s*["\[]', re.IGNORECASE)


@dataclass
class Account:
    """What became of files that no unit read. `rows`: one for each that counts; `aside`: how many of each kind hold no samples."""

    rows: list[RejectedRow]
    aside: Counter[str]


def account(found: Below, used: Callable[[str], bool], *, texts: int) -> Account:
    """Of files on this machine, with a look into those that were not `used`. `texts`: how many came of the used ones, by whose bytes an
    unread list or archive is weighed."""
    pictures = found.stems(IMAGE_ENDS) | {name for name in found.names if name.lower().endswith(IMAGE_ENDS)}
    made = _account(
        found.names,
        used,
        size=lambda name: found.root.joinpath(name).stat().st_size,
        kind=lambda name: _without_samples(found.root, name, pictures),
        told=lambda name: _told(found.root / name),
        texts=texts,
    )
    return Account([RejectedRow("", name, "bad_link", what) for name, what in found.odd] + made.rows, made.aside)


def account_by_name(sizes: dict[str, int], used: Callable[[str], bool], *, texts: int) -> Account:
    """Of objects elsewhere: their names and sizes alone are known."""

    def kind(name: str) -> str | None:
        return "notes" if is_hidden(name) or _ASIDE.fullmatch(name.rpartition("/")[2]) else None

    return _account(sorted(sizes), used, size=sizes.__getitem__, kind=kind, told=lambda name: f"{sizes[name]} bytes", texts=texts)


def _account(
    names: Iterable[str],
    used: Callable[[str], bool],
    *,
    size: Callable[[str], int],
    kind: Callable[[str], str | None],
    told: Callable[[str], str],
    texts: int,
) -> Account:
    """`kind`: of a file without samples. `told`: what there is to say of one that nobody understood."""
    read: list[str] = []
    left: list[str] = []
    for name in names:
        (read if used(name) else left).append(name)
    used_bytes = max(1, sum(map(size, read)))
    rows: list[RejectedRow] = []
    aside: Counter[str] = Counter()
    for name in left:
        if found := kind(name):
            aside[found] += 1
        elif name.lower().endswith(IMAGE_ENDS):
            rows.append(RejectedRow("", name, "not_listed", "a picture that no list and no text names"))
        else:
            lost = max(1, round(texts * size(name) / used_bytes))
            rows.append(RejectedRow("", name, "not_understood", told(name), lost=lost))
    return Account(rows, aside)


def hashed(names: Iterable[str]) -> set[int]:
    """Eight bytes a file, of the millions that there may be."""
    return {hash64(name) for name in names}


def _without_samples(root: Path, name: str, pictures: set[str]) -> str | None:
    """What kind of file it is, where such files hold no samples."""
    own = name.rpartition("/")[2]
    if is_hidden(name):
        return "hidden"
    if not root.joinpath(name).stat().st_size:
        return None if _may_hold_samples(root / name) else "notes"
    if _ASIDE.fullmatch(own) and not (own.lower().endswith(".json") and head_of(root / name).startswith(b"[")):  # facts are an object
        return "notes"
    main = _modality_of(name) if own.lower().endswith(IMAGE_ENDS) else name.rpartition(".")[0]
    if own.lower().endswith((".json", ".npy", ".npz", *IMAGE_ENDS)) and main in pictures:
        return "beside a picture"
    if own.lower().endswith(".json") and _OTHER_TASK.search(head := head_of(root / name)) and not _TEXT.search(head):
        return "annotations of another task"
    return None


def _may_hold_samples(path: Path) -> bool:
    """By its name, of an empty file: a download that failed."""
    return path.name.lower().endswith((".json", *IMAGE_ENDS)) or is_archive(path.name) or kind_of(path) is not None


def _modality_of(name: str) -> str:
    """The stem of the picture beside which 7.depth.png stands; empty for a name with one dot."""
    folder, slash, own = name.rpartition("/")
    return folder + slash + own.partition(".")[0] if own.count(".") > 1 else ""


def _told(path: Path) -> str:
    """What is in a file that nobody read: its columns, its keys, or its first bytes."""
    if not path.stat().st_size:
        return "an empty file"
    if is_archive(path.name):
        return "an archive: unpack it"
    if kind_of(path):
        try:
            return f"a table with the columns {shown(open_table(path).names)}"
        except Rejected as e:
            return f"a table: {e.detail}"
    head = head_of(path)
    if path.suffix.lower() == ".json":
        return f"JSON{_keys(head)}"
    return f"begins with {head[:24]!r}"


def _keys(head: bytes) -> str:
    keys = dict.fromkeys(re.findall(rb'"([A-Za-z_][\w -]{0,40})"\s*:', head))
    return f" with the keys {', '.join(key.decode() for key in list(keys)[:12])}" if keys else f" that begins with {head[:24]!r}"

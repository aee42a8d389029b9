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
from blip_core.intake.formats.columns import IMAGE_ENDS
from blip_core.intake.formats.rows import kind_of, open_table
from blip_core.intake.walk import Below, is_hidden

_ASIDE = re.compile(
    r"(?:web|clean)\.(?:files|objects)\.json|(?:readme|licen[cs]e|copying|notice|citation|changelog|authors|contributing|dataset_infos?|dataset_dict|state|manifest|_success|_metadata"
    r"|_common_metadata|md5sums?|sha\d+sums?)(?:[._-].*)?|.*\.(?:md|rst|pdf|html?|sh|py|ipynb|log|md5|sha\d+|crc|lock|ya?ml|toml|bib|cff|idx"
    r"|index|url|urls)",
    re.IGNORECASE,
)
_ARCHIVE = re.compile(r".*\.(?:zip|7z|rar|gz|bz2|xz|zst|lz4|tar(?:\..*)?|tgz)", re.IGNORECASE)
_OTHER_TASK = re.compile(rb'"(?:bbox|segmentation|keypoints|categories)"\s*:')
_HEAD = 1 << 20


@dataclass
class Account:
    """What became of files that no unit read. `rows`: one for each that counts; `aside`: how many of each kind hold no samples."""

    rows: list[RejectedRow]
    aside: Counter[str]


def account(found: Below, used: Callable[[str], bool], *, texts: int, used_bytes: int) -> Account:
    """`used`: whether a file was read. `texts`, of `used_bytes`: by which an unread list or archive is weighed."""
    rows = [RejectedRow("", name, "bad_link", what) for name, what in found.odd]
    aside: Counter[str] = Counter()
    pictures = {name.rpartition(".")[0] for name in found.names if name.lower().endswith(IMAGE_ENDS)}
    for name in (name for name in found.names if not used(name)):
        if kind := _without_samples(found.root, name, pictures):
            aside[kind] += 1
        elif name.lower().endswith(IMAGE_ENDS):
            rows.append(RejectedRow("", name, "not_listed", "a picture that no list and no text names"))
        else:
            share = found.root.joinpath(name).stat().st_size / max(1, used_bytes)
            rows.append(RejectedRow("", name, "not_understood", _told(found.root / name), lost=max(1, round(texts * share))))
    return Account(rows, aside)


def not_read(names: Iterable[str], sizes: dict[str, int], used: set[str], *, texts: int) -> Account:
    """The same of objects elsewhere, told by their names alone."""
    used_bytes = sum(sizes[name] for name in used & sizes.keys())
    rows: list[RejectedRow] = []
    aside: Counter[str] = Counter()
    for name in names:
        if name in used:
            continue
        if is_hidden(name) or _ASIDE.fullmatch(name.rpartition("/")[2]):
            aside["notes"] += 1
            continue
        lost = max(1, round(texts * sizes[name] / max(1, used_bytes)))
        reason = "not_listed" if name.lower().endswith(IMAGE_ENDS) else "not_understood"
        rows.append(RejectedRow("", name, reason, f"{sizes[name]} bytes", lost=1 if reason == "not_listed" else lost))
    return Account(rows, aside)


def hashed(names: Iterable[str]) -> set[int]:
    """Eight bytes a file, of the millions that there may be."""
    return {hash64(name) for name in names}


def _without_samples(root: Path, name: str, pictures: set[str]) -> str | None:
    """What kind of file it is, where such files hold no samples."""
    own = name.rpartition("/")[2]
    if is_hidden(name):
        return "hidden"
    if _ASIDE.fullmatch(own) or not root.joinpath(name).stat().st_size:
        return "notes"
    if own.lower().endswith((".json", ".npy", ".npz")) and name.rpartition(".")[0] in pictures:
        return "beside a picture"
    if own.lower().endswith(".json") and _OTHER_TASK.search(_head(root / name)):
        return "annotations of another task"
    return None


def _told(path: Path) -> str:
    """What is in a file that nobody read: its columns, its keys, or its first bytes."""
    if _ARCHIVE.fullmatch(path.name):
        return "an archive: unpack it"
    if kind_of(path):
        try:
            return f"a table with the columns {', '.join(map(repr, open_table(path).names[:12])) or 'none'}"
        except Rejected as e:
            return f"a table: {e.detail}"
    head = _head(path)
    if path.suffix.lower() == ".json":
        return f"JSON{_keys(head)}"
    return f"begins with {head[:24]!r}"


def _keys(head: bytes) -> str:
    keys = dict.fromkeys(re.findall(rb'"([A-Za-z_][\w -]{0,40})"\s*:', head))
    return f" with the keys {', '.join(key.decode() for key in list(keys)[:12])}" if keys else f" that begins with {head[:24]!r}"


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)

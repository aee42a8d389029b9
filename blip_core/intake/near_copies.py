"""Near copies by the hashes of duplicates.py: those of held-out pictures leave, those within the crawl are joined or dropped.

In memory are 24 bytes a picture, and some 250 while copies within the crawl are sought.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from blip_core.config.screens import Screen
from blip_core.intake.duplicates import distances, fingerprint, firsts, nearest
from blip_core.intake.staged import Staged
from blip_core.intake.stored import picture

REASON, HELDOUT_REASON = "near_copy", "heldout_near_copy"


@dataclass(frozen=True)
class Places:
    """Where pictures stand among some shards: the number of the shard, and the row of its index."""

    shards: list[Staged]
    shard: np.ndarray
    row: np.ndarray

    @staticmethod
    def of(shards: list[Staged], rows: list[np.ndarray]) -> "Places":
        """`rows`: of each shard."""
        numbers = np.repeat(np.arange(len(shards), dtype=np.int32), [len(own) for own in rows])
        return Places(shards, numbers, np.concatenate([np.empty(0, np.int32), *rows]).astype(np.int32))

    def __len__(self) -> int:
        return len(self.row)

    def values(self, numbers: np.ndarray, column: str) -> list[str]:
        """What the index says of these."""
        found = [""] * len(numbers)
        for shard in np.unique(self.shard[numbers]):
            values = self.shards[shard].index(column)[column]
            for at in np.flatnonzero(self.shard[numbers] == shard):
                found[at] = values[int(self.row[numbers[at]])].as_py()
        return found


def drop_near_heldout(heldout: list[Staged], training: list[Staged], distance: int) -> None:
    (known, own), (places, prints) = _fingerprints(heldout), _fingerprints(training)
    both = np.concatenate([own, _mirrored(known, own)])
    found = nearest(prints, both, distance=distance)

    def told(number: int) -> str:
        return _bits(prints[number], both[found[number]])

    drop_leaks(places, known, found, HELDOUT_REASON, told)


def join(shards: list[Staged], then: Screen, distance: int) -> None:
    places, prints = _fingerprints(shards)
    first = firsts(prints, distance=distance)
    join_copies(places, first, then, REASON, lambda copy: _bits(prints[copy], prints[first[copy]]))


def drop_leaks(places: Places, known: Places, found: np.ndarray, reason: str, told: Callable[[int], str]) -> None:
    """`found`: of each picture the number of the held-out one whose copy it is, -1 for none; from len(known) on they are mirror images.
    `told`: how near it is."""
    hits = np.flatnonzero(found >= 0)
    keys, originals = places.values(hits, "key"), known.values(found[hits] % max(1, len(known)), "key")
    for hit, key, original in zip(hits.tolist(), keys, originals, strict=True):
        what = "the mirror image of " if found[hit] >= len(known) else ""
        places.shards[places.shard[hit]].dropped[key] = (reason, f"a near copy of {what}{original}: {told(hit)}")


def join_copies(places: Places, first: np.ndarray, then: Screen, reason: str, told: Callable[[int], str]) -> dict[str, str]:
    """Near copies within the crawl: dropped, or given the identity of the first. What has the same bytes has that identity already.

    Returns what became of the identities of the copies: that of the first, or, where they were dropped, its key."""
    copies = np.flatnonzero(first != np.arange(len(first)))
    own_ids, first_ids = places.values(copies, "image_id"), places.values(first[copies], "image_id")
    keys, originals = places.values(copies, "key"), places.values(first[copies], "key")
    became: dict[str, str] = {}
    for shard in places.shards if then == "mark" else ():
        shard.counts[f"marked_{reason}"] = 0  # a metric also where there are none
    for copy, key, own_id, first_id, original in zip(copies.tolist(), keys, own_ids, first_ids, originals, strict=True):
        shard = places.shards[places.shard[copy]]
        if own_id == first_id:
            continue
        if then == "drop":
            shard.dropped[key] = (reason, f"a near copy of {original}: {told(copy)}")
        else:
            shard.same_as[key] = first_id
            shard.counts[f"marked_{reason}"] += 1
        became[own_id] = original if then == "drop" else first_id
    return became


def _fingerprints(shards: list[Staged]) -> tuple[Places, np.ndarray]:
    """Those of what is still kept, uint64 [n, 2]."""
    prints, rows = [np.empty((0, 2), np.uint64)], []
    for shard in shards:
        index = shard.index("key", "phash", "dhash")
        rows.append(np.flatnonzero(pc.and_(index["phash"].is_valid(), shard.stays(index["key"]))))
        index = index.take(rows[-1])
        prints.append(np.stack([index["phash"].to_numpy(), index["dhash"].to_numpy()], axis=1))
    return Places.of(shards, rows), np.concatenate(prints)


def _mirrored(places: Places, prints: np.ndarray) -> np.ndarray:
    """Fingerprints of the pictures as a mirror shows them. They cannot be had from the fingerprints: a tenth would be missed."""
    prints = prints.copy()
    for number, shard in enumerate(places.shards):
        index = shard.index("offset", "size")
        with shard.tar.open("rb") as tar:
            for at in np.flatnonzero(places.shard == number):
                row = int(places.row[at])
                pixels = picture(tar, index["offset"][row].as_py(), index["size"][row].as_py())
                prints[at] = fingerprint(pixels[:, ::-1]) or prints[at]
    return prints


def _bits(some: np.ndarray, other: np.ndarray) -> str:
    p, d = distances(some, other)
    return f"{p} and {d} of 64 bits differ"

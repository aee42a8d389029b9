"""Copies of a picture whose bytes differ: encoded anew, resized, cropped a little, brightened, stamped.

A picture's fingerprint is two 64-bit hashes of its grey thumbnail, both by imagehash: pHash, its lowest frequencies, and dHash, where
it grows brighter from left to right. Two pictures are near copies when at most `distance` bits differ in each of the two. Either hash
alone takes simple pictures for copies that are none; benchmarks/truth/near_duplicates.py measures that, and what is found and missed.
"""

from collections.abc import Iterator
from itertools import combinations
from math import comb, log2

import imagehash
import numpy as np
from PIL import Image

BITS = 64
_SIDE = 64  # pixels: each side of the thumbnail has as many at least, and less than twice as many, where the picture has them
_LEAST_CONTRAST = 8.0  # standard deviation of the thumbnail, of 256 greys; the hash of a plainer picture is chance
_PRINTS_AT_ONCE = 1 << 20
_PAIRS_AT_ONCE = 1 << 16  # few enough for a processor's cache
_MOST_CHOSEN = 5


def fingerprint(pixels: np.ndarray) -> tuple[int, int] | None:
    """pHash and dHash of a picture [height, width, 3]; None for one without structure, which is nobody's copy."""
    image = Image.fromarray(pixels)
    across, down = (max(1, side // _SIDE) for side in image.size)
    grey = image.reduce((across, down)).convert("L")
    if np.asarray(grey).std() < _LEAST_CONTRAST:
        return None
    return _number(imagehash.phash(grey)), _number(imagehash.dhash(grey))


def _number(found: imagehash.ImageHash) -> int:
    return int.from_bytes(np.packbits(found.hash).tobytes(), "big")


def distances(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How many bits differ, hash by hash."""
    return np.bitwise_count(some ^ others)


def nearest(prints: np.ndarray, known: np.ndarray, *, distance: int) -> np.ndarray:
    """For each of `prints` [n, 2] the known one [m, 2] of which it is a near copy, by number; -1 where there is none.

    Of several the one with the fewest bits that differ in all, the first of these."""
    found = np.full(len(prints), -1)
    for start in range(0, len(prints), _PRINTS_AT_ONCE):
        part = prints[start : start + _PRINTS_AT_ONCE]
        pairs = near_pairs(part, known, distance=distance)
        bits = distances(part[pairs[:, 0]], known[pairs[:, 1]]).sum(axis=1, dtype=np.int64)
        worst_first = np.lexsort((-pairs[:, 1], -bits))
        found[start + pairs[worst_first, 0]] = pairs[worst_first, 1]
    return found


def firsts(prints: np.ndarray, *, distance: int) -> np.ndarray:
    """For each of `prints` [n, 2] the earliest picture of which it is a near copy, by number; its own where there is none.

    Who is a copy has no copies: a chain of pictures, each near to the next, is cut where it leaves its first."""
    unique, first, of = np.unique(prints, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    head = list(range(len(order)))
    for later, earlier in near_pairs(unique[order], distance=distance).tolist():
        if head[later] == later and head[earlier] == earlier:
            head[later] = earlier
    return first[order][np.array(head, np.int64)][rank[of.reshape(-1)]]


def near_pairs(prints: np.ndarray, known: np.ndarray | None = None, *, distance: int) -> np.ndarray:
    """All pairs [k, 2] of numbers (of `prints`, of `known`) that are near, sorted; without `known` those of `prints` alone, later first.

    Exact without comparing all with all: the bits of pHash are dealt to distance + c groups. Where no more than `distance` bits differ,
    c groups at least agree whole, so the pairs are sought among those that agree in c groups, for every choice of c."""
    others = prints if known is None else known
    masks = _masks(distance, len(prints), len(others))
    phash, other_phash = prints[:, 0].copy(), others[:, 0].copy()
    found = [np.empty((0, 2), np.int64)]
    for number, mask in enumerate(masks):
        for a, b in _agreeing(phash & mask, other_phash & mask):
            near = distances(phash[a], other_phash[b]) <= distance  # false for most that agree by chance
            if known is None:
                near &= a > b
            a, b = a[near], b[near]
            near = distances(prints[a, 1], others[b, 1]) <= distance
            # of the choices that find a pair, the first tells it
            near &= ((phash[a] ^ other_phash[b])[:, None] & masks[:number] != 0).all(axis=1)
            found.append(np.stack([a[near], b[near]], axis=1))
    pairs = np.concatenate(found)
    return pairs[np.lexsort(pairs.T[::-1])]


def _masks(distance: int, num_prints: int, num_known: int) -> np.ndarray:
    """The choices of groups, with the number of groups that promises the least work: sorting, or looking at pairs that agree by chance."""

    def work(chosen: int) -> float:
        by_chance = num_prints * num_known / 2 ** (BITS * chosen / (distance + chosen))
        return comb(distance + chosen, chosen) * (1000 + (num_prints + num_known) * log2(2 + num_prints + num_known) + 4 * by_chance)

    chosen = min(range(1, _MOST_CHOSEN + 1), key=work)
    groups = [sum(1 << bit for bit in range(g, BITS, distance + chosen)) for g in range(distance + chosen)]
    return np.array([sum(choice) for choice in combinations(groups, chosen)], np.uint64)


def _agreeing(some: np.ndarray, others: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The numbers of all pairs whose values are equal, in blocks that fit into memory."""
    rows, order = np.argsort(some), np.argsort(others)
    values, lookup = some[rows], others[order]
    begin = np.searchsorted(lookup, values)
    counts = np.searchsorted(lookup, values, side="right") - begin
    rows, begin, counts = rows[counts > 0], begin[counts > 0], counts[counts > 0]
    ends = np.cumsum(counts)
    start = 0
    while start < len(rows):
        done = ends[start] - counts[start]
        stop = max(start + 1, int(np.searchsorted(ends, done + _PAIRS_AT_ONCE, side="right")))
        count = counts[start:stop]
        within = np.arange(count.sum()) - np.repeat(ends[start:stop] - count - done, count)
        yield np.repeat(rows[start:stop], count), order[np.repeat(begin[start:stop], count) + within]
        start = stop

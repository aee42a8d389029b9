"""Which samples `inspect` looks at, and what they say of the whole."""

from bisect import bisect_right
from collections import Counter
from itertools import accumulate
from typing import Any

_BYTES_ASIDE = 2048  # of a tar for each sample beside its picture: two headers, a text, padding


def spread(units: list[Any], limit: int, *, most: int) -> list[tuple[Any, int | None]]:
    """At most `most` units, and how many samples of each to look at; None: all. Each has its share by its size, one sample at least; of
    more units, those at places that are evenly far apart have as many each. So a share of the samples is a share of the whole."""
    if not limit or not units:
        return [(unit, None) for unit in units]
    ends = list(accumulate(max(1, unit.size) for unit in units))
    if len(units) <= most:
        return [(unit, max(1, round(limit * unit.size / ends[-1]))) for unit in units]
    count = min(most, limit)
    drawn = Counter(bisect_right(ends, (2 * i + 1) * ends[-1] // (2 * count)) for i in range(count))
    return [(units[at], times * -(-limit // count)) for at, times in sorted(drawn.items())]


def estimated(units: list[Any], *, looked: int, picture_bytes: int, tars: bool) -> int:
    """How many samples there are in all; of tars by their bytes. `picture_bytes`: of the `looked` samples."""
    size: int = sum(unit.size for unit in units)
    return max(looked, round(size * looked / max(1, picture_bytes + looked * _BYTES_ASIDE)) if tars else size)

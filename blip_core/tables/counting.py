"""Counting over tables of which one is in memory at a time. A value stands as a hash: eight bytes, however long its text is.

Two of n different values share a hash with a chance of n² / 2^65: one in 3,700 for a hundred million. So where a single count decides,
hashes only say where to look again: `repeated` and `frequent` walk a second time over what is suspect, and are exact.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class Walk:
    """Tables that are made anew, one after the other, each time somebody walks over them."""

    begin: Callable[[], Iterator[pa.Table]]

    def __iter__(self) -> Iterator[pa.Table]:
        return self.begin()


def hashes(table: pa.Table, columns: Sequence[str]) -> np.ndarray:
    """Each row's values in these columns as uint64, the same in every process; nulls are alike."""
    texts = [pc.cast(table[c], pa.string()) for c in columns]
    joined = pc.binary_join_element_wise(*texts, "\x1f", null_handling="replace", null_replacement="\0")
    digests = (blake2b(v, digest_size=8).digest() for v in pc.cast(joined, pa.binary()).to_pylist())
    return np.frombuffer(b"".join(digests), np.uint64)


def num_distinct(parts: Sequence[np.ndarray]) -> int:
    """How many different hashes there are."""
    return len(np.unique(np.concatenate(parts))) if parts else 0


def repeated(tables: Iterable[pa.Table], columns: Sequence[str]) -> pa.Table:
    """The rows, cut to `columns`, that agree in all of them with another row of any table, in their order.

    In memory: eight bytes a row, and the rows that repeat."""
    found = [hashes(table, columns) for table in tables]
    suspects = _more_often(found, 1)
    if not len(suspects):
        return pa.table({c: pa.array([], pa.string()) for c in columns})
    parts = [t.select(columns).filter(pa.array(np.isin(h, suspects))) for t, h in zip(tables, found, strict=True)]
    rows = pa.concat_tables(parts)
    places = rows.append_column("_row", pa.array(np.arange(rows.num_rows)))
    groups = places.group_by(list(columns)).aggregate([("_row", "list"), ("_row", "count")])
    real = groups.filter(pc.greater(groups["_row_count"], 1))
    return rows.take(np.sort(pc.list_flatten(real["_row_list"]).to_numpy()))


def frequent(tables: Iterable[pa.Table], column: str, *, more_than: Callable[[], float]) -> pa.Array:
    """The values that stand in more rows than `more_than` says, sorted. It is asked when the first walk is over.

    In memory: eight bytes a row, and the values that are frequent."""
    found = [hashes(table, [column]) for table in tables]
    limit = more_than()
    suspects, counts = _more_often(found, int(limit)), []
    if len(suspects):
        for table, own in zip(tables, found, strict=True):
            counts.append(_counted(table[column].filter(pa.array(np.isin(own, suspects)))))
    if not counts:
        return pa.array([], pa.string())
    total = pa.concat_tables(counts).group_by("value").aggregate([("count", "sum")])
    return total.filter(pc.greater(total["count_sum"], limit)).sort_by("value")["value"].combine_chunks()


def _counted(values: pa.ChunkedArray) -> pa.Table:
    counts = pc.value_counts(values)
    return pa.table({"value": counts.field("values"), "count": counts.field("counts")})


def _more_often(parts: Sequence[np.ndarray], times: int) -> np.ndarray:
    """The hashes that occur more than so many times: in sorted order, those that a later place repeats."""
    ordered = np.concatenate(parts) if parts else np.empty(0, np.uint64)
    ordered.sort()
    return np.unique(ordered[times:][ordered[times:] == ordered[: max(0, len(ordered) - times)]])

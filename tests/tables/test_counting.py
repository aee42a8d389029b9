"""Counts over tables that are never together are exact, however the rows are cut into tables."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from blip_core.tables import counting
from blip_core.tables.counting import Walk, frequent, hashes, num_distinct, repeated


def random_table(seed: int = 0, rows: int = 300) -> pa.Table:
    rng = np.random.default_rng(seed)
    keys = [None if k == 0 else f"key {k}" for k in rng.integers(40, size=rows).tolist()]
    return pa.table({"key": keys, "n": pa.array(rng.integers(3, size=rows), pa.int32()), "text": [f"text {i}" for i in range(rows)]})


def cut(table: pa.Table, size: int) -> Walk:
    """The table in parts, made anew at every walk."""
    return Walk(lambda: (table.slice(start, size) for start in range(0, max(1, table.num_rows), size)))


def collide(monkeypatch) -> None:
    """Different values share a hash, as two of very many would."""
    monkeypatch.setattr(counting, "hashes", lambda table, columns: hashes(table, columns) % np.uint64(7))


@pytest.mark.parametrize("size", [1, 7, 300])
@pytest.mark.parametrize("colliding", [False, True])
def test_repeated_rows_are_those_that_a_plain_count_finds(monkeypatch, size, colliding):
    if colliding:
        collide(monkeypatch)
    table = random_table()
    rows = [(r["key"], r["n"]) for r in table.to_pylist()]
    counts = Counter(rows)
    expected = [{"key": key, "n": n} for key, n in rows if counts[key, n] > 1]
    assert 0 < len(expected) < len(rows)
    assert repeated(cut(table, size), ("key", "n")).to_pylist() == expected
    assert repeated(cut(table, size), ["text"]).num_rows == 0
    assert repeated(cut(table.slice(0, 0), size), ["key", "n"]).num_rows == 0


@pytest.mark.parametrize("limit", [0, 1, 6.5, 7, 1000])
@pytest.mark.parametrize("colliding", [False, True])
def test_frequent_values_are_those_that_a_plain_count_finds(monkeypatch, limit, colliding):
    if colliding:
        collide(monkeypatch)
    table = random_table().drop_null()
    expected = sorted(key for key, n in Counter(table["key"].to_pylist()).items() if n > limit)
    for size in (1, 50):
        assert frequent(cut(table, size), "key", more_than=lambda: limit).to_pylist() == expected
    assert frequent([], "key", more_than=lambda: limit).to_pylist() == []


def test_the_limit_may_depend_on_what_the_first_walk_saw():
    table, seen = pa.table({"key": ["a", "a", "a", "b", "b"]}), []

    def walk():
        for part in (table.slice(0, 2), table.slice(2)):
            seen.append(part.num_rows)
            yield part

    assert frequent(Walk(walk), "key", more_than=lambda: sum(seen) / 2).to_pylist() == ["a"]


def test_hashes_tell_values_apart_and_are_the_same_everywhere():
    table = pa.table({"a": ["x", "x", None, "", "x\x1fy"], "b": ["y", "z", None, "", ""]})
    found = hashes(table, ["a", "b"])
    assert found.dtype == np.uint64 and len(set(found.tolist())) == 5
    assert found.tolist() == hashes(table, ["a", "b"]).tolist()
    assert num_distinct([found, found[:2]]) == 5 and num_distinct([]) == 0

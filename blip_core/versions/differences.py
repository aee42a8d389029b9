"""What changed between two versions of a generation, text by text: added to what a model may train on, dropped from it, reworded.

A text is known by key, source, round and candidate. One shard of each version is in memory at a time. Images that moved to another
shard meet in a second pass, over files of a temporary folder.
"""

import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from blip_core.tables.captions import KEPT, SCHEMA, read_table
from blip_core.tables.counting import hashes
from blip_core.versions.generations import SOURCES

IDENTITY = ["key", "source", "round", "candidate"]
COLUMNS = [*IDENTITY, "image_id", "text", "reason", "match"]
ABSENT = "absent"
KINDS = ("added", "dropped", "changed")
BUCKETS = 64
ORDER = "order"

Files = dict[str, Path]
Decisions = Counter[tuple[str, str, str]]  # texts by source, reason before and reason after


def differences(before: Files, after: Files, *, examples: int) -> dict[str, Any]:
    """Counts by source and by decision before and after, and some texts of each kind: those of the smallest hash, so always the same ones.

    {"sources": {source: {"before", "after", "added", "dropped", "changed", "unchanged"}}, "decisions": [{"source", "before", "after",
    "texts"}], "other_picture": keys that name another picture now, "examples": {kind: [row]}}
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter, {source: Counter() for source in SOURCES})
    decisions: Decisions = Counter()
    shown: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    other = 0
    for old, new in _pairs(before, after):
        joined = _joined(old, new)
        _count(joined, counts, decisions)
        other += _num_other_pictures(old, new)
        for kind, mask in _kinds(joined).items():
            shown[kind] = _fewest(shown[kind], joined.filter(mask), examples)
    sources = {source: {name: found[name] for name in ("before", "after", *KINDS, "unchanged")} for source, found in counts.items()}
    rows = [{"source": s, "before": b, "after": a, "texts": n} for (s, b, a), n in sorted(decisions.items())]
    found = {kind: [{k: v for k, v in row.items() if k != ORDER} for row in texts] for kind, texts in shown.items()}
    return {"sources": sources, "decisions": rows, "other_picture": other, "examples": found}


def _pairs(before: Files, after: Files) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Tables that hold the same images: shard by shard, then what only one of a shard's tables has."""
    with tempfile.TemporaryDirectory() as folder, _Spill(Path(folder, "a")) as moved, _Spill(Path(folder, "b")) as arrived:
        for name in sorted(n for n in {*before, *after} if n.endswith(".parquet")):
            old, new = (_read(files.get(name)) for files in (before, after))
            both = pc.is_in(old["key"], value_set=new["key"].combine_chunks()), pc.is_in(new["key"], value_set=old["key"].combine_chunks())
            moved.add(old.filter(pc.invert(both[0])))
            arrived.add(new.filter(pc.invert(both[1])))
            yield old.filter(both[0]), new.filter(both[1])
        for old, new in zip(moved.parts(), arrived.parts(), strict=True):
            yield old, new


def _read(path: Path | None) -> pa.Table:
    if path is None:
        return pa.schema([SCHEMA.field(c) for c in COLUMNS]).empty_table()
    table = read_table(path, COLUMNS)
    for column, instead in (("reason", ""), ("round", ""), ("candidate", -1)):  # null joins nothing
        table = table.set_column(table.schema.get_field_index(column), column, pc.fill_null(table[column], instead))
    return table


class _Spill:
    """Rows put aside on disk in BUCKETS parts by their key."""

    def __init__(self, folder: Path):
        self._folder, self._files = folder, ExitStack()
        self._writers: dict[int, pq.ParquetWriter] = {}

    def __enter__(self) -> "_Spill":
        self._folder.mkdir()
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def add(self, table: pa.Table) -> None:
        if not table.num_rows:
            return
        part = hashes(table, ["key"]) % BUCKETS
        for bucket in np.unique(part).tolist():
            rows = table.filter(pa.array(part == bucket))
            if bucket not in self._writers:
                self._writers[bucket] = self._files.enter_context(pq.ParquetWriter(self._folder / f"{bucket}.parquet", rows.schema))
            self._writers[bucket].write_table(rows)

    def parts(self) -> Iterator[pa.Table]:
        self._files.close()
        for bucket in range(BUCKETS):
            yield _read(self._folder / f"{bucket}.parquet" if bucket in self._writers else None)


def _joined(old: pa.Table, new: pa.Table) -> pa.Table:
    """A row for each text of either, its columns of before with `_before`; `reason` is `absent` where a version lacks it."""
    joined = old.join(new, IDENTITY, join_type="full outer", left_suffix="_before", right_suffix="_after")
    for column in ("reason_before", "reason_after"):
        joined = joined.set_column(joined.schema.get_field_index(column), column, pc.fill_null(joined[column], ABSENT))
    return joined


def _kinds(joined: pa.Table) -> dict[str, pa.ChunkedArray]:
    was, stays = pc.equal(joined["reason_before"], KEPT), pc.equal(joined["reason_after"], KEPT)
    reworded = pc.fill_null(pc.not_equal(joined["text_before"], joined["text_after"]), False)
    both = pc.and_(was, stays)
    return {"added": pc.and_not(stays, was), "dropped": pc.and_not(was, stays), "changed": pc.and_(both, reworded)}


def _count(joined: pa.Table, counts: dict[str, Counter[str]], decisions: Decisions) -> None:
    for kind, mask in _kinds(joined).items():
        for value in pc.value_counts(joined["source"].filter(mask)).to_pylist():
            counts[value["values"]][kind] += value["counts"]
    groups = joined.group_by(["source", "reason_before", "reason_after"]).aggregate([([], "count_all")])
    for row in groups.to_pylist():
        source, before, after, num = row["source"], row["reason_before"], row["reason_after"], row["count_all"]
        decisions[source, before, after] += num
        counts[source].update({"before": num * (before == KEPT), "after": num * (after == KEPT)})
    for found in counts.values():
        found["unchanged"] = found["before"] - found["dropped"] - found["changed"]


def _num_other_pictures(old: pa.Table, new: pa.Table) -> int:
    """Keys that name another picture: then their texts have nothing to do with each other."""
    first, second = (t.group_by("key").aggregate([("image_id", "min")]) for t in (old, new))
    joined = first.join(second, "key", join_type="inner", right_suffix="_after")
    return pc.sum(pc.not_equal(joined["image_id_min"], joined["image_id_min_after"])).as_py() or 0


def _fewest(chosen: list[dict[str, Any]], table: pa.Table, num: int) -> list[dict[str, Any]]:
    """The `num` rows of the smallest hash among those chosen before and the table's."""
    if not table.num_rows or not num:
        return chosen
    order = hashes(table, IDENTITY)
    nearest = np.argsort(order, kind="stable")[:num]
    rows = table.take(pa.array(nearest)).to_pylist()
    found = chosen + [{ORDER: int(order[i]), **row} for i, row in zip(nearest, rows, strict=True)]
    return sorted(found, key=lambda row: row[ORDER])[:num]

"""Pictures of the crawl with their texts, for a person to look at: some of all, and those nearest to the thresholds."""

import hashlib
import heapq
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blip_core.pictures.images import decode_rgb
from blip_core.sample.truth import Truth, truth_of
from blip_core.selection.choice import Rule
from blip_core.tables.captions import KEPT, read_table, table_paths
from blip_core.tables.shards import ShardImages

SCORES = ("match", "itm", "itc")
SHOWN = ["key", "text", "source", "reason", *SCORES]


@dataclass(frozen=True)
class ExampleText:
    source: str
    text: str
    reason: str
    scores: dict[str, float | None]  # by SCORES
    true: bool | None  # None: not known

    @property
    def kept(self) -> bool:
        return self.reason == KEPT

    def decision(self) -> str:
        """What was decided, and the truth where it is known, in words."""
        decided = "kept" if self.kept else f"dropped: {self.reason.replace('_', ' ')}"
        return decided if self.true is None else f"{decided}; really {'true' if self.true else 'false'}"

    def scored(self) -> str:
        return ", ".join(f"{name} {value:.3f}" for name, value in self.scores.items() if value is not None)


@dataclass(frozen=True)
class Example:
    """One image of the crawl with its texts: those of the web first, then the synthetic ones, best first."""

    key: str
    pixels: np.ndarray  # uint8 [height, width, 3]
    texts: list[ExampleText]


def pick_examples(generation: Path, shards: Path, truth: Truth | None, *, count: int) -> list[Example]:
    """The crawl's images that come first by a hash of their key: neither chosen by hand nor by score, the same in every round."""
    chosen: list[tuple[str, str, str]] = []  # hash, shard, key
    for path in table_paths(generation):
        table = read_table(path, ["key", "source"])
        keys = pc.unique(table.filter(pc.not_equal(table["source"], "human"))["key"]).to_pylist()
        chosen = heapq.nsmallest(count, chosen + [(hashlib.sha256(k.encode()).hexdigest(), path.stem, k) for k in keys])
    images, found = ShardImages(shards), {}
    for shard in sorted({shard for _, shard, _ in chosen}):
        table = read_table(generation / f"{shard}.parquet", SHOWN)
        for key in sorted(key for _, s, key in chosen if s == shard):
            rows = table.filter(pc.equal(table["key"], key))
            found[shard, key] = Example(key, decode_rgb(images.bytes(shard, key)), _texts(rows, truth))
    return [found[shard, key] for _, shard, key in chosen]


def pick_near(generation: Path, shards: Path, truth: Truth | None, *, count: int) -> dict[tuple[str, str], list[Example]]:
    """By source, and "above" or "below" its threshold: the texts that stand nearest to it, each alone with its picture, nearest first.

    ValueError when no round made the generation."""
    rule = Rule.of(generation)
    nearest: dict[tuple[str, str], list[tuple[float, str, int]]] = {}  # distance, shard, row
    for path in table_paths(generation):
        table = read_table(path, ["source", "filter", rule.cfg.score])
        for source in rule.cfg.threshold:
            offset = _offset(table, source, rule)
            for side, rows in (("above", np.flatnonzero(offset >= 0)), ("below", np.flatnonzero(offset < 0))):
                rows = rows[np.argsort(np.abs(offset[rows]), kind="stable")[:count]]
                new = [(abs(float(offset[row])), path.stem, int(row)) for row in rows]
                nearest[source, side] = heapq.nsmallest(count, nearest.get((source, side), []) + new)
    images, read = ShardImages(shards), cache(lambda shard: read_table(generation / f"{shard}.parquet", SHOWN))
    return {
        group: [_alone(read(shard).slice(row, 1), shard, images, truth) for _, shard, row in found]
        for group, found in nearest.items()
        if found
    }


def _offset(table: pa.Table, source: str, rule: Rule) -> np.ndarray:
    """Score minus threshold of each row; NaN where it is of another source, or has no score."""
    score = np.where(table["source"].to_numpy(zero_copy_only=False) == source, table[rule.cfg.score].to_numpy(), np.nan)
    filters = table["filter"].to_numpy(zero_copy_only=False)
    for name in set(filters[~np.isnan(score)]):
        score[filters == name] -= rule.threshold(source, name)
    return score


def _alone(row: pa.Table, shard: str, images: ShardImages, truth: Truth | None) -> Example:
    key = row["key"][0].as_py()
    return Example(key, decode_rgb(images.bytes(shard, key)), _texts(row, truth))


def _texts(rows: pa.Table, truth: Truth | None) -> list[ExampleText]:
    known = truth_of(rows, truth) if truth is not None else [None] * rows.num_rows
    texts = [
        ExampleText(r["source"], r["text"], r["reason"], {name: r[name] for name in SCORES}, true)
        for r, true in zip(rows.to_pylist(), known, strict=True)
    ]
    return sorted(texts, key=lambda t: (t.source != "web", not t.kept, -(t.scores["match"] or 0.0), t.text))

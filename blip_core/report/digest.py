"""What a round did, counted in one pass over the tables of the generation it made: one table in memory at a time."""

import hashlib
import heapq
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blip_core.pictures.images import decode_rgb
from blip_core.sample.truth import TrueNoise, Truth, fused_noise, synthetic_noise, truth_of, web_noise
from blip_core.selection.calibration import read_calibrations, with_match
from blip_core.tables.captions import KEPT, WRITTEN, read_table, table_paths
from blip_core.tables.shards import ShardImages

SOURCES = ("web", *WRITTEN)
NUM_BINS = 40
Bins = dict[str, np.ndarray]  # "true" | "false" | "unknown" or a kind of control -> texts per bin of P(match)


@dataclass(frozen=True)
class RoundDigest:
    reasons: Counter[tuple[str, str]]  # (source, reason) -> texts
    noise: dict[str, TrueNoise]  # by source; empty without truth
    bins: dict[str, Bins]  # by source, and of the controls

    @property
    def sources(self) -> list[str]:
        """Those that have candidates."""
        return [source for source in SOURCES if self.texts(source)]

    def texts(self, source: str) -> int:
        return sum(n for (s, _), n in self.reasons.items() if s == source)

    def share_from(self, source: str, threshold: float) -> float | None:
        """Share of the source's scored texts at this P(match) or above; exact at multiples of 1 / NUM_BINS."""
        counts = sum(self.bins[source].values(), start=np.zeros(NUM_BINS, dtype=np.int64))
        return float(counts[round(threshold * NUM_BINS) :].sum() / counts.sum()) if counts.sum() else None


@dataclass(frozen=True)
class ExampleText:
    source: str
    text: str
    reason: str
    scores: dict[str, float | None]  # match, itm, itc
    true: bool | None  # None: not known

    @property
    def kept(self) -> bool:
        return self.reason == KEPT

    def decision(self) -> str:
        """What was decided, and the truth where it is known, in words."""
        decided = "kept" if self.kept else f"dropped: {self.reason.replace('_', ' ')}"
        return decided if self.true is None else f"{decided}; really {'true' if self.true else 'false'}"

    def scored(self) -> str:
        return ", ".join(f"{name} {value:.2f}" for name, value in self.scores.items() if value is not None)


@dataclass(frozen=True)
class Example:
    """One image of the crawl with its texts: those of the web first, then the synthetic ones, best first."""

    key: str
    pixels: np.ndarray  # uint8 [height, width, 3]
    texts: list[ExampleText]


def digest_round(generation: Path, controls: Path, calibration: Path, truth: Truth | None) -> RoundDigest:
    """Count decisions, true noise and scores of a generation's candidates, and the scores of the planted controls."""
    reasons: Counter[tuple[str, str]] = Counter()
    noise = {source: TrueNoise(Counter()) for source in SOURCES} if truth is not None else {}
    bins: dict[str, Bins] = {source: {} for source in SOURCES}
    for path in table_paths(generation):
        table = read_table(path, ["key", "text", "source", "reason", "match"])
        reasons.update(zip(table["source"].to_pylist(), table["reason"].to_pylist(), strict=True))
        if truth is not None:
            noise["web"] += web_noise(table, truth)
            noise["synthetic"] += synthetic_noise(table, truth)
            noise["fused"] += fused_noise(table, truth)
        for source in SOURCES:
            _add_bins(bins[source], table.filter(pc.equal(table["source"], source)), truth)
    return RoundDigest(reasons, noise, {**bins, "controls": control_bins(controls, calibration)})


def control_bins(controls: Path, calibration: Path) -> Bins:
    """Planted pairs by kind: true, crawled, mismatched, perturbed."""
    table = with_match(read_table(controls), read_calibrations(calibration), where=str(controls))
    match, kind = table["match"].to_numpy(), np.array(table["kind"].to_pylist(), dtype=object)
    return {name: _histogram(match[kind == name]) for name in ("true", *sorted(set(kind) - {"true"}))}


def pick_examples(generation: Path, shards: Path, truth: Truth | None, *, count: int) -> list[Example]:
    """The crawl's images that come first by a hash of their key: neither chosen by hand nor by score, the same in every round."""
    chosen: list[tuple[str, str, str]] = []  # hash, shard, key
    for path in table_paths(generation):
        table = read_table(path, ["key", "source"])
        keys = pc.unique(table.filter(pc.not_equal(table["source"], "human"))["key"]).to_pylist()
        chosen = heapq.nsmallest(count, chosen + [(hashlib.sha256(k.encode()).hexdigest(), path.stem, k) for k in keys])
    images, found = ShardImages(shards), {}
    for shard in sorted({shard for _, shard, _ in chosen}):
        table = read_table(generation / f"{shard}.parquet", ["key", "text", "source", "reason", "match", "itm", "itc"])
        for key in sorted(key for _, s, key in chosen if s == shard):
            rows = table.filter(pc.equal(table["key"], key))
            found[shard, key] = Example(key, decode_rgb(images.bytes(shard, key)), _example_texts(rows, truth))
    return [found[shard, key] for _, shard, key in chosen]


def _example_texts(rows: pa.Table, truth: Truth | None) -> list[ExampleText]:
    known = truth_of(rows, truth) if truth is not None else [None] * rows.num_rows
    texts = [
        ExampleText(r["source"], r["text"], r["reason"], {name: r[name] for name in ("match", "itm", "itc")}, true)
        for r, true in zip(rows.to_pylist(), known, strict=True)
    ]
    return sorted(texts, key=lambda t: (t.source != "web", not t.kept, -(t.scores["match"] or 0.0), t.text))


def _add_bins(bins: Bins, table: pa.Table, truth: Truth | None) -> None:
    """Add the scored texts of one table; those of unknown truth count as "unknown"."""
    known = truth_of(table, truth) if truth is not None else [None] * table.num_rows
    labels = np.array([{True: "true", False: "false", None: "unknown"}[t] for t in known], dtype=object)
    match = table["match"].to_numpy()
    for label in ("true", "false", "unknown"):
        if (labels == label).any():
            bins[label] = bins.get(label, 0) + _histogram(match[labels == label])


def _histogram(match: np.ndarray) -> np.ndarray:
    """Counts in NUM_BINS equal bins from 0 to 1; what has no score is left out."""
    return np.histogram(match[~np.isnan(match)], bins=NUM_BINS, range=(0, 1))[0]

"""The sample world's truth applied to tables: how much noise there really was, and is left. For reports and tests alone.

A real crawl has no truth.parquet; then `load_truth` gives None and nothing here is called.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from blip_core.sample.scene_texts import is_true
from blip_core.sample.scenes import Scene, scene_from_json
from blip_core.tables.captions import KEPT, read_table


@dataclass(frozen=True)
class ImageTruth:
    kind: str  # of the image's web text: clean, terse, mismatch, ...; "human" in the clean set
    text_true: bool  # of the same text
    scene: Scene


Truth = dict[str, ImageTruth]  # by the key that ingest gave the image


@dataclass(frozen=True)
class TrueNoise:
    """Counts of the texts whose truth is known, by (kind, true, kept). Those of several tables add up."""

    counts: Counter[tuple[str, bool, bool]]

    def __add__(self, other: "TrueNoise") -> "TrueNoise":
        return TrueNoise(self.counts + other.counts)

    @property
    def before(self) -> float | None:
        """Share of false texts among all; None without any."""
        return _share_false(self.counts)

    @property
    def after(self) -> float | None:
        """Share of false texts among the kept; None when none was kept."""
        return _share_false({k: n for k, n in self.counts.items() if k[2]})

    def kinds(self) -> "dict[str, TrueNoise]":
        """Each kind by itself, the most frequent first."""
        totals: Counter[str] = Counter()
        for (kind, _, _), n in self.counts.items():
            totals[kind] += n
        names = sorted(totals, key=lambda kind: (-totals[kind], kind))
        return {name: TrueNoise(Counter({k: n for k, n in self.counts.items() if k[0] == name})) for name in names}

    @property
    def texts(self) -> int:
        return sum(self.counts.values())

    @property
    def kept(self) -> int:
        return sum(n for (_, _, kept), n in self.counts.items() if kept)


def load_truth(data: Path) -> Truth | None:
    """`data`/truth.parquet by key; None where there is none."""
    path = data / "truth.parquet"
    if not path.exists():
        return None
    rows = read_table(path).to_pylist()
    return {row["key"]: ImageTruth(row["kind"], row["text_true"], scene_from_json(row["scene"])) for row in rows}


def web_noise(table: pa.Table, truth: Truth) -> TrueNoise:
    """Of the web texts of a caption table (key, text, source, reason)."""
    return _noise(table, "web", truth)


def synthetic_noise(table: pa.Table, truth: Truth) -> TrueNoise:
    """Of the synthetic texts of a caption table; they are all of the kind "synthetic"."""
    return _noise(table, "synthetic", truth)


def fused_noise(table: pa.Table, truth: Truth) -> TrueNoise:
    """Likewise of the fused texts."""
    return _noise(table, "fused", truth)


def caption_truth(captions: pa.Table, truth: Truth) -> float | None:
    """Share of an evaluation's captions (key, caption) that are true of their image; None when the truth of none is known."""
    rows = [is_true(truth[key].scene, text) for key, text in _pairs(captions, "key", "caption") if key in truth]
    return sum(rows) / len(rows) if rows else None


def truth_of(table: pa.Table, truth: Truth) -> list[bool | None]:
    """For each row of a caption table whether its text is true of the image; None where the image's scene is not known.

    A web text is judged by the flag that the sample wrote with it, any other by the scene.
    """
    found: list[bool | None] = []
    for key, source, text in _pairs(table, "key", "source", "text"):
        known = truth.get(key)
        found.append(None if known is None else known.text_true if source == "web" else is_true(known.scene, text))
    return found


def _noise(table: pa.Table, source: str, truth: Truth) -> TrueNoise:
    rows = table.filter(pc.equal(table["source"], source))
    counts: Counter[tuple[str, bool, bool]] = Counter()
    for (key, reason), true in zip(_pairs(rows, "key", "reason"), truth_of(rows, truth), strict=True):
        if true is not None:
            counts[truth[key].kind if source == "web" else source, true, reason == KEPT] += 1
    return TrueNoise(counts)


def _pairs(table: pa.Table, *columns: str) -> Iterator[tuple[Any, ...]]:
    return zip(*(table[name].to_pylist() for name in columns), strict=True)


def _share_false(counts: dict[tuple[str, bool, bool], int]) -> float | None:
    total = sum(counts.values())
    return sum(n for (_, true, _), n in counts.items() if not true) / total if total else None

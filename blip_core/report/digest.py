"""What a round did, counted in one pass over the tables of the generation it made: one table in memory at a time."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blip_core.sample.truth import TrueNoise, Truth, fused_noise, synthetic_noise, truth_of, web_noise
from blip_core.selection.calibration import read_calibrations, with_match
from blip_core.tables.captions import WRITTEN, read_table, table_paths

SOURCES = ("web", *WRITTEN)
NUM_BINS = 40  # of a histogram as it is drawn
LEVELS = 4000  # of P(match), by which thresholds are told; a multiple of NUM_BINS
Bins = dict[str, np.ndarray]  # "true" | "false" | "unknown" or a kind of control -> texts per bin of P(match)


@dataclass(frozen=True)
class Scores:
    """P(match) of all scored texts of a source."""

    counts: np.ndarray  # by level, lowest first
    highest: float  # -inf where none is scored

    def share_from(self, threshold: float) -> float | None:
        """Share of the texts at this P(match) or above, exact to a level."""
        total = self.counts.sum()
        return float(self.counts[round(threshold * LEVELS) :].sum() / total) if total else None

    def threshold_for(self, share: float) -> float | None:
        """The highest threshold that keeps this share of the texts or more, exact to a level."""
        from_top = self.counts[::-1].cumsum()
        if not from_top[-1]:
            return None
        return float((LEVELS - 1 - np.argmax(from_top >= share * from_top[-1])) / LEVELS)


@dataclass(frozen=True)
class RoundDigest:
    reasons: Counter[tuple[str, str]]  # (source, reason) -> texts
    noise: dict[str, TrueNoise]  # by source; empty without truth
    bins: dict[str, Bins]  # by source, and of the controls
    scores: dict[str, Scores]  # by source

    @property
    def sources(self) -> list[str]:
        """Those that have candidates."""
        return [source for source in SOURCES if self.texts(source)]

    def texts(self, source: str) -> int:
        return sum(n for (s, _), n in self.reasons.items() if s == source)


def digest_round(generation: Path, controls: Path, calibration: Path, truth: Truth | None) -> RoundDigest:
    """Count decisions, true noise and scores of a generation's candidates, and the scores of the planted controls."""
    reasons: Counter[tuple[str, str]] = Counter()
    noise = {source: TrueNoise(Counter()) for source in SOURCES} if truth is not None else {}
    bins: dict[str, Bins] = {source: {} for source in SOURCES}
    scores = {source: Scores(np.zeros(LEVELS, np.int64), -np.inf) for source in SOURCES}
    for path in table_paths(generation):
        table = read_table(path, ["key", "text", "source", "reason", "match"])
        reasons.update(zip(table["source"].to_pylist(), table["reason"].to_pylist(), strict=True))
        if truth is not None:
            noise["web"] += web_noise(table, truth)
            noise["synthetic"] += synthetic_noise(table, truth)
            noise["fused"] += fused_noise(table, truth)
        for source in SOURCES:
            own = table.filter(pc.equal(table["source"], source))
            _add_bins(bins[source], own, truth)
            scores[source] = _with(scores[source], own["match"].to_numpy())
    return RoundDigest(reasons, noise, {**bins, "controls": control_bins(controls, calibration)}, scores)


def control_bins(controls: Path, calibration: Path) -> Bins:
    """Planted pairs by kind: true, crawled, mismatched, perturbed."""
    table = with_match(read_table(controls), read_calibrations(calibration), where=str(controls))
    match, kind = table["match"].to_numpy(), np.array(table["kind"].to_pylist(), dtype=object)
    return {name: _histogram(match[kind == name]) for name in ("true", *sorted(set(kind) - {"true"}))}


def _add_bins(bins: Bins, table: pa.Table, truth: Truth | None) -> None:
    """Add the scored texts of one table; those of unknown truth count as "unknown"."""
    known = truth_of(table, truth) if truth is not None else [None] * table.num_rows
    labels = np.array([{True: "true", False: "false", None: "unknown"}[t] for t in known], dtype=object)
    match = table["match"].to_numpy()
    for label in ("true", "false", "unknown"):
        if (labels == label).any():
            bins[label] = bins.get(label, 0) + _histogram(match[labels == label])


def _with(scores: Scores, match: np.ndarray) -> Scores:
    return Scores(scores.counts + _histogram(match, LEVELS), float(np.nanmax(np.append(match, scores.highest))))


def _histogram(match: np.ndarray, bins: int = NUM_BINS) -> np.ndarray:
    """Counts in equal bins from 0 to 1; what has no score is left out."""
    return np.histogram(match[~np.isnan(match)], bins=bins, range=(0, 1))[0]

"""How much noise is left among the kept texts of a source, by what people said of a sample of them.

Texts come onto a review sheet with known chances (review/choose.py), so their weighted share of wrong ones is without bias, whatever the
filter thinks. The filter's score, which is known of all kept texts, sharpens it: the regression estimator of survey sampling (Särndal,
Swensson and Wretman 1992, chapter 6), which is prediction-powered inference (Angelopoulos et al. 2023) with a fitted slope.

The bound is Clopper and Pearson's for as many trials as the estimate's variance is worth (Korn and Graubard 1998). While hardly a wrong
text, or hardly a right one, was seen, that variance is no good guide: then there are no more trials than pictures. docs/noise.md has how
often the bound holds.

A text that nobody was sure of is left out, as if those were wrong as often as the others. Labels that took part in the calibration may
speak here again: it has a few numbers to fit by them.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blip_core.selection.labels import Judged, Label, Pair, judged
from blip_core.tables.captions import KEPT, WRITTEN, each_table

LABELS, PLANTED = "people's labels", "planted pairs"
FEW = 10  # wrong ones, or right ones, below which the score may not add trials
MOST_GAIN = 3  # trials that a judged picture may be worth by the score's help


@dataclass(frozen=True)
class JudgedNoise:
    """Of the kept texts of one source."""

    texts: int  # that people judged
    share: float  # of wrong ones, estimated
    upper: float  # its one-sided bound


def judged_noise(labels: Iterable[Label], generation: Path, *, score: str, confidence: float, min_labels: int) -> dict[str, JudgedNoise]:
    """By source, where people judged at least `min_labels` of the texts that are kept now. `score`: the column that the rule reads.

    `labels`: of texts that were drawn among the very candidates of which the generation was chosen (`drawn_for`); those of texts that were
    dropped since then say nothing here."""
    said = {j.pair: j for j in judged(labels)}
    keys = pa.array({pair.key for pair in said}, pa.string())
    total, count = Counter[str](), Counter[str]()
    found: dict[str, list[tuple[Judged, float]]] = defaultdict(list)
    for table in each_table(generation, ["key", "image_id", "source", "round", "candidate", "text", "reason", score]):
        kept = table.filter(pc.equal(table["reason"], KEPT))
        for source in {pair.source for pair in said}:
            own = kept.filter(pc.equal(kept["source"], source))[score]
            total[source] += pc.sum(own, min_count=0).as_py()
            count[source] += len(own)
        for row in kept.filter(pc.is_in(kept["key"], value_set=keys)).to_pylist():
            pair = Pair.of(row["shard"], row)
            if pair in said:
                found[pair.source].append((said[pair], row[score]))
    enough = {source: drawn for source, drawn in sorted(found.items()) if len(drawn) >= max(min_labels, 2)}
    return {source: bounded(drawn, total[source] / count[source], 1 - confidence) for source, drawn in enough.items()}


def bounded_by(facts: Mapping[str, float]) -> dict[str, str]:
    """What the gate goes by, for each source of `facts`, its metrics: LABELS, where people judged enough kept texts; else, of web texts,
    PLANTED."""
    by = {"web": PLANTED} if "residual_noise_web_upper" in facts else {}
    return by | {source: LABELS for source in ("web", *WRITTEN) if f"judged_texts_{source}" in facts}


def drawn_for(labels: Iterable[Label], *, generation: str, scores: str) -> list[Label]:
    """Labels whose texts stand for this generation's: of a sheet that was drawn of it, or that asked about all of the scored candidates of
    which it was chosen. `generation`, `scores`: content hashes."""
    return [
        j for j in labels if generation.startswith(j.generation) or (j.asked == "all" and j.candidates and scores.startswith(j.candidates))
    ]


def bounded(drawn: list[tuple[Judged, float]], mean_score: float, alpha: float) -> JudgedNoise:
    """`drawn`: judged texts of a source with their scores; `mean_score`: of all its kept texts."""
    wrong, weight, score = (
        np.array(values, dtype=np.float64) for values in zip(*((1 - j.right, j.weight, s) for j, s in drawn), strict=True)
    )
    _, picture = np.unique([j.pair.image_id for j, _ in drawn], return_inverse=True)
    share, variance = regression_estimate(wrong, weight / weight.sum(), score, picture, mean_score)
    return JudgedNoise(len(drawn), share, upper_bound(share, variance, int(picture.max()) + 1, alpha))


def regression_estimate(
    wrong: np.ndarray, weight: np.ndarray, score: np.ndarray, picture: np.ndarray, mean_score: float
) -> tuple[float, float]:
    """The share of wrong ones and its variance. `weight` adds up to 1; `picture`: 0 to n - 1; `mean_score`: of all, not of the drawn ones.

    A higher score never means more noise: a slope that says so is chance, and taken as 0."""
    plain, offset = float(weight @ wrong), score - weight @ score
    spread = float(weight @ offset**2)
    slope = min(0.0, float(weight @ (offset * (wrong - plain))) / spread) if spread > 0 else 0.0
    share = plain + slope * (mean_score - float(weight @ score))
    by_picture = np.bincount(picture, weights=weight * (wrong - plain - slope * offset))
    pictures = len(by_picture)
    return min(1.0, max(0.0, share)), float(by_picture @ by_picture) * pictures / max(1, pictures - 2)


def upper_bound(share: float, variance: float, pictures: int, alpha: float) -> float:
    """Missed with probability `alpha` at most."""
    from scipy.special import betaincinv

    most = pictures * (MOST_GAIN if min(share, 1 - share) * pictures >= FEW else 1)
    trials = min(share * (1 - share) / variance, most) if variance > 0 else most
    wrong = share * trials
    return 1.0 if trials - wrong < 1e-9 else float(betaincinv(wrong + 1, trials - wrong, 1 - alpha))

"""How much noise did the filter leave? Estimated from planted pairs whose truth is known; no text of the crawl is labelled.

The scores of the crawl are a mixture: texts that fit their picture, and noise of several kinds. Planted pairs show how each of these
scores. The weights under which they add up to the crawl's scores best (maximum likelihood) say how much noise there is and how much of it
passes. The upper bound draws the shares of all parts anew, as their own counts allow, and takes a high quantile of the fits.

What this rests on, and what the crawl itself cannot prove:
- The crawl's noise scores like a mixture of the planted kinds, or lower. Noise that fools the filter better than any planted kind would be
  missed; `worst`, which takes all noise to be of the kind that passes most often, needs no more than that of the threshold.
- A fitting text of the crawl scores like a planted one, or lower. The filter was tuned on captions like the planted ones, so crawled
  texts tend to score lower, and then they look like noise: the estimate is too high rather than too low.
  When the crawl as a whole passes more often than planted pairs can, the assumption is refuted and the bound is 1.
- Pictures are drawn independently; texts of one picture may be as alike as they like (each picture counts as one trial).

docs/noise.md has what came of it for mixtures of known truth.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

TRUE = "true"
FALSE_KINDS = ("mismatched", "crawled", "perturbed")
DRAWS = 5_000
FITS = 400
STEPS = 60  # of the search for weights
BINS = (6, 3)  # of the scores of texts that fail and that pass


@dataclass(frozen=True)
class Judged:
    """One entry per text."""

    score: np.ndarray
    passed: np.ndarray  # by the rule, which may be more than a threshold on the score
    image: np.ndarray  # whose picture

    def where(self, rows: np.ndarray) -> "Judged":
        return Judged(self.score[rows], self.passed[rows], self.image[rows])


@dataclass(frozen=True)
class Noise:
    """Residual noise of the texts that passed, and what it was computed from."""

    keep: float  # share of the crawl's texts that pass
    tpr: float
    fpr: dict[str, float]  # by kind; 1 for a kind that was not planted
    point: float | None  # None: the filter does not tell true from false, or nothing passed
    by_kind: dict[str, float]  # by the pass rates, if all noise were of this kind; kinds without an estimate are left out
    upper: float  # bound with the asked confidence; 1 when there is no estimate
    worst: float  # the same by the pass rates alone, all noise being of the kind that passes most often


def residual_noise(kind: np.ndarray, planted: Judged, crawl: Judged, *, confidence: float) -> Noise:
    """Noise among the crawl's texts that pass. `kind`: of each planted pair, true | mismatched | crawled | perturbed."""
    parts = {k: planted.where(kind == k) for k in (TRUE, *FALSE_KINDS)}
    rate = {k: float(np.mean(p.passed)) if len(p.passed) else 1.0 for k, p in parts.items()}
    keep, tpr, fpr = float(np.mean(crawl.passed)) if len(crawl.passed) else 0.0, rate[TRUE], {k: rate[k] for k in FALSE_KINDS}
    by_kind = {k: n for k, f in fpr.items() if (n := leftover(keep, tpr, f)) is not None}
    noise = partial(Noise, keep=keep, tpr=tpr, fpr=fpr, by_kind=by_kind)
    if keep <= 0 or tpr <= max(fpr.values()):
        return noise(point=None, upper=1.0, worst=1.0)
    point, upper = _mixture(parts, crawl, alpha=1 - confidence)
    if keep > upper_limit(parts[TRUE].passed, parts[TRUE].image, alpha=1 - confidence):
        upper = 1.0
    rates = {k: (p.passed, p.image) for k, p in parts.items()}
    return noise(point=point, upper=upper, worst=_worst(rates, crawl.passed, crawl.image, alpha=1 - confidence))


def _mixture(parts: dict[str, Judged], crawl: Judged, *, alpha: float) -> tuple[float, float]:
    """The noise among what passes by the best fit, and the 1 - alpha / 2 quantile of the fits to shares drawn anew: half of alpha is left
    for the fit itself, which errs to the low side where all noise is of one kind, since a weight can't be below 0.

    A part's share of texts above any score is drawn from the distribution of its Clopper-Pearson upper limits: a Dirichlet of the counts
    and one more text in the highest bin. For the crawl that one is in the lowest. Then so many noisy texts pass as chance will have it.
    The draws are always the same ones: equal counts give an equal bound.
    """
    rng, edges = np.random.default_rng(0), _edges(parts)
    counts = {k: _counts(p, edges) for k, p in {**parts, "": crawl}.items()}
    passes = np.arange(len(counts[""])) >= len(edges[0]) + 1
    order, lowest, highest = (TRUE, *FALSE_KINDS), np.eye(len(passes))[0], np.eye(len(passes))[-1]
    shares = np.array([counts[k] / counts[k].sum() for k in order])
    worst = 1 + int(np.argmax(shares[1:, passes].sum(axis=1)))
    point = _noise_of(_weights(shares[None], (counts[""] / counts[""].sum())[None], worst), shares[None], passes)[0]
    drawn = np.stack([_dirichlet(rng, counts[k] + highest) for k in order], axis=1)
    noise = _noise_of(_weights(drawn, _dirichlet(rng, counts[""] + lowest), worst), drawn, passes)
    kept = int(np.sum(crawl.passed))
    return float(point), float(np.quantile(rng.binomial(kept, noise) / kept, 1 - alpha / 2))


def _edges(parts: dict[str, Judged]) -> list[np.ndarray]:
    """Of the bins of the scores that fail and of those that pass: each holds as many planted pairs, the kinds weighing alike."""
    found = []
    for passing, bins in zip((False, True), BINS, strict=True):
        scores = [p.score[p.passed == passing] for p in parts.values()]
        weight = np.concatenate([np.full(len(s), 1 / len(p.score)) for s, p in zip(scores, parts.values(), strict=True)])
        ordered = np.argsort(together := np.concatenate(scores), kind="stable")
        reached = np.cumsum(weight[ordered]) / weight.sum()
        found.append(np.unique(together[ordered][np.searchsorted(reached, np.arange(1, bins) / bins)]) if len(together) else np.empty(0))
    return found


def _counts(texts: Judged, edges: list[np.ndarray]) -> np.ndarray:
    """Texts by bin, the bins that fail first, scaled to the number of independent trials that they are worth."""
    bins = [np.searchsorted(e, texts.score[texts.passed == p], side="right") for p, e in zip((False, True), edges, strict=True)]
    counts = np.concatenate([np.bincount(b, minlength=len(e) + 1) for b, e in zip(bins, edges, strict=True)])
    return counts * _trials(texts.passed, texts.image) / len(texts.score)


def _dirichlet(rng: np.random.Generator, counts: np.ndarray) -> np.ndarray:
    """FITS draws; a bin without any count stays empty."""
    drawn = rng.standard_gamma(counts, (FITS, len(counts)))
    return drawn / drawn.sum(axis=1, keepdims=True)


def _weights(shares: np.ndarray, seen: np.ndarray, worst: int) -> np.ndarray:
    """Weights of the parts (draws x parts) by EM. It begins at noise of the worst kind and its steps are few: where the scores hardly
    tell the parts from each other, the noise stays."""
    weights = np.full(shares.shape[:2], 0.05)
    weights[:, worst] += 1 - weights.sum(axis=1)
    for _ in range(STEPS):
        together = np.einsum("dp,dpb->db", weights, shares)
        weights = weights * np.einsum("dpb,db->dp", shares, seen / np.maximum(together, 1e-12))
        weights /= weights.sum(axis=1, keepdims=True)
    return weights


def _noise_of(weights: np.ndarray, shares: np.ndarray, passes: np.ndarray) -> np.ndarray:
    passing = weights * shares[:, :, passes].sum(axis=2)
    return passing[:, 1:].sum(axis=1) / np.maximum(passing.sum(axis=1), 1e-12)


def leftover(keep: float, tpr: float, fpr: float) -> float | None:
    """Share of noise among what passes; None where the rates say nothing (nothing passes, or tpr <= fpr)."""
    if keep <= 0 or tpr <= fpr:
        return None
    return float(min((1 - _clean(keep, tpr, fpr)) * fpr / keep, 1.0))


def _clean(keep: Any, tpr: Any, fpr: Any) -> Any:
    """The share of all texts that fit, by the three rates (numbers or arrays)."""
    return np.clip((keep - fpr) / (tpr - fpr), 0.0, 1.0)


def _worst(pairs: dict[str, tuple[np.ndarray, np.ndarray]], kept: np.ndarray, kept_image: np.ndarray, *, alpha: float) -> float:
    """The 1 - alpha quantile of the noise when each rate varies as its own Clopper-Pearson limits say, for the worst kind.

    The noise rises with fpr and tpr and falls with keep, so fpr and tpr are drawn from the distribution of their upper limits
    and keep from that of its lower one; then so many noisy texts pass as chance will have it, which matters for a small crawl.
    The largest of the kinds' bounds needs no further correction: it is at least that of the kind that is truly the worst.
    The draws are always the same ones: equal counts give an equal bound.
    """
    rng = np.random.default_rng(0)
    uniform, texts = rng.random((3, DRAWS)), _trials(kept, kept_image)
    tpr, keep = upper_limit(*pairs[TRUE], alpha=uniform[0]), lower_limit(kept, kept_image, alpha=uniform[1])
    if np.mean(kept) > upper_limit(*pairs[TRUE], alpha=alpha):
        return 1.0
    bounds = []
    for kind in FALSE_KINDS:
        fpr = upper_limit(*pairs[kind], alpha=uniform[2])
        possible = (tpr > fpr) & (keep > 0)
        noisy = np.where(possible, 1 - _clean(keep, np.where(possible, tpr, 2.0), fpr), 1.0) * texts
        passing = rng.binomial(np.rint(noisy).astype(int), fpr) / (np.mean(kept) * texts)
        bounds.append(float(np.quantile(np.where(possible, passing, 1.0), 1 - alpha)))
    return min(max(bounds), 1.0)


def upper_limit(passed: np.ndarray, image: np.ndarray, *, alpha: float | np.ndarray) -> float | np.ndarray:
    """One-sided Clopper-Pearson upper limit of a pass rate, missed with probability alpha; 1 without any text."""
    return 1.0 - lower_limit(~np.asarray(passed, bool), image, alpha=alpha)


def lower_limit(passed: np.ndarray, image: np.ndarray, *, alpha: float | np.ndarray) -> float | np.ndarray:
    """One-sided Clopper-Pearson lower limit of a pass rate, missed with probability alpha; 0 without any text."""
    from scipy.special import betaincinv

    trials = _trials(passed, image)
    successes = float(np.mean(passed)) * trials if trials else 0.0
    return betaincinv(successes, trials - successes + 1, alpha) if successes > 0 else np.zeros_like(alpha)


def _trials(passed: np.ndarray, image: np.ndarray) -> float:
    """Independent trials that the texts are worth: one per text, down to one per picture, by how much texts of a picture agree.

    The design effect of Korn and Graubard (1998). Where all pass or none does, agreement can't be seen and pictures count.
    """
    if not len(passed):
        return 0.0
    _, group, sizes = np.unique(image, return_inverse=True, return_counts=True)
    hits = np.bincount(group, weights=np.asarray(passed, float)).astype(np.int64)
    size, hit, squares, cross, hit_squares = (int(v.sum()) for v in (sizes, hits, sizes**2, sizes * hits, hits**2))
    fewest, rate = size**2 / squares, float(np.mean(passed))
    if rate in (0.0, 1.0) or len(sizes) < 2:
        return float(fewest)
    # of the pictures' (hits - rate x size), summed as whole numbers: the order of the pictures is no matter
    spread = (size**2 * hit_squares - 2 * hit * size * cross + hit**2 * squares) / size**2
    variance = spread * len(sizes) / (len(sizes) - 1) / size**2
    return float(np.clip(rate * (1 - rate) / variance, fewest, size))

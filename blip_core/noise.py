"""How much noise did the filter leave? Estimated from planted pairs whose truth is known; no text of the crawl is labelled.

Of the crawl's texts a share `clean` fits. A fitting text passes the filter with probability `tpr`, another with `fpr`, so the
share that passes is  keep = clean tpr + (1 - clean) fpr.  Solved for `clean`, the noise among what passed is
(1 - clean) fpr / keep. Planted pairs give tpr, and fpr by kind of falsehood; the crawl gives keep.

What this rests on, and what the crawl itself cannot prove:
- The crawl's noise passes no more often than the worst planted kind. The upper bound takes all noise to be of that kind, so
  the unknown mixture of kinds does not matter; a kind of noise that fools the filter better than any planted one would.
- A fitting text of the crawl passes no more often than a planted one. The filter was tuned on captions like the planted ones,
  so crawled texts tend to pass less often, and then the bound is too high rather than too low.
  When the crawl as a whole passes more often than planted pairs can, the assumption is refuted and the bound is 1.
- Pictures are drawn independently; texts of one picture may be as alike as they like (each picture counts as one trial).
"""

from dataclasses import dataclass

import numpy as np

TRUE = "true"
FALSE_KINDS = ("mismatched", "perturbed")
DRAWS = 5_000


@dataclass(frozen=True)
class Noise:
    """Residual noise of the texts that passed, and what it was computed from."""

    keep: float  # share of the crawl's texts that pass
    tpr: float
    fpr: dict[str, float]  # by kind; 1 for a kind that was not planted
    point: float | None  # None: the filter does not tell true from false, or nothing passed
    by_kind: dict[str, float]  # the point estimate if all noise were of this kind; kinds without an estimate are left out
    upper: float  # bound with the asked confidence; 1 when there is no estimate


def residual_noise(
    kind: np.ndarray, passed: np.ndarray, image: np.ndarray, *, kept: np.ndarray, kept_image: np.ndarray, confidence: float
) -> Noise:
    """Noise among the crawl's texts that pass, from planted pairs.

    `kind`, `passed`, `image`: one entry per planted pair: true | mismatched | perturbed, whether it passes the rule, whose picture.
    `kept`, `kept_image`: one entry per text of the crawl: whether it passes the same rule, whose picture.

    The point estimate takes equal parts of the planted kinds. The keep rate alone cannot tell the kinds apart; crawled noise
    is mostly whole mismatches, the easier kind, so equal parts err to the high side.
    """
    pairs = {k: (passed[kind == k], image[kind == k]) for k in (TRUE, *FALSE_KINDS)}
    rate = {k: float(np.mean(p)) if len(p) else 1.0 for k, (p, _) in pairs.items()}
    keep, tpr, fpr = float(np.mean(kept)) if len(kept) else 0.0, rate[TRUE], {k: rate[k] for k in FALSE_KINDS}
    by_kind = {k: n for k, f in fpr.items() if (n := leftover(keep, tpr, f)) is not None}
    point = leftover(keep, tpr, float(np.mean(list(fpr.values()))))
    upper = _upper(pairs, kept, kept_image, alpha=1 - confidence) if keep > 0 and tpr > max(fpr.values()) else 1.0
    return Noise(keep=keep, tpr=tpr, fpr=fpr, point=point, by_kind=by_kind, upper=upper)


def leftover(keep: float, tpr: float, fpr: float) -> float | None:
    """Share of noise among what passes; None where the rates say nothing (nothing passes, or tpr <= fpr)."""
    if keep <= 0 or tpr <= fpr:
        return None
    return float(min((1 - _clean(keep, tpr, fpr)) * fpr / keep, 1.0))


def _clean(keep, tpr, fpr):
    """The share of all texts that fit, by the three rates (numbers or arrays)."""
    return np.clip((keep - fpr) / (tpr - fpr), 0.0, 1.0)


def _upper(pairs: dict[str, tuple], kept: np.ndarray, kept_image: np.ndarray, *, alpha: float) -> float:
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

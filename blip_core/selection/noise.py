"""How much noise did the filter leave? Estimated from planted pairs whose truth is known; no text of the crawl is labelled.

The scores of the crawl are a mixture: texts that fit their picture, and noise of several kinds. Planted pairs show how each of these
scores. The weights under which they add up to the crawl's scores best (least chi-square over bins) say how much noise there is and how much
of it passes. The upper bound is the most noise among the passing texts that still fits: a profile likelihood. Bins are by the score and,
within it, by the ITC cosine: where the score alone can't tell boilerplate from a caption with one wrong word, ITC and ITM disagree on them
in different ways.

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
BINS = (8, 4)  # of the scores of texts that fail and that pass; each is cut in two by the ITC cosine
UNSEEN = 0.05  # texts that each part is given besides, spread over all bins: an empty bin is no proof
LEAST_SHARE = 1e-4  # of a bin, where its variance is told
REFITS, HALVINGS = 3, 14  # until variances and weights belong together, and of the search for the bound
FIRM = 1e3  # weight of what must hold exactly
EVEN = 0.1  # chi-square by which a fit may be worse and still as good


@dataclass(frozen=True)
class Judged:
    """One entry per text."""

    score: np.ndarray
    passed: np.ndarray  # by the rule, which may be more than a threshold on the score
    image: np.ndarray  # whose picture
    itc: np.ndarray | None = None  # cosine; None, or not a number: the filter has none

    def where(self, rows: np.ndarray) -> "Judged":
        return Judged(self.score[rows], self.passed[rows], self.image[rows], None if self.itc is None else self.itc[rows])


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
    """The noise among what passes by the best fit, and the most that fits with confidence 1 - alpha. Where several fits are as good, as
    with a filter that hardly tells the kinds apart, the one with the most noise counts.

    For the bound a fit may be worse than the best by the quantile of a chi-square with one degree of freedom. Where even the best one is
    worse than chance allows, as crawled texts are not quite like planted ones, that is widened by the root of how much. Two chances come on
    top: the pass rates of planted pairs are estimates, and of the noise more or less may be among the texts that passed here.
    """
    from scipy.special import ndtri

    plain, safe = (_Fit.of(parts, crawl, safe=safe) for safe in (False, True))
    likeliest, off = plain.best()
    noise, z = plain.noise(likeliest), ndtri(1 - alpha)
    point = plain.most_noise(off + EVEN, above=noise)
    weights, off = safe.best()
    freedom = max(1, int(np.count_nonzero(safe.seen)) - len(weights))
    allowed = off + z**2 * np.sqrt(max(1.0, off / freedom))
    start = max(noise, safe.noise(weights))
    most = safe.most_noise(allowed, above=start)
    chance = most * (1 - most) / np.sum(crawl.passed) + safe.variance(safe.best(noise=most)[0])
    return point, float(np.clip(start + np.sqrt((most - start) ** 2 + z**2 * chance), point, 1.0))


@dataclass
class _Fit:
    """Least squares of the crawl's shares by those of the parts, true texts first."""

    shares: np.ndarray  # parts x bins
    trials: np.ndarray  # that each part is worth
    seen: np.ndarray  # shares of the crawl
    crawl_trials: float
    passes: np.ndarray  # by bin
    spread: np.ndarray  # standard deviation of the difference between `seen` and what the best weights make of the parts, by bin

    @classmethod
    def of(cls, parts: dict[str, Judged], crawl: Judged, *, safe: bool) -> "_Fit":
        """`safe`: with one more planted text of each kind in the highest bin, and one of the crawl in the lowest, as Clopper and Pearson's
        limits have it."""
        bins = _Bins.of(parts)
        ends = np.eye(bins.number)[[0, -1]] * safe
        counts = np.array([bins.count(parts[k]) for k in (TRUE, *FALSE_KINDS)]) + UNSEEN / bins.number + ends[1]
        trials, seen = counts.sum(axis=1), bins.count(crawl) + ends[0]
        fit = cls(counts / trials[:, None], trials, seen / seen.sum(), seen.sum(), bins.passes, np.ones(bins.number))
        weights = np.full(len(counts), 1 / len(counts))
        for _ in range(REFITS):
            fit.spread = fit._spread_of(weights)
            weights, _ = fit.best()
        return fit

    def _spread_of(self, weights: np.ndarray) -> np.ndarray:
        together, own = weights @ self.shares, self.shares * (1 - self.shares) / self.trials[:, None]
        return np.sqrt(np.maximum(together * (1 - together), LEAST_SHARE) / self.crawl_trials + weights**2 @ own)

    def best(self, noise: float | None = None) -> tuple[np.ndarray, float]:
        """The weights, which add up to 1, and their chi-square; with `noise`, under which so much of what passes is noise."""
        from scipy.optimize import nnls

        firm = FIRM / self.spread.min()
        rows, wanted = [*(self.shares / self.spread).T, np.full(len(self.shares), firm)], [*(self.seen / self.spread), firm]
        if noise is not None:
            false = np.arange(len(self.shares)) > 0
            rows, wanted = [*rows, firm * self._passing() * (false - noise)], [*wanted, 0.0]
        weights, _ = nnls(np.array(rows), np.array(wanted))
        return weights, float(np.sum(((self.seen - weights @ self.shares) / self.spread) ** 2))

    def most_noise(self, allowed: float, *, above: float) -> float:
        """The most whose best fit has a chi-square of at most `allowed`; at least `above`."""
        low, high = above, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.best(noise=middle)[1] <= allowed else (low, middle)
        return low

    def noise(self, weights: np.ndarray) -> float:
        passing = weights * self._passing()
        return float(passing[1:].sum() / max(passing.sum(), 1e-12))

    def variance(self, weights: np.ndarray) -> float:
        """Of that noise, by the pass rates of the parts alone."""
        rate = self._passing()
        pull = weights * ((np.arange(len(rate)) > 0) - self.noise(weights)) / max(float(weights @ rate), 1e-12)
        return float(pull**2 @ (rate * (1 - rate) / self.trials))

    def _passing(self) -> np.ndarray:
        return self.shares[:, self.passes].sum(axis=1)


@dataclass(frozen=True)
class _Bins:
    """By the score, those that fail first; each in two by the ITC cosine."""

    edges: tuple[np.ndarray, np.ndarray]  # of the scores that fail and that pass
    middle: np.ndarray  # ITC cosine by bin of the score

    @classmethod
    def of(cls, parts: dict[str, Judged]) -> "_Bins":
        """Each holds as many planted pairs, the kinds weighing alike."""
        whole = cls(_edges(parts), np.empty(0))
        place, itc = np.concatenate([whole._place(p) for p in parts.values()]), np.concatenate([_itc(p) for p in parts.values()])
        return cls(whole.edges, np.array([np.median(itc[place == i]) if np.any(place == i) else 0.0 for i in range(whole._scores)]))

    @property
    def _scores(self) -> int:
        return sum(len(e) + 1 for e in self.edges)

    @property
    def number(self) -> int:
        return 2 * self._scores

    @property
    def passes(self) -> np.ndarray:
        return np.arange(self.number) >= 2 * (len(self.edges[0]) + 1)

    def count(self, texts: Judged) -> np.ndarray:
        """Texts by bin, scaled to the number of independent trials that they are worth."""
        place = self._place(texts)
        counts = np.bincount(2 * place + (_itc(texts) >= self.middle[place]), minlength=self.number)
        return counts * _trials(texts.passed, texts.image) / len(texts.score)

    def _place(self, texts: Judged) -> np.ndarray:
        fails, passes = (np.searchsorted(e, texts.score, side="right") for e in self.edges)
        return np.where(texts.passed, len(self.edges[0]) + 1 + passes, fails)


def _itc(texts: Judged) -> np.ndarray:
    return np.zeros(len(texts.score)) if texts.itc is None else np.nan_to_num(texts.itc.astype(float))


def _edges(parts: dict[str, Judged]) -> tuple[np.ndarray, np.ndarray]:
    found = []
    for passing, bins in zip((False, True), BINS, strict=True):
        scores = [p.score[p.passed == passing] for p in parts.values()]
        weight = np.concatenate([np.full(len(s), 1 / len(p.score)) for s, p in zip(scores, parts.values(), strict=True)])
        ordered = np.argsort(together := np.concatenate(scores), kind="stable")
        reached = np.cumsum(weight[ordered]) / weight.sum()
        found.append(np.unique(together[ordered][np.searchsorted(reached, np.arange(1, bins) / bins)]) if len(together) else np.empty(0))
    return found[0], found[1]


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

"""How sure a metric is: bootstrap over images (Efron & Tibshirani 1993; for metrics of texts Koehn 2004).

The unit that is drawn anew is the image, for texts of one image are no independent evidence. A metric is a statistic of sums
over images: a mean over items of (sum, count), corpus BLEU of its n-gram counts. So one matrix product serves many resamples.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]  # [..., columns] sums over images -> [...]
BLOCK_CELLS = 1 << 22  # resamples x images that are drawn together


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """Two models on the same images. `p`: two-sided, of a difference this far from 0 if there were none."""

    challenger: float
    baseline: float
    difference: float
    low: float
    high: float
    p: float


def mean(sums: np.ndarray) -> np.ndarray:
    """The statistic of columns (sum of the values, number of them)."""
    return sums[..., 0] / sums[..., 1]


def sums_by_image(values: np.ndarray, images: Sequence[str]) -> np.ndarray:
    """Per-item values to [images, 2], (sum, number) of each image, sorted by name: the order of the rows is no matter."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) != len(images) or not len(values):
        raise ValueError(f"expected one value for each item, at least one; got {len(values)} values for {len(images)} items")
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} of {len(values)} values are NaN or infinite")
    _, group = np.unique(np.asarray(images, dtype=str), return_inverse=True)
    order = np.lexsort((values, group))  # sums of floats depend on their order
    sums = np.bincount(group[order], weights=values[order])
    return np.stack([sums, np.bincount(group)], axis=1)


def interval(columns: np.ndarray, statistic: Statistic = mean, *, resamples: int, confidence: float, seed: int) -> Interval:
    """Percentile interval of a statistic. `columns` [images, columns], as from `sums_by_image`, rows in an order of their own."""
    drawn = np.concatenate([statistic(sums) for sums in _resampled(columns, resamples, seed)])
    low, high = np.quantile(drawn, _tails(confidence))
    return Interval(*map(_rounded, (statistic(columns.sum(axis=0)), low, high)))


def paired(
    challenger: np.ndarray, baseline: np.ndarray, statistic: Statistic = mean, *, resamples: int, confidence: float, seed: int
) -> Paired:
    """Challenger minus baseline, both on the same drawn images each time. Row i of both `columns` must be the same image."""
    if challenger.shape != baseline.shape:
        raise ValueError(f"expected both models on the same images, got columns of shapes {challenger.shape} and {baseline.shape}")
    width = challenger.shape[1]
    both = np.concatenate([challenger, baseline], axis=1)
    drawn = np.concatenate([statistic(s[:, :width]) - statistic(s[:, width:]) for s in _resampled(both, resamples, seed)])
    ours, theirs = (float(statistic(sums.sum(axis=0))) for sums in (challenger, baseline))
    return paired_by_draws(drawn, ours, theirs, confidence=confidence)


def paired_by_draws(drawn: np.ndarray, challenger: float, baseline: float, *, confidence: float) -> Paired:
    """The same of differences [resamples] that are drawn already."""
    low, high = np.quantile(drawn, _tails(confidence))
    rarer = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p = min(1.0, 2 * (rarer + 1) / (len(drawn) + 1))  # + 1: the sample itself, so that p is never 0
    return Paired(*map(_rounded, (challenger, baseline, challenger - baseline, low, high, p)))


def _rounded(value: float) -> float:
    """Matrix products differ in the last bits by memory alignment and threads; files made of equal data shall not."""
    return round(float(value), 9)


def _resampled(columns: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Sums of `columns` over as many images as there are, drawn with replacement: blocks of [some resamples, columns]."""
    images = len(columns)
    if images < 2:
        raise ValueError(f"got {images} image: an interval needs at least 2 to draw from; evaluate on more images")
    rng = np.random.default_rng(seed)
    step = max(1, BLOCK_CELLS // images)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        picks = rng.integers(images, size=(count, images)) + images * np.arange(count)[:, None]
        yield np.bincount(picks.ravel(), minlength=count * images).reshape(count, images) @ columns.astype(np.float64)


def _tails(confidence: float) -> list[float]:
    return [(1 - confidence) / 2, (1 + confidence) / 2]

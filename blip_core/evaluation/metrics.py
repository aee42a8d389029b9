"""What an evaluation measures: captions against references, retrieval from a score matrix, a filter against known truth.

Caption metrics equal pycocoevalcap's on the same tokens (tests prove it on published scores). How sure a number is: bootstrap.py.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from blip_core.evaluation.tokens import TOKENIZE, Tokenization, tokenization_of

NGRAM = 4
ROUGE_BETA = 1.2
CIDER_SIGMA = 6.0
RECALLS = (1, 5, 10)
BLOCK_CELLS = 1 << 22  # of a score matrix that are looked at together: 32 MiB in float64

Grams = Counter[tuple[str, ...]]


@dataclass(frozen=True)
class CaptionScores:
    """`corpus` and `per_image` by metric: bleu1 .. bleu4, rouge_l, cider (1.0 is what papers print as 100).

    Arrays follow `keys`. Corpus BLEU comes from `bleu_counts` (see there), the other two are means of the images' values.
    """

    keys: list[str]
    corpus: dict[str, float]
    per_image: dict[str, np.ndarray]
    bleu_counts: np.ndarray
    tokenization: Tokenization


def caption_scores(
    references: Mapping[str, Sequence[str]], candidates: Mapping[str, str], *, tokenization: Tokenization | None = None
) -> CaptionScores:
    """Score one caption per image against its references, both by the image's key.

    `tokenization`: None goes by the script of the references (tokens.py). An empty candidate scores 0. CIDEr weighs n-grams by how many
    images' references hold them, so its values belong to this set of images: a set of one image has none and scores 0.
    """
    _check_captions(references, candidates)
    tokenization = tokenization or tokenization_of(text for texts in references.values() for text in texts)
    tokenize, keys = TOKENIZE[tokenization], list(references)
    refs = [[tokenize(text) for text in references[key]] for key in keys]
    cands = [tokenize(candidates[key]) for key in keys]
    counts = np.array([_bleu_counts(c, r) for c, r in zip(cands, refs, strict=True)], dtype=np.float64)
    per_image = {f"bleu{n + 1}": values for n, values in enumerate(bleu(counts).T)}
    per_image["rouge_l"] = np.array([rouge_l(c, r) for c, r in zip(cands, refs, strict=True)])
    per_image["cider"] = cider(cands, refs)
    corpus = {f"bleu{n + 1}": float(value) for n, value in enumerate(bleu(counts.sum(axis=0)))}
    corpus |= {name: float(per_image[name].mean()) for name in ("rouge_l", "cider")}
    return CaptionScores(keys, corpus, per_image, counts, tokenization)


def bleu_counts(references: Mapping[str, Sequence[str]], candidates: Mapping[str, str]) -> np.ndarray:
    """[images, 10]: candidate length, closest reference length, n-grams given (1..4), n-grams right (1..4); sums give corpus BLEU."""
    _check_captions(references, candidates)
    tokenize = TOKENIZE[tokenization_of(text for texts in references.values() for text in texts)]
    return np.array([_bleu_counts(tokenize(candidates[k]), [tokenize(t) for t in r]) for k, r in references.items()], dtype=np.float64)


def bleu(counts: np.ndarray) -> np.ndarray:
    """[..., 10] counts, or sums of them, to [..., 4]: BLEU-1 .. BLEU-4. The tiny terms are coco-caption's guard against 0 / 0."""
    length, closest, given, right = counts[..., :1], counts[..., 1:2], counts[..., 2:6], counts[..., 6:]
    precision = np.cumprod((right + 1e-15) / (given + 1e-9), axis=-1) ** (1 / np.arange(1, NGRAM + 1))
    ratio = (length + 1e-15) / (closest + 1e-9)
    return precision * np.exp(np.minimum(1 - 1 / ratio, 0))


def rouge_l(candidate: str, references: Sequence[str]) -> float:
    """F of the longest common subsequence: the best precision and the best recall over the references, as coco-caption."""
    if not candidate:
        return 0.0
    tokens = candidate.split(" ")
    lengths = [(_common_subsequence(tokens, other), len(other)) for other in (text.split(" ") for text in references)]
    precision = max(common for common, _ in lengths) / len(tokens)
    recall = max(common / length for common, length in lengths)
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision) if precision and recall else 0.0


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr-D of each image (Vedantam et al. 2015, section 5), with document frequencies from the references given."""
    images_with = Counter(gram for texts in references for gram in set().union(*map(_ngrams, texts)))
    log_images = np.log(len(references))
    rarity = {gram: log_images - np.log(count) for gram, count in images_with.items()}
    del images_with
    weighted = (
        (_weighted(_ngrams(text), rarity, log_images), [_weighted(_ngrams(other), rarity, log_images) for other in others])
        for text, others in zip(candidates, references, strict=True)
    )
    return np.array([10 * np.mean([_similarity(own, other) for other in others]) for own, others in weighted])


@dataclass(frozen=True)
class _Weighted:
    """A text's n-grams as tf-idf vectors, one for each n: weights, norms [4], and the length that CIDEr-D compares (in bigrams)."""

    weights: list[dict[tuple[str, ...], float]]
    norms: list[float]
    length: int


def _weighted(grams: Grams, rarity: Mapping[tuple[str, ...], float], unseen: float) -> _Weighted:
    weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(NGRAM)]
    for gram, count in grams.items():
        weights[len(gram) - 1][gram] = count * rarity.get(gram, unseen)
    norms = [sum(w * w for w in vector.values()) ** 0.5 for vector in weights]
    return _Weighted(weights, norms, sum(count for gram, count in grams.items() if len(gram) == 2))


def _similarity(own: _Weighted, other: _Weighted) -> float:
    """Mean over n of the clipped cosine, with CIDEr-D's Gaussian penalty on the difference in length."""
    total = 0.0
    for mine, theirs, norm in zip(own.weights, other.weights, np.multiply(own.norms, other.norms).tolist(), strict=True):
        if norm:
            total += sum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in mine.items() if gram in theirs) / norm
    return total / NGRAM * float(np.exp(-((own.length - other.length) ** 2) / (2 * CIDER_SIGMA**2)))


def _ngrams(text: str) -> Grams:
    words = text.split()
    return Counter(tuple(words[i : i + n]) for n in range(1, NGRAM + 1) for i in range(len(words) - n + 1))


def _bleu_counts(candidate: str, references: Sequence[str]) -> list[int]:
    length = len(candidate.split())
    closest = min((abs(len(text.split()) - length), len(text.split())) for text in references)[1]
    allowed: Grams = Counter()
    for text in references:
        allowed |= _ngrams(text)
    right = [0] * NGRAM
    for gram, count in (_ngrams(candidate) & allowed).items():
        right[len(gram) - 1] += count
    return [length, closest, *(max(0, length - n) for n in range(NGRAM)), *right]


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence; bit i of `open_` is 0 where it grows at a[i] (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    every = (1 << len(a)) - 1
    open_ = every
    for token in b:
        here = open_ & places.get(token, 0)
        open_ = ((open_ + here) | (open_ - here)) & every
    return len(a) - open_.bit_count()


def _check_captions(references: Mapping[str, Sequence[str]], candidates: Mapping[str, str]) -> None:
    if not references:
        raise ValueError("no image to score: expected at least one key with its references")
    if references.keys() != candidates.keys():
        missing, unknown = sorted(references.keys() - candidates.keys()), sorted(candidates.keys() - references.keys())
        raise ValueError(
            f"captions and references are of different images: {len(missing)} without a caption {missing[:3]}, "
            f"{len(unknown)} without references {unknown[:3]}; give one caption for each image"
        )
    for key, texts in references.items():
        if texts is None or isinstance(texts, str) or not len(texts) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"image {key!r}: expected a list of one or more references, got {texts!r}; leave the image out or add one")
        if not isinstance(candidates[key], str):
            raise ValueError(f"image {key!r}: expected one caption as a string, got {candidates[key]!r}")


class Scores(Protocol):
    """A matrix, images x texts, that is looked at in blocks of whole rows or columns: an array, a memory map, or what makes a block when
    it is asked for."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def __getitem__(self, place: tuple[slice, slice], /) -> np.ndarray: ...


def text_ranks(scores: Scores, image_of_text: np.ndarray) -> np.ndarray:
    """Image to text: for each image, how many wrong texts score at least as high as its best right one (0 is a hit at 1).

    `scores` [images, texts] is read in blocks of rows; `image_of_text` [texts], the row of each text's image.
    A tie counts against the model, so one that scores everything alike has no hit.
    """
    image_of_text = _check_scores(scores, image_of_text)
    lonely = np.setdiff1d(np.arange(scores.shape[0]), image_of_text)
    if lonely.size:
        raise ValueError(f"{lonely.size} images have no text, the first in row {lonely[0]}; leave them out of the matrix")
    ranks = np.empty(scores.shape[0], dtype=np.int64)
    for rows, block in blocks(scores, 0):
        right = image_of_text == rows[:, None]
        best = np.where(right, block, -np.inf).max(axis=1, keepdims=True)
        ranks[rows] = ((block >= best) & ~right).sum(axis=1)
    return ranks


def image_ranks(scores: Scores, image_of_text: np.ndarray) -> np.ndarray:
    """Text to image: for each text, how many other images score at least as high as its own; arguments as in `text_ranks`, but that
    `scores` is read in blocks of columns."""
    image_of_text = _check_scores(scores, image_of_text)
    ranks = np.empty(len(image_of_text), dtype=np.int64)
    for columns, block in blocks(scores, 1):
        own = block[image_of_text[columns], np.arange(len(columns))]
        ranks[columns] = (block >= own).sum(axis=0) - 1  # its own image is counted too
    return ranks


def recalls(ranks: np.ndarray, prefix: str) -> dict[str, float]:
    """Share of ranks below 1, 5 and 10: {"tr_r1": …, "tr_r5": …, "tr_r10": …} for the prefix "tr"."""
    return {f"{prefix}_r{k}": float((ranks < k).mean()) for k in RECALLS}


def blocks(scores: Scores, axis: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The numbers of some whole rows (axis 0) or columns (axis 1), and the block that they are."""
    step, whole = max(1, BLOCK_CELLS // scores.shape[1 - axis]), slice(None)
    for start in range(0, scores.shape[axis], step):
        own = slice(start, min(start + step, scores.shape[axis]))
        block = np.asarray(scores[(own, whole) if axis == 0 else (whole, own)])
        if np.isnan(block).any():
            what = ("images", "texts")[axis]
            raise ValueError(f"scores of {what} {own.start} to {own.stop - 1} hold NaN; a model that gives NaN has no rank")
        yield np.arange(own.start, own.stop), block


def _check_scores(scores: Scores, image_of_text: np.ndarray) -> np.ndarray:
    image_of_text = np.asarray(image_of_text)
    if len(scores.shape) != 2 or scores.shape[1] != len(image_of_text) or 0 in scores.shape:
        raise ValueError(f"expected scores [images, texts] and the image of each text, got shapes {scores.shape} and {image_of_text.shape}")
    if image_of_text.dtype.kind not in "iu":
        raise ValueError(f"image_of_text: expected rows as whole numbers, got {image_of_text.dtype}")
    if image_of_text.min() < 0 or image_of_text.max() >= scores.shape[0]:
        raise ValueError(f"image_of_text points at rows {image_of_text.min()} to {image_of_text.max()} of {scores.shape[0]}")
    return image_of_text


def roc_auc(truth: np.ndarray, score: np.ndarray) -> float:
    """Chance that a true pair scores above a false one; a tie counts half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(_check_truth(truth, score), score))


def precision_recall_curve(
    truth: np.ndarray, score: np.ndarray, *, weight: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and threshold, thresholds rising: precision[i] is that of the pairs with score >= threshold[i].

    Precision and recall have one more entry, (1, 0), where nothing is kept. `weight`: of each pair, default the same for all.
    """
    from sklearn.metrics import precision_recall_curve as curve

    return curve(_check_truth(truth, score), score, sample_weight=weight)


def expected_calibration_error(truth: np.ndarray, probability: np.ndarray, *, weight: np.ndarray | None = None, bins: int = 10) -> float:
    """Mean distance of the predicted from the true share over bins of equal weight; ties share their truth, so order is no matter.

    `weight`: of each pair, default the same for all."""
    probability = np.asarray(probability, dtype=np.float64)
    if len(probability) != len(truth) or not len(probability) or not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError(f"expected {len(truth)} probabilities in [0, 1], at least one; got {len(probability)}, {_range(probability)}")
    weight = np.ones(len(probability)) if weight is None else weight
    _, group, size = np.unique(probability, return_inverse=True, return_counts=True)
    together, true = np.bincount(group, weights=weight), np.bincount(group, weights=weight * np.asarray(truth, dtype=np.float64))
    share, weight = (true / together)[group], (together / size)[group]
    order = np.argsort(probability, kind="stable")
    middle = np.cumsum(weight[order]) - weight[order] / 2
    place = np.minimum((middle / weight.sum() * bins).astype(int), bins - 1)
    gaps = np.bincount(place, weights=(weight * (share - probability))[order])
    return float(np.abs(gaps).sum() / weight.sum())


def _check_truth(truth: np.ndarray, score: np.ndarray) -> np.ndarray:
    truth = np.asarray(truth).astype(bool)
    if truth.shape != np.shape(score):
        raise ValueError(f"expected one score for each truth, got {np.shape(score)} scores and {truth.shape} truths")
    if truth.all() or not truth.any():
        raise ValueError(f"expected true and false pairs to tell apart, got {int(truth.sum())} true and {int((~truth).sum())} false")
    if not np.isfinite(score).all():
        raise ValueError(f"scores hold {int((~np.isfinite(score)).sum())} values that are NaN or infinite")
    return truth


def _range(values: np.ndarray) -> str:
    return f"from {values.min()} to {values.max()}" if len(values) else "none"

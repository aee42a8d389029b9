"""The floor that a trained model has to beat: a linear fit of colours and gradients to the topics of captions.

Pictures become colours (of cells, and a histogram of the whole) and orientations of gradients; texts become counts of words by rarity,
reduced to topics by SVD. Ridge regression leads from the one to the other, and cosine ranks. No network, seconds on one core.

N pictures, F features, T texts, V words, K topics.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SIDE = 64  # pixels; pictures come as uint8 SIDE x SIDE x 3
CELLS = 4  # of a side
ORIENTATIONS = 8
SHADES = 4  # of each colour in the histogram
WORDS, TOPICS = 1000, 256
RIDGE = 1.0  # times the number of rows; features have unit variance


def picture_features(pixels_N: Sequence[np.ndarray]) -> np.ndarray:
    """N x F."""
    return np.stack([np.concatenate([_colours(p), _histogram(p), _gradients(p)]) for p in pixels_N])


def _colours(pixels: np.ndarray) -> np.ndarray:
    """Mean and spread of red, green and blue in each cell."""
    cells = _cells(pixels / 255.0)
    return np.concatenate([cells.mean(1).ravel(), cells.std(1).ravel()])


def _histogram(pixels: np.ndarray) -> np.ndarray:
    shade = (pixels.astype(int) * SHADES // 256).reshape(-1, 3) @ np.array([SHADES**2, SHADES, 1])
    return np.sqrt(np.bincount(shade, minlength=SHADES**3) / len(shade))


def _gradients(pixels: np.ndarray) -> np.ndarray:
    """How strong the edges of each orientation are in each cell."""
    down, right = np.gradient(pixels.mean(2) / 255.0)
    strength, angle = np.hypot(down, right), np.arctan2(down, right) % np.pi
    which = np.minimum((angle / np.pi * ORIENTATIONS).astype(int), ORIENTATIONS - 1)
    by_orientation = np.where(which[..., None] == np.arange(ORIENTATIONS), strength[..., None], 0.0)
    return np.sqrt(_cells(by_orientation).mean(1)).ravel()


def _cells(values_HWC: np.ndarray) -> np.ndarray:
    """CELLS² x pixels of a cell x C."""
    side = len(values_HWC) // CELLS
    return values_HWC.reshape(CELLS, side, CELLS, side, -1).swapaxes(1, 2).reshape(CELLS**2, side**2, -1)


@dataclass(frozen=True)
class Topics:
    """What texts become: the words that count, and how they weigh."""

    words: dict[str, int]
    weights_VK: np.ndarray  # rarity times the word's place in the topics

    @classmethod
    def fit(cls, texts: Sequence[str]) -> "Topics":
        known = [set(_words(t)) for t in texts]
        found = Counter(w for words in known for w in words)
        words = {w: i for i, (w, _) in enumerate(found.most_common(WORDS))}
        rarity = np.log(len(texts) / np.array([found[w] for w in words]))
        counts_TV = _counts(texts, words) * rarity
        _, axes = np.linalg.eigh(counts_TV.T @ counts_TV)
        return cls(words, rarity[:, None] * axes[:, ::-1][:, :TOPICS])

    def of(self, texts: Sequence[str]) -> np.ndarray:
        """T x K, of unit length; a text without a known word is 0."""
        return _unit(_counts(texts, self.words) @ self.weights_VK)


@dataclass(frozen=True)
class LinearFloor:
    topics: Topics
    mean_F: np.ndarray
    map_FK: np.ndarray
    offset_K: np.ndarray

    @classmethod
    def fit(cls, features_TF: np.ndarray, texts: Sequence[str]) -> "LinearFloor":
        """A row of `features_TF` and a text are a pair."""
        topics = Topics.fit(texts)
        target_TK, mean_F = topics.of(texts), features_TF.mean(0)
        centred = (features_TF - mean_F) / (features_TF.std(0) + 1e-6)
        gram = centred.T @ centred + RIDGE * len(texts) * np.eye(centred.shape[1])
        offset_K = target_TK.mean(0)
        map_FK = np.linalg.solve(gram, centred.T @ (target_TK - offset_K)) / (features_TF.std(0) + 1e-6)[:, None]
        return cls(topics, mean_F, map_FK, offset_K)

    def scores(self, features_NF: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """Cosine of each picture with each text, the means of both left out: N x T."""
        return self._pictures(features_NF) @ self._texts(texts).T

    def pair_scores(self, features_TF: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """The same of pairs, a row of `features_TF` and a text: T."""
        return (self._pictures(features_TF) * self._texts(texts)).sum(1)

    def _pictures(self, features_NF: np.ndarray) -> np.ndarray:
        return _unit((features_NF - self.mean_F) @ self.map_FK)

    def _texts(self, texts: Sequence[str]) -> np.ndarray:
        return _unit(self.topics.of(texts) - self.offset_K)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _counts(texts: Sequence[str], words: dict[str, int]) -> np.ndarray:
    counts = np.zeros((len(texts), len(words)))
    for row, text in zip(counts, texts, strict=True):
        for word in set(_words(text)) & words.keys():
            row[words[word]] = 1.0
    return counts


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)

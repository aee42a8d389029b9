"""Pictures whose embeddings are near: faiss compares all with all, exactly, in blocks that fit into memory.

Embeddings are directions on a grid of whole numbers, `on_grid`. Sums of their products are whole numbers that float32 holds exactly, in
whatever order they are added: no number of threads and no version of a library decides which pictures are near.
"""

from typing import Any, Protocol

import numpy as np

from blip_core.runtime.cores import available_cores

_LENGTH = 4000  # of a vector on the grid; (_LENGTH + sqrt(D) / 2)**2 < 2**24, so that float32 holds every sum of products
# 300 MB where all of them are near to all of these, and their vectors: as many kB as each has numbers
_ROWS, _OTHERS = 2048, 8192


class Rows(Protocol):
    """Vectors on the grid, int16 [N, D], none of them zero. An array is one."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> np.ndarray: ...


def require_faiss() -> Any:
    """ValueError where the package is missing."""
    try:
        import faiss
    except ImportError:
        raise ValueError(
            "ingest.near_copies.meaning wants the package faiss-cpu, which is not installed; pip install 'blip-bootstrap[meaning]'"
        ) from None
    faiss.omp_set_num_threads(min(available_cores(), faiss.omp_get_max_threads()))
    return faiss


def on_grid(vectors_ND: np.ndarray) -> np.ndarray:
    """Finite vectors as int16 [N, D]: their directions, rounded to about 1e-4 of a cosine. What has no direction stays zero."""
    lengths = np.linalg.norm(vectors_ND.astype(np.float64), axis=1, keepdims=True)
    return np.rint(vectors_ND * (_LENGTH / np.where(lengths > 0, lengths, 1))).astype(np.int16)


def nearest(rows: Rows, known: Rows, *, cosine: float) -> tuple[np.ndarray, np.ndarray]:
    """For each row the known one with the largest cosine to it of at least `cosine`, by number, of equal ones the first; -1 where there
    is none. And that cosine."""
    found, cosines = np.full(len(rows), -1), np.zeros(len(rows))
    for start in range(0, len(rows), _ROWS):
        own = rows[start : start + _ROWS]
        for begin in range(0, len(known), _OTHERS):
            row, other, near = _near(own, known[begin : begin + _OTHERS], cosine)
            best = np.lexsort((-other, near))  # the best last, for the last of several that are assigned stays
            best = best[near[best] > cosines[start + row[best]]]
            found[start + row[best]], cosines[start + row[best]] = begin + other[best], near[best]
    return found, cosines


def firsts(rows: Rows, *, cosine: float) -> tuple[np.ndarray, np.ndarray]:
    """For each row the earliest with a cosine of at least `cosine` to it, by number, its own where there is none; and that cosine.

    Who is a copy has no copies, as in duplicates.py, so each row is compared with those that are none."""
    first, cosines = np.arange(len(rows)), np.ones(len(rows))
    for start in range(0, len(rows), _ROWS):
        own = rows[start : start + _ROWS]
        alone = np.arange(len(own))  # of these, for which no first is found yet
        for begin in range(0, start, _OTHERS):
            end = min(begin + _OTHERS, start)
            heads = np.flatnonzero(first[begin:end] == np.arange(begin, end))
            row, other, near = _near(own[alone], rows[begin:end][heads], cosine)
            hit, at = np.unique(row, return_index=True)
            first[start + alone[hit]], cosines[start + alone[hit]] = begin + heads[other[at]], near[at]
            alone = np.delete(alone, hit)
        for row, other, near in zip(*_near(own[alone], own[alone], cosine), strict=True):
            later, earlier = start + alone[row], start + alone[other]
            if earlier < later and first[later] == later and first[earlier] == earlier:
                first[later], cosines[later] = earlier, near
    return first, cosines


def _near(rows: np.ndarray, others: np.ndarray, cosine: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs with at least that cosine, in order: numbers of rows and others, and the cosines."""
    if not len(rows) or not len(others):
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    faiss = require_faiss()
    squares, other_squares = ((v.astype(np.int64) ** 2).sum(axis=1) for v in (rows, others))
    index = faiss.IndexFlatIP(others.shape[1])
    index.add(others.astype(np.float32))
    least = cosine * np.sqrt(float(squares.min() * other_squares.min())) - 1  # of a product; lengths differ a little
    ends, products, other = index.range_search(rows.astype(np.float32), least)
    row = np.repeat(np.arange(len(rows)), np.diff(ends.astype(np.int64)))
    cosines = products / np.sqrt((squares[row] * other_squares[other]).astype(np.float64))
    order = np.lexsort((other, row))
    order = order[cosines[order] >= cosine]
    return row[order], other[order], cosines[order]

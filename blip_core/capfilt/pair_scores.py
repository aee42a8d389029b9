"""Scores of texts against pictures, as filters give them. Nothing here needs torch."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PairScores:
    """Scores of each text of each image, flat in the order given. NaN throughout where a filter has no such score."""

    itm_logit: np.ndarray  # match minus mismatch
    itc: np.ndarray  # cosine

    @property
    def itm(self) -> np.ndarray:
        """P(match) of the ITM head, raw."""
        return 1 / (1 + np.exp(-self.itm_logit))

    def where(self, rows: np.ndarray) -> "PairScores":
        """Of some rows, by mask."""
        return PairScores(self.itm_logit[rows], self.itc[rows])

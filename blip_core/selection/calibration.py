"""P(match): what a filter's scores mean, fitted on pairs whose truth is known.

A raw ITM probability of 0.5 is no universal truth. `Calibration` makes one probability of a filter's scores; `calibration.json` of a
round holds one for each of its filters, found by content hash; `with_match` fills the column `match` of scored tables by it. Scores
and calibration are apart, so new labels or another method cost seconds and no pass over the images.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blip_core.capfilt.pair_scores import PairScores, opinions, pair_scores, set_opinions
from blip_core.config.selection import CalibrationMethod
from blip_core.files.content import write_json
from blip_core.tables.captions import SCHEMA, WRITTEN
from blip_core.tables.stopped import require_made


@dataclass(frozen=True)
class Calibration:
    """P(match) is the logistic function of the weighted scores, and then, of the method isotonic, what the knots make of it.

    Planted pairs are like texts of the web. That a synthetic text deserves less trust at the same scores only labels tell.
    """

    itm_logit: float
    itc: float
    bias: float
    synthetic: float = 0.0  # of synthetic texts, on top of the bias
    knots: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # from probability, to probability: both rising

    @classmethod
    def fit(
        cls,
        scores: PairScores,
        truth: np.ndarray,
        *,
        synthetic: np.ndarray | None = None,
        weight: np.ndarray | None = None,
        method: CalibrationMethod = "logistic",
    ) -> "Calibration":
        """`synthetic`: which texts are, default none; `weight`: of the pairs of a truth among each other, default the same for all.

        Either truth weighs the same. logistic: regression on all scores that the filter has (Platt 1999). temperature: the ITM logit
        divided by one number (Guo et al. 2017), or where a filter has none, its cosine with a bias. isotonic: the logistic one made
        monotone to fit (Zadrozny and Elkan 2002).
        """
        if truth.all() or not truth.any():
            raise ValueError(f"expected true and false pairs to calibrate by, got {int(truth.sum())} true of {len(truth)}")
        weight = balanced(truth, weight)
        columns = {"itm_logit": scores.itm_logit, "itc": scores.itc}
        columns = {name: values for name, values in columns.items() if not np.isnan(values).all()}
        if method == "temperature" and "itm_logit" in columns:
            return _regression({"itm_logit": columns["itm_logit"]}, truth, weight, intercept=False)
        if method != "temperature" and synthetic is not None:
            columns["synthetic"] = np.asarray(synthetic, dtype=np.float64)
        fitted = _regression(columns, truth, weight)
        return fitted if method != "isotonic" else fitted._made_monotone(scores, truth, weight, synthetic)

    def match(self, scores: PairScores, *, synthetic: np.ndarray | bool = False) -> np.ndarray:
        # a score without weight may be one that the filter lacks
        terms = [w * s for w, s in ((self.itm_logit, scores.itm_logit), (self.itc, scores.itc)) if w]
        linear = sum(terms, start=self.bias + self.synthetic * np.asarray(synthetic) + np.zeros(len(scores.itc)))
        probability = 1 / (1 + np.exp(-np.clip(linear, -700, 700)))
        return probability if self.knots is None else np.interp(probability, *self.knots)

    def _made_monotone(self, scores: PairScores, truth: np.ndarray, weight: np.ndarray, synthetic: np.ndarray | None) -> "Calibration":
        from sklearn.isotonic import IsotonicRegression

        probability = self.match(scores, synthetic=False if synthetic is None else synthetic)
        found = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(probability, truth, sample_weight=weight)
        return Calibration(**(asdict(self) | {"knots": (tuple(map(float, found.X_thresholds_)), tuple(map(float, found.y_thresholds_)))}))


def _regression(columns: dict[str, np.ndarray], truth: np.ndarray, weight: np.ndarray, *, intercept: bool = True) -> Calibration:
    """Weights of the columns, which are scores or say which texts are synthetic, and the bias."""
    from sklearn.linear_model import LogisticRegression

    features = np.stack(list(columns.values()), axis=1)
    scale = features.std(axis=0) + 1e-9
    found = LogisticRegression(fit_intercept=intercept).fit(features / scale, truth, sample_weight=weight)
    weights = dict(zip(columns, map(float, found.coef_[0] / scale), strict=True))
    itm_logit, itc, synthetic = (weights.get(name, 0.0) for name in ("itm_logit", "itc", "synthetic"))
    return Calibration(itm_logit, itc, float(found.intercept_[0]) if intercept else 0.0, synthetic)


def balanced(truth: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Weights of which either truth has half, and that add up to the number of pairs."""
    weight = np.ones(len(truth)) if weight is None else weight
    return weight * np.where(truth, len(truth) / 2 / weight[truth].sum(), len(truth) / 2 / weight[~truth].sum())


def threshold_for_precision(match: np.ndarray, truth: np.ndarray, target: float) -> float | None:
    """The lowest threshold at which the share of true pairs among those kept, truths weighing equally, reaches the target."""
    precision, threshold = _precisions(match, truth)
    reached = np.flatnonzero(precision >= target)
    return float(threshold[reached[-1]]) if len(reached) and math.isfinite(target) else None


def best_precision(match: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """The highest share of true pairs among those kept, truths weighing equally, and the lowest threshold that has it."""
    precision, threshold = _precisions(match, truth)
    at = np.flatnonzero(precision == precision.max())[-1]
    return float(precision[at]), float(threshold[at])


def _precisions(match: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At each threshold, thresholds falling: each keeps all pairs that are equal to it."""
    order = np.argsort(-match, kind="stable")
    true_rate = np.cumsum(truth[order]) / max(1, truth.sum())
    false_rate = np.cumsum(~truth[order]) / max(1, (~truth).sum())
    last = np.append(np.diff(match[order]) != 0, True)
    return (true_rate / np.maximum(true_rate + false_rate, 1e-12))[last], match[order][last]


@dataclass(frozen=True)
class Calibrated:
    """One filter of a round, calibrated."""

    filter: str  # content hash
    name: str  # in score.filters
    calibration: Calibration
    threshold: float | None  # for the target precision; None: it is out of reach


def write_calibrations(found: list[Calibrated], out: Path, *, facts: dict[str, dict[str, Any]]) -> None:
    """The first is that whose scores stand in `itm` and `itc`. `facts` by content hash: how good it is, its curve."""
    rows = [{**asdict(c), **facts.get(c.filter, {})} for c in found]
    write_json({"filters": rows}, out)


def read_calibrations(path: Path) -> dict[str, Calibrated]:
    """By content hash, in order."""
    require_made(path)
    if not path.exists():
        raise ValueError(f"{path}: missing, so the filter's scores can't be read as probabilities; run calibrate")
    try:
        rows = json.loads(path.read_text())["filters"]
        return {row["filter"]: _calibrated(row) for row in rows}
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{path}: no calibration of filters ({type(e).__name__}: {e}); run calibrate again") from None


def _calibrated(row: dict[str, Any]) -> Calibrated:
    values = dict(row["calibration"])
    if values["knots"] is not None:
        values["knots"] = tuple(map(tuple, values["knots"]))
    return Calibrated(row["filter"], row["name"], Calibration(**values), row["threshold"])


def with_match(table: pa.Table, calibrated: dict[str, Calibrated], *, where: str) -> pa.Table:
    """A scored table with `match` filled, its own and that of every further opinion. ValueError names a filter that was not calibrated."""
    synthetic = pc.is_in(table["source"], value_set=pa.array(WRITTEN)).to_numpy()
    match = np.full(table.num_rows, np.nan)
    filters = np.array(table["filter"].to_pylist(), dtype=object)
    for name in dict.fromkeys(filters.tolist()):
        own = filters == name
        match[own] = _of(calibrated, name, where).match(pair_scores(table.filter(pa.array(own))), synthetic=synthetic[own])
    column = pa.array(match, pa.float64(), from_pandas=True)
    table = table.set_column(SCHEMA.get_field_index("match"), SCHEMA.field("match"), column)
    judged = [o.set_column(3, "match", _opinion_match(o, calibrated, synthetic, where)) for o in opinions(table)]
    return set_opinions(table, judged) if judged else table


def _opinion_match(opinion: pa.Table, calibrated: dict[str, Calibrated], synthetic: np.ndarray, where: str) -> pa.Array:
    calibration = _of(calibrated, opinion["filter"][0].as_py(), where)
    return pa.array(calibration.match(pair_scores(opinion), synthetic=synthetic), pa.float64(), from_pandas=True)


def _of(calibrated: dict[str, Calibrated], name: str, where: str) -> Calibration:
    if name not in calibrated:
        raise ValueError(f"{where}: scored by filter {name!r}, but calibrated are {sorted(calibrated)}; run calibrate and score again")
    return calibrated[name].calibration

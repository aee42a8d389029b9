"""What the scores of a round's filters mean: P(match), fitted on pairs whose truth is known (blip_core/selection/calibration.py).

Half of the held-out pairs are used here; `score` plants the other half as controls. Texts of the crawl that people have judged take
part where there are any: they are what the score is for. Nothing but these pairs is scored, so new labels cost seconds.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from blip_core.capfilt.chat import Terms
from blip_core.capfilt.controls import plant
from blip_core.capfilt.med import set_threads
from blip_core.capfilt.pace import begin
from blip_core.capfilt.pair_scores import PairScores
from blip_core.capfilt.plugins import Fetch, open_filter
from blip_core.capfilt.scoring import score_table
from blip_core.compute.work import ANSWERS
from blip_core.config.capfilt import ScoreConfig
from blip_core.config.selection import CalibrateConfig
from blip_core.evaluation.metrics import expected_calibration_error, precision_recall_curve, roc_auc
from blip_core.files.content import write_json
from blip_core.selection.calibration import (
    Calibrated,
    Calibration,
    balanced,
    best_precision,
    threshold_for_precision,
    write_calibrations,
)
from blip_core.selection.labelled import labelled_pairs
from blip_core.tables.captions import VAL
from blip_core.tables.heldout import heldout_halves, heldout_tables
from blip_core.tables.shards import ShardImages
from blip_core.tables.slices import FEWEST, Columns, keys_of, require_values

CURVE_POINTS = 200

log = logging.getLogger(__name__)


def calibrate(
    filter: Path,
    shards: Path,
    heldout: Path,
    labels: Path,
    out: Path,
    out_metrics: Path,
    *,
    cfg: CalibrateConfig,
    score_cfg: ScoreConfig,
    seed: int,
    work: Path,
    fetch: Fetch | None = None,
    columns: Path = Path("columns"),
) -> None:
    """Each of `score_cfg.filters`, of which `filter` is the round's own. The metrics are those of the first, the others' below its name.
    `columns`: where the files lie by which they are told in slices as well (tables/slices.py)."""
    set_threads(score_cfg.threads)
    said, facts = labelled_pairs(labels, shards, min_labels=cfg.min_labels)
    pairs = _together(plant(heldout_halves(heldout)[0], per_image=cfg.controls_per_image, seed=seed), said)
    sliced = _slices(heldout, Columns(columns, cfg.slices))
    images, found = ShardImages(shards), []
    about: dict[str, dict[str, Any]] = {}
    for name in score_cfg.filters:
        judge = open_filter(name, filter, question=score_cfg.question, precision=score_cfg.precision, fetch=fetch)
        begin([judge], Terms(score_cfg.endpoint, work / ANSWERS, "calibrate"))
        scores = score_table(judge, pairs, images, batch_size=score_cfg.batch_size, name="calibrate")
        calibration, metrics, curve = fit(scores, pairs, cfg, seed=seed, sliced=sliced)
        found.append(Calibrated(judge.identity, name, calibration, metrics["threshold_for_precision"]))
        about[judge.identity] = {"metrics": metrics, "curve": curve}
        if metrics["auc_low"] <= 0.5:
            log.warning("%s is not shown to tell true from false pairs: AUC %.3f; it is no use as a filter", name, metrics["auc"])
        if metrics["threshold_for_precision"] is None:
            best = f"the best is {metrics['best_precision']:.3f}, of P(match) from {metrics['best_precision_threshold']:.3f}"
            log.warning("%s reaches calibrate.target_precision %g at no threshold: %s", name, cfg.target_precision, best)
        if "labels_alike" in metrics:
            log.info("%s and people say the same of %.1f%% of the labelled texts, at P(match) = 0.5", name, 100 * metrics["labels_alike"])
    write_calibrations(found, out, facts=about)
    first, *others = (about[c.filter]["metrics"] for c in found)
    further = {c.name: metrics for c, metrics in zip(found[1:], others, strict=True)}
    write_json({**first, **facts, **({"further_filters": further} if further else {})}, out_metrics)


def fit(
    scores: PairScores, pairs: pa.Table, cfg: CalibrateConfig, *, seed: int, sliced: Mapping[str, set[str]]
) -> tuple[Calibration, dict[str, Any], dict[str, list[float]]]:
    """The calibration, how well the filter tells true from false pairs, and its precision-recall curve.

    The metrics are of the planted pairs, but for how often people and the filter say the same of the labelled ones. Two folds: each
    pair's P(match) in the metrics comes from a fit that did not see its picture. `sliced`: the keys of the pictures of each slice.
    """
    truth, synthetic, labelled, weight = (pairs[c].to_numpy() for c in ("truth", "synthetic", "labelled", "weight"))
    options = {"synthetic": synthetic, "weight": shared_weight(truth, labelled, weight, cfg.label_share)}

    def fitted(rows: np.ndarray) -> Calibration:
        own = {name: values[rows] for name, values in options.items()}
        return Calibration.fit(scores.where(rows), truth[rows], **own, method=cfg.method)

    picture = np.unique(pairs["image_id"].to_numpy(zero_copy_only=False), return_inverse=True)[1]
    fold, match = picture % 2, np.empty(len(truth))
    for held in (0, 1):
        match[fold == held] = fitted(fold != held).match(scores.where(fold == held), synthetic=synthetic[fold == held])
    planted = ~labelled
    known = (scores.where(planted), match[planted], truth[planted], picture[planted])
    metrics, curve = quality(*known, cfg, seed=seed)
    keys = pairs["key"].to_pylist() if sliced else []
    for name, own in sliced.items():
        metrics |= _of_slice(name, np.array([key in own for key in keys])[planted], *known, cfg, seed)
    if labelled.any():
        same = (match >= 0.5) == truth
        metrics["labels_alike"] = float(np.average(same[labelled], weights=weight[labelled]))
    return fitted(np.ones(len(truth), dtype=bool)), metrics, curve


def shared_weight(truth: np.ndarray, labelled: np.ndarray, weight: np.ndarray, share: float) -> np.ndarray:
    """Weights of which the labelled pairs of either truth have `share`, in the proportions they had; all alike without labels."""
    if not labelled.any():
        return weight
    found = np.empty(len(weight))
    for rows, part in ((labelled, share), (~labelled, 1 - share)):
        for true in (True, False):
            own = rows & (truth == true)
            found[own] = part * weight[own] / weight[own].sum()
    return found


def quality(
    scores: PairScores, match: np.ndarray, truth: np.ndarray, picture: np.ndarray, cfg: CalibrateConfig, *, seed: int
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Metrics with the bounds of their intervals, m, m_low, m_high, by bootstrap over pictures; the curve by rising threshold.

    True and false pairs weigh the same, as P(match) is fitted: how many of each are planted says nothing of the crawl.
    """
    metrics = _metrics(scores, match, truth, picture, cfg, seed)
    metrics["best_precision"], metrics["best_precision_threshold"] = best_precision(match, truth)
    metrics["threshold_for_precision"] = threshold_for_precision(match, truth, cfg.target_precision)
    precision, recall, threshold = precision_recall_curve(truth, match, weight=balanced(truth))
    some = np.unique(np.linspace(0, len(threshold) - 1, CURVE_POINTS).round().astype(int))
    curve = {"precision": precision[some], "recall": recall[some], "threshold": threshold[some]}
    return metrics, {name: values.tolist() for name, values in curve.items()}


def _metrics(
    scores: PairScores, match: np.ndarray, truth: np.ndarray, picture: np.ndarray, cfg: CalibrateConfig, seed: int
) -> dict[str, Any]:
    singles = {"auc_itm": scores.itm_logit, "auc_itc": scores.itc}
    singles = {name: values for name, values in singles.items() if not np.isnan(values).all()}

    def measured(rows: np.ndarray) -> dict[str, float]:
        return _measure(truth[rows], match[rows]) | {name: roc_auc(truth[rows], values[rows]) for name, values in singles.items()}

    found = measured(np.arange(len(truth)))
    counts = {"pairs_true": int(truth.sum()), "pairs_false": int((~truth).sum())}
    return {**counts, **found, **_intervals(measured, found, picture, cfg, seed)}


def _of_slice(
    name: str,
    rows: np.ndarray,
    scores: PairScores,
    match: np.ndarray,
    truth: np.ndarray,
    picture: np.ndarray,
    cfg: CalibrateConfig,
    seed: int,
) -> dict[str, Any]:
    """m[column=value] of the pairs whose picture has the value; of few pictures their number alone."""
    pictures = len(np.unique(picture[rows]))
    if pictures < FEWEST:
        log.warning("%s: %d pictures are too few to tell how well the filter does there", name, pictures)
        return {f"pictures{name}": pictures}
    own = _metrics(scores.where(rows), match[rows], truth[rows], picture[rows], cfg, seed)
    return {f"pictures{name}": pictures} | {_named(metric, name): value for metric, value in own.items()}


def _named(metric: str, name: str) -> str:
    """auc_low of a slice is auc[column=value]_low."""
    end = next((end for end in ("_low", "_high") if metric.endswith(end)), "")
    return f"{metric.removesuffix(end)}{name}{end}"


def _slices(heldout: Path, columns: Columns) -> dict[str, set[str]]:
    values = columns.of_pictures(heldout_tables(heldout, VAL))
    for column, own in values.items():
        require_values(column, own.values())
    return keys_of(values)


def _measure(truth: np.ndarray, match: np.ndarray) -> dict[str, float]:
    kept, weight = match >= 0.5, balanced(truth)
    return {
        "auc": roc_auc(truth, match),
        "ece": expected_calibration_error(truth, match, weight=weight),
        "precision": float(np.average(truth[kept], weights=weight[kept])) if kept.any() else 0.0,
        "recall": float(kept[truth].mean()),
    }


def _intervals(
    measured: Callable[[np.ndarray], dict[str, float]], found: dict[str, float], picture: np.ndarray, cfg: CalibrateConfig, seed: int
) -> dict[str, float]:
    """Percentile intervals about `found`; what is drawn anew are pictures, for the pairs of one are no independent evidence."""
    order = np.argsort(picture, kind="stable")
    rows = np.split(order, np.flatnonzero(np.diff(picture[order])) + 1)
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(cfg.bootstrap):
        drawn.append(measured(np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))])))
    tails = {"low": (1 - cfg.confidence) / 2, "high": (1 + cfg.confidence) / 2}
    values = {m: np.array([d[m] for d in drawn]) for m in found}
    # chance can only add to an ECE, and does so once more in each draw: all of its draws may lie above it
    values["ece"] = np.maximum(0.0, values["ece"] - values["ece"].mean() + found["ece"])
    return {f"{m}_{end}": float(np.quantile(v, q)) for m, v in values.items() for end, q in tails.items()}


def _together(planted: pa.Table, said: pa.Table) -> pa.Table:
    """The columns of labelled pairs and `labelled`, the planted pairs first."""
    rows = planted.num_rows
    columns = {name: planted[name] for name in ("shard", "key", "image_id", "text", "truth")}
    alike = pa.table({**columns, "synthetic": np.zeros(rows, dtype=bool), "weight": np.ones(rows)}, schema=said.schema)
    both = pa.concat_tables([alike, said])
    return both.append_column("labelled", pa.array(np.arange(both.num_rows) >= rows))

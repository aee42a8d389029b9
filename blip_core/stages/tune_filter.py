"""Fine-tune a filter: ITC and ITM on the clean set, from a pretrained MED (paper section 3.3), then calibrate it.

A raw ITM probability of 0.5 is no universal truth. The calibration sets it, together with ITC, against held-out pairs whose
truth is known; the other half of those pairs stays unseen here and is planted as controls by `score`. Texts of the
crawl that people have judged take part where there are any: they are what the score is for.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from blip_core.capfilt import Calibration, PairScores, score_table, threshold_for_precision
from blip_core.captions import content_hash, require_gate, write_json
from blip_core.checkpoint import load_model, model_hash, save_model
from blip_core.config import FilterConfig
from blip_core.controls import heldout_halves, plant
from blip_core.data import Batches, Rows
from blip_core.distributed import device, on_every_process, rank
from blip_core.metrics import expected_calibration_error, precision_recall_curve, roc_auc
from blip_core.model.blip import Blip
from blip_core.objectives import PretrainObjective
from blip_core.review.pairs import labelled_pairs
from blip_core.shards import ShardImages
from blip_core.tokenizer import Tokenizer
from blip_core.train import Log, fit, summarize, write_history
from blip_core.work import discard, run_folder


@on_every_process
def tune_filter(
    base: Path,
    generation: Path,
    shards: Path,
    heldout: Path,
    labels: Path,
    gate: Path,
    out: Path,
    out_history: Path,
    out_metrics: Path,
    *,
    cfg: FilterConfig,
    seed: int,
    work: Path,
    log: Log | None = None,
) -> None:
    """`generation` gives the human captions, `heldout` the pairs (split val) for the calibration, `labels` what people judged."""
    require_gate(gate, generation)
    said, facts = labelled_pairs(labels, shards, min_labels=cfg.min_labels)
    model, tokenizer = load_model(base)
    rows, images = Rows.of(generation, ["human"]), ShardImages(shards)
    batches = Batches(
        rows, images, tokenizer, shares={"human": 1.0}, cfg=cfg.optim, image_size=model.cfg.vision.image_size, prompt="", seed=seed
    )
    folder = run_folder(work, "tune_filter", cfg=cfg.model_dump(), seed=seed, base=model_hash(base), data=content_hash(generation))
    objective = PretrainObjective(model, cfg.contrast, language=None)
    history = fit(model, objective, batches, cfg.optim, name="tune_filter", folder=folder, seed=seed, report=log)
    planted = plant(heldout_halves(heldout)[0], per_image=cfg.controls_per_image, seed=seed)
    calibration, metrics, curve = calibrate(model, tokenizer, planted, said, images, cfg)
    if rank() > 0:  # it calibrated too, so that none waits long for another
        return
    save_model(model, tokenizer, out, prompt="", max_tokens=cfg.optim.max_tokens)
    calibration.save(out, **metrics, **facts, curve=curve)
    write_history(history, out_history)
    write_json({**summarize(history), **metrics, **facts}, out_metrics)
    discard(folder)


def calibrate(
    model: Blip, tokenizer: Tokenizer, planted: pa.Table, said: pa.Table, images: ShardImages, cfg: FilterConfig
) -> tuple[Calibration, dict[str, float], dict[str, list[float]]]:
    """The calibration, how well the filter tells true from false pairs, and its precision-recall curve.

    The metrics are of the planted pairs, but for how often people and the filter say the same of the labelled ones. Two folds: each
    pair's P(match) in the metrics comes from a fit that did not see its picture.
    """
    pairs = _together(planted, said)
    scores = score_table(
        model.eval().to(device()), tokenizer, pairs, images, max_tokens=cfg.optim.max_tokens, precision=cfg.optim.precision, batch_size=100
    )
    truth, synthetic, labelled, weight = (pairs[c].to_numpy() for c in ("truth", "synthetic", "labelled", "weight"))
    options = {"synthetic": synthetic, "weight": shared_weight(truth, labelled, weight, cfg.label_share)}

    def fitted(rows: np.ndarray) -> Calibration:
        return Calibration.fit(scores.where(rows), truth[rows], **{name: values[rows] for name, values in options.items()})

    fold = np.unique(pairs["image_id"].to_numpy(zero_copy_only=False), return_inverse=True)[1] % 2
    match = np.empty(len(truth))
    for held in (0, 1):
        match[fold == held] = fitted(fold != held).match(scores.where(fold == held), synthetic=synthetic[fold == held])
    metrics, curve = _quality(scores.where(~labelled), match[~labelled], truth[~labelled], cfg)
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


def _together(planted: pa.Table, said: pa.Table) -> pa.Table:
    """The columns of labelled pairs and `labelled`, the planted pairs first."""
    rows = planted.num_rows
    columns = {name: planted[name] for name in ("shard", "key", "image_id", "text", "truth")}
    alike = pa.table({**columns, "synthetic": np.zeros(rows, dtype=bool), "weight": np.ones(rows)}, schema=said.schema)
    both = pa.concat_tables([alike, said])
    return both.append_column("labelled", pa.array(np.arange(both.num_rows) >= rows))


def _quality(
    scores: PairScores, match: np.ndarray, truth: np.ndarray, cfg: FilterConfig
) -> tuple[dict[str, float], dict[str, list[float]]]:
    precision, recall, _ = precision_recall_curve(truth, match)
    kept = match >= 0.5
    metrics = {
        "pairs_true": int(truth.sum()),
        "pairs_false": int((~truth).sum()),
        "auc": roc_auc(truth, match),
        "auc_itm": roc_auc(truth, scores.itm_logit),
        "auc_itc": roc_auc(truth, scores.itc),
        "ece": expected_calibration_error(truth, match),
        "precision": float(truth[kept].mean()) if kept.any() else 0.0,
        "recall": float(kept[truth].mean()),
        "threshold_for_precision": threshold_for_precision(match, truth, cfg.target_precision),
    }
    return metrics, {"precision": precision.tolist(), "recall": recall.tolist()}

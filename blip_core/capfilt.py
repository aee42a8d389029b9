"""CapFilt (paper section 3.3): caption the crawl's images, score texts against images, and calibrate the score.

One pass over an image serves all its texts. Everything here works on plain lists of images and texts; shards and tables are
the stages' business.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from blip_core.ahead import read_ahead
from blip_core.captions import write_json
from blip_core.config import SamplerConfig
from blip_core.data import hash64, load_pixels, pad, read_resized
from blip_core.distributed import device
from blip_core.model.blip import Blip
from blip_core.model.generate import Limits, beam_search, nucleus
from blip_core.shards import ShardImages
from blip_core.tokenizer import Tokenizer


def autocast(precision: str) -> torch.autocast:
    return torch.autocast(device().type, torch.bfloat16, enabled=precision == "bf16")


@torch.inference_mode()
def caption_images(
    model: Blip,
    tokenizer: Tokenizer,
    images: list[np.ndarray],
    keys: list[str],
    cfg: SamplerConfig,
    *,
    seed: int,
    num_candidates: int = 1,
    prompt: str = "",
    precision: str = "fp32",
) -> list[list[str]]:
    """Captions of uint8 H x W x 3 images: num_candidates each with nucleus, one with beam search.

    A sampled caption is a function of (seed, key, candidate), not of the batch it was computed in.
    """
    limits = Limits(cfg.min_tokens, cfg.max_tokens, cfg.repetition_penalty)
    start = tokenizer.encode_prompt(prompt)
    with autocast(precision):
        keys_values = model.keys_values(model.image_tokens(load_pixels(images, model.cfg.vision.image_size)))
        if cfg.name == "beam":
            ids = beam_search(model, keys_values, start, limits, beams=cfg.beams)[:, None]
        else:
            ids = nucleus(model, keys_values, start, limits, p=cfg.p, draws_IKL=sample_draws(keys, num_candidates, cfg.max_tokens, seed))
    return [[tokenizer.decode(candidate) for candidate in image] for image in ids.tolist()]


def sample_draws(keys: list[str], num_candidates: int, num_tokens: int, seed: int) -> Tensor:
    """Uniform numbers, images x candidates x tokens; a longer limit or more candidates leave the first ones as they are."""
    draws = [
        [np.random.default_rng([seed, hash64(key) & 0xFFFFFFFFFFFF, candidate]).random(num_tokens) for candidate in range(num_candidates)]
        for key in keys
    ]
    return torch.from_numpy(np.array(draws)).float()


@dataclass(frozen=True)
class PairScores:
    """Scores of each text of each image, flat in the order given."""

    itm_logit: np.ndarray  # match minus mismatch
    itc: np.ndarray  # cosine

    @property
    def itm(self) -> np.ndarray:
        """P(match) of the ITM head, raw."""
        return 1 / (1 + np.exp(-self.itm_logit))

    def where(self, rows: np.ndarray) -> "PairScores":
        """Of some rows, by mask."""
        return PairScores(self.itm_logit[rows], self.itc[rows])


def score_texts(
    model: Blip, tokenizer: Tokenizer, images: list[np.ndarray], texts: list[list[str]], *, max_tokens: int, precision: str = "fp32"
) -> PairScores:
    """ITM and ITC of texts[i] against images[i]; [ENC] stands at position 0, the trained score."""
    encoded = [[tokenizer.encode(t, max_tokens=max_tokens) for t in row] for row in texts]
    return score_encoded(model, images, encoded, precision=precision)


@torch.inference_mode()
def score_encoded(model: Blip, images: list[np.ndarray], texts: list[list[list[int]]], *, precision: str) -> PairScores:
    """The same of texts that are [CLS] ids [SEP]."""
    most, special = max(map(len, texts)), model.special
    empty = [special.cls, special.sep]
    padded = [t + [empty] * (most - len(t)) for t in texts]  # equal numbers, so that each image's keys and values serve its texts at once
    with autocast(precision):
        tokens = model.image_tokens(load_pixels(images, model.cfg.vision.image_size))
        ids, mask = (t.to(device()) for t in pad([t for row in padded for t in row], special.pad))
        logits = model.match_logits(ids, mask, model.keys_values(tokens))
        features = model.text_features(ids, mask).unflatten(0, (len(images), most))
        itc = torch.einsum("ie,ike->ik", model.image_features(tokens), features)
    real = np.concatenate([np.arange(most) < len(t) for t in texts])
    difference = (logits[:, 1] - logits[:, 0]).double().cpu().numpy()
    return PairScores(difference[real], itc.flatten().double().cpu().numpy()[real])


@dataclass(frozen=True)
class Calibration:
    """P(match) from both scores, by logistic regression on pairs of known truth, either truth weighing the same.

    Planted pairs are like texts of the web. That a synthetic text deserves less trust at the same scores only labels tell.
    """

    itm_logit: float
    itc: float
    bias: float
    synthetic: float = 0.0  # of synthetic texts, on top of the bias

    @classmethod
    def fit(
        cls, scores: PairScores, truth: np.ndarray, *, synthetic: np.ndarray | None = None, weight: np.ndarray | None = None
    ) -> "Calibration":
        """`synthetic`: which texts are, default none; `weight`: of the pairs of a truth among each other, default the same for all."""
        from sklearn.linear_model import LogisticRegression

        origin = np.zeros(len(truth)) if synthetic is None else synthetic
        features = np.stack([scores.itm_logit, scores.itc, origin], axis=1)
        scale = features.std(axis=0) + 1e-9
        regression = LogisticRegression().fit(features / scale, truth, sample_weight=_balanced(truth, weight))
        return cls(*map(float, (*(regression.coef_[0] / scale)[:2], regression.intercept_[0], regression.coef_[0][2] / scale[2])))

    def match(self, scores: PairScores, *, synthetic: np.ndarray | bool = False) -> np.ndarray:
        offset = self.bias + self.synthetic * np.asarray(synthetic)
        return 1 / (1 + np.exp(-(self.itm_logit * scores.itm_logit + self.itc * scores.itc + offset)))

    @classmethod
    def load(cls, folder: Path) -> "Calibration":
        """Of a filter's folder."""
        path = folder / "calibration.json"
        if not path.exists():
            raise ValueError(f"{path}: missing, so {folder} is no calibrated filter; run tune_filter")
        return cls(**json.loads(path.read_text())["weights"])

    def save(self, folder: Path, **facts) -> None:
        write_json({"weights": vars(self), **facts}, folder / "calibration.json")


def _balanced(truth: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    """Weights of which either truth has half, and that add up to the number of pairs."""
    weight = np.ones(len(truth)) if weight is None else weight
    return weight * np.where(truth, len(truth) / 2 / weight[truth].sum(), len(truth) / 2 / weight[~truth].sum())


def threshold_for_precision(match: np.ndarray, truth: np.ndarray, target: float) -> float | None:
    """The lowest threshold at which the share of true pairs among those kept, truths weighing equally, reaches the target."""
    order = np.argsort(-match, kind="stable")
    true_rate = np.cumsum(truth[order]) / max(1, truth.sum())
    false_rate = np.cumsum(~truth[order]) / max(1, (~truth).sum())
    reached = np.flatnonzero(true_rate / np.maximum(true_rate + false_rate, 1e-12) >= target)
    return float(match[order][reached[-1]]) if len(reached) and math.isfinite(target) else None


def set_threads(threads: int) -> None:
    """CPU threads of this process; 0 leaves the library's choice."""
    if threads:
        torch.set_num_threads(threads)


def score_table(
    model: Blip, tokenizer: Tokenizer, table: pa.Table, images: ShardImages, *, max_tokens: int, precision: str, batch_size: int
) -> PairScores:
    """Scores of all rows of a table with the columns shard, key and text; each image is encoded once."""
    groups: dict[tuple[str, str], list[int]] = {}
    for row, image in enumerate(zip(table["shard"].to_pylist(), table["key"].to_pylist(), strict=True)):
        groups.setdefault(image, []).append(row)
    texts = [tokenizer.encode(t, max_tokens=max_tokens) for t in table["text"].to_pylist()]
    itm_logit, itc = np.empty(table.num_rows), np.empty(table.num_rows)
    # images with equally many texts and texts of one length go together, which keeps the padding small
    ordered = sorted(groups.items(), key=lambda item: (len(item[1]), max(len(texts[r]) for r in item[1])))
    batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    size = model.cfg.vision.image_size
    for batch, pictures in read_ahead(lambda group: read_resized(images, *group[0], size), batches):
        rows = np.concatenate([rows for _, rows in batch])
        scores = score_encoded(model, pictures, [[texts[r] for r in rows] for _, rows in batch], precision=precision)
        itm_logit[rows], itc[rows] = scores.itm_logit, scores.itc
    return PairScores(itm_logit, itc)

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
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from blip_core.captions import write_json
from blip_core.config import SamplerConfig
from blip_core.data import hash64, load_pixels, tokenize
from blip_core.distributed import device
from blip_core.images import decode_rgb
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
        keys_values = model.keys_values(model.image_tokens(load_pixels(images, model.cfg.vision.image_size).to(device())))
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


@torch.inference_mode()
def score_texts(
    model: Blip, tokenizer: Tokenizer, images: list[np.ndarray], texts: list[list[str]], *, max_tokens: int, precision: str = "fp32"
) -> PairScores:
    """ITM and ITC of texts[i] against images[i]; [ENC] stands at position 0, the trained score."""
    most = max(map(len, texts))
    padded = [t + [""] * (most - len(t)) for t in texts]  # equal numbers, so that each image's keys and values serve its texts at once
    with autocast(precision):
        tokens = model.image_tokens(load_pixels(images, model.cfg.vision.image_size).to(device()))
        ids, mask = (t.to(device()) for t in tokenize(tokenizer, [t for row in padded for t in row], max_tokens=max_tokens))
        logits = model.match_logits(ids, mask, model.keys_values(tokens))
        features = model.text_features(ids, mask).unflatten(0, (len(images), most))
        itc = torch.einsum("ie,ike->ik", model.image_features(tokens), features)
    real = np.concatenate([np.arange(most) < len(t) for t in texts])
    difference = (logits[:, 1] - logits[:, 0]).double().cpu().numpy()
    return PairScores(difference[real], itc.flatten().double().cpu().numpy()[real])


@dataclass(frozen=True)
class Calibration:
    """P(match) from both scores, by logistic regression on pairs of known truth, either truth weighing the same."""

    itm_logit: float
    itc: float
    bias: float

    @classmethod
    def fit(cls, scores: PairScores, truth: np.ndarray) -> "Calibration":
        features = np.stack([scores.itm_logit, scores.itc], axis=1)
        scale = features.std(axis=0) + 1e-9
        regression = LogisticRegression(class_weight="balanced").fit(features / scale, truth)
        itm_logit, itc = regression.coef_[0] / scale
        return cls(float(itm_logit), float(itc), float(regression.intercept_[0]))

    def match(self, scores: PairScores) -> np.ndarray:
        return 1 / (1 + np.exp(-(self.itm_logit * scores.itm_logit + self.itc * scores.itc + self.bias)))

    @classmethod
    def load(cls, folder: Path) -> "Calibration":
        """Of a filter's folder."""
        path = folder / "calibration.json"
        if not path.exists():
            raise ValueError(f"{path}: missing, so {folder} is no calibrated filter; run tune_filter")
        return cls(**json.loads(path.read_text())["weights"])

    def save(self, folder: Path, **facts) -> None:
        write_json({"weights": vars(self), **facts}, folder / "calibration.json")


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
    texts = table["text"].to_pylist()
    itm_logit, itc = np.empty(table.num_rows), np.empty(table.num_rows)
    # images with equally many texts go together, which keeps the padding small
    ordered = sorted(groups.items(), key=lambda item: len(item[1]))
    for start in range(0, len(ordered), batch_size):
        batch = ordered[start : start + batch_size]
        rows = np.concatenate([rows for _, rows in batch])
        pictures = [decode_rgb(images.bytes(shard, key)) for (shard, key), _ in batch]
        scores = score_texts(
            model, tokenizer, pictures, [[texts[r] for r in rows] for _, rows in batch], max_tokens=max_tokens, precision=precision
        )
        itm_logit[rows], itc[rows] = scores.itm_logit, scores.itc
    return PairScores(itm_logit, itc)

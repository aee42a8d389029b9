"""Retrieval and captioning on the held-out test images, with bootstrap intervals over images.

Retrieval: ITC ranks all, then ITM ranks the k best anew, by its log-odds plus the ITC cosine (the public BLIP adds the two).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from blip_core import bootstrap
from blip_core.capfilt import autocast, caption_images, score_table, set_threads
from blip_core.captions import write_json, write_table
from blip_core.checkpoint import load_model
from blip_core.config import EvaluateConfig
from blip_core.controls import Picture, heldout_pictures
from blip_core.data import load_pixels, tokenize
from blip_core.distributed import device
from blip_core.images import decode_rgb
from blip_core.metrics import RECALLS, bleu, caption_scores, image_ranks, text_ranks
from blip_core.model.blip import Blip
from blip_core.progress import Progress
from blip_core.shards import ShardImages
from blip_core.tokenizer import Tokenizer

OUTRANKED = -1000.0  # added to the ITC of pairs that ITM does not rank anew: behind all that it does, in ITC's order


@dataclass(frozen=True)
class Subject:
    """A model and what it is evaluated on. Text t belongs to item owner[t]."""

    model: Blip
    tokenizer: Tokenizer
    items: list[Picture]
    images: ShardImages
    prompt: str
    max_tokens: int
    cfg: EvaluateConfig

    @property
    def texts(self) -> list[str]:
        return [t for item in self.items for t in item.texts]

    @property
    def owner(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.items)), [len(item.texts) for item in self.items])

    def batches(self):
        """Items and their decoded images."""
        for start in range(0, len(self.items), self.cfg.batch_size):
            part = self.items[start : start + self.cfg.batch_size]
            yield part, [decode_rgb(self.images.bytes(item.shard, item.key)) for item in part]


def evaluate(model: Path, heldout: Path, shards: Path, out: Path, out_metrics: Path, *, cfg: EvaluateConfig, seed: int) -> None:
    """Writes metrics.json, items.parquet (the value of each item, for paired tests) and captions.parquet to `out`."""
    set_threads(cfg.threads)
    network, tokenizer = load_model(model)
    facts = json.loads((model / "config.json").read_text())
    items = heldout_pictures(heldout, "test")
    subject = Subject(network.to(device()), tokenizer, items, ShardImages(shards), facts["prompt"], facts["max_tokens"], cfg)
    progress = Progress(f"evaluate {out.name}", 3)
    itc = itc_scores(subject)
    ranks = {"": ranks_both_ways(itc, subject.owner)}
    progress.update(1)
    ranks["itm_"] = ranks_both_ways(rerank(subject, itc), subject.owner)
    progress.update(2)
    captions = write_captions(subject, seed)
    progress.update(3)
    progress.close()
    references = {item.key: item.texts for item in items}
    scores = caption_scores(references, captions)
    rows = [row for prefix, both in ranks.items() for row in retrieval_rows(subject, prefix, *both)]
    for metric in ("cider", "rouge_l"):
        rows += [(metric, key, key, float(v)) for key, v in zip(scores.keys, scores.per_image[metric], strict=True)]
    metrics = intervals(rows, scores.bleu_counts, cfg, seed)
    write_items(rows, captions, references, out)
    write_json(metrics, out / "metrics.json")
    write_json(metrics, out_metrics)


@torch.inference_mode()
def itc_scores(subject: Subject) -> np.ndarray:
    """Cosine of every image with every text: items x texts, fp32."""
    model, texts, size = subject.model, subject.texts, subject.model.cfg.vision.image_size
    with autocast(subject.cfg.precision):
        images = [
            model.image_features(model.image_tokens(load_pixels(pictures, size).to(device()))).cpu() for _, pictures in subject.batches()
        ]
        features = []
        for start in range(0, len(texts), subject.cfg.batch_size):
            ids, mask = tokenize(subject.tokenizer, texts[start : start + subject.cfg.batch_size], max_tokens=subject.max_tokens)
            features.append(model.text_features(ids.to(device()), mask.to(device())).cpu())
    return (torch.cat(images) @ torch.cat(features).T).numpy()


def rerank(subject: Subject, itc: np.ndarray) -> np.ndarray:
    """Scores of both directions in two matrices, items x texts: ITM orders each image's k best texts and each text's k best images.

    Every pair that either direction needs is scored once, and each image is encoded once.
    """
    k_texts, k_images = min(subject.cfg.rerank, itc.shape[1]), min(subject.cfg.rerank, itc.shape[0])
    by_image = np.argpartition(-itc, k_texts - 1, axis=1)[:, :k_texts]
    by_text = np.argpartition(-itc, k_images - 1, axis=0)[:k_images]
    chosen = np.zeros((2, *itc.shape), dtype=bool)
    np.put_along_axis(chosen[0], by_image, True, axis=1)
    np.put_along_axis(chosen[1], by_text, True, axis=0)
    image, text = np.nonzero(chosen.any(axis=0))
    texts, items = subject.texts, subject.items
    pairs = pa.table({"shard": [items[i].shard for i in image], "key": [items[i].key for i in image], "text": [texts[t] for t in text]})
    cfg = subject.cfg
    scores = score_table(
        subject.model,
        subject.tokenizer,
        pairs,
        subject.images,
        max_tokens=subject.max_tokens,
        precision=cfg.precision,
        batch_size=cfg.batch_size,
    )
    anew = np.zeros_like(itc)
    anew[image, text] = scores.itm_logit + scores.itc
    return np.where(chosen, anew, itc + OUTRANKED)


def ranks_both_ways(scores: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of image to text and of text to image, from one matrix or from one for each direction."""
    to_text, to_image = scores if scores.ndim == 3 else (scores, scores)
    return text_ranks(to_text, owner), image_ranks(to_image, owner)


def retrieval_rows(subject: Subject, prefix: str, to_text: np.ndarray, to_image: np.ndarray) -> list[tuple[str, str, str, float]]:
    """Hits within 1, 5 and 10 as rows (metric, item, image, value)."""
    keys = [item.key for item in subject.items]
    names = [f"{item.key}#{n}" for item in subject.items for n in range(len(item.texts))]
    rows = []
    for k in RECALLS:
        rows += [(f"{prefix}tr_r{k}", key, key, float(rank < k)) for key, rank in zip(keys, to_text, strict=True)]
        rows += [(f"{prefix}ir_r{k}", name, keys[i], float(rank < k)) for name, i, rank in zip(names, subject.owner, to_image, strict=True)]
    return rows


def write_captions(subject: Subject, seed: int) -> dict[str, str]:
    """A caption of each item, by key."""
    captions = {}
    for items, images in subject.batches():
        keys = [item.key for item in items]
        texts = caption_images(
            subject.model,
            subject.tokenizer,
            images,
            keys,
            subject.cfg.sampler,
            seed=seed,
            prompt=subject.prompt,
            precision=subject.cfg.precision,
        )
        captions |= {key: candidates[0] for key, candidates in zip(keys, texts, strict=True)}
    return captions


def intervals(rows: list[tuple[str, str, str, float]], bleu_counts: np.ndarray, cfg: EvaluateConfig, seed: int) -> dict[str, float]:
    """Each metric with the bounds of its interval: m, m_low, m_high."""
    options = {"resamples": cfg.bootstrap, "confidence": cfg.confidence, "seed": seed}
    by_metric: dict[str, tuple[list[float], list[str]]] = {}
    for metric, _, image, value in rows:
        values, images = by_metric.setdefault(metric, ([], []))
        values.append(value)
        images.append(image)
    found = {m: bootstrap.interval(bootstrap.sums_by_image(np.array(v), i), **options) for m, (v, i) in by_metric.items()}
    found["bleu4"] = bootstrap.interval(bleu_counts, lambda sums: bleu(sums)[..., 3], **options)
    return {name: value for m, i in found.items() for name, value in ((m, i.value), (f"{m}_low", i.low), (f"{m}_high", i.high))}


def write_items(rows: list[tuple[str, str, str, float]], captions: dict[str, str], references: dict[str, list[str]], out: Path) -> None:
    names = ("metric", "item", "image", "value")
    write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), out / "items.parquet")
    table = {"key": list(captions), "caption": list(captions.values()), "references": [references[k] for k in captions]}
    write_table(pa.table(table), out / "captions.parquet")

"""Retrieval and captioning on the held-out test images, with bootstrap intervals over images; on val too, by which `decide` decides.

Retrieval: ITC ranks all, then ITM ranks the k best anew (blip_core/evaluation/retrieval.py). Under torchrun each process takes its
part of the work.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from blip_core.capfilt.med import caption_images, set_threads
from blip_core.compute.distributed import device, every, on_every_process, rank
from blip_core.compute.precision import resolved
from blip_core.config.evaluation import EvaluateConfig
from blip_core.evaluation import bootstrap
from blip_core.evaluation.alarms import alarms, caption_facts, chance_levels
from blip_core.evaluation.metrics import RECALLS, CaptionScores, Scores, bleu, caption_scores, image_ranks, text_ranks
from blip_core.evaluation.retrieval import Subject, encode, rerank
from blip_core.files.content import write_json
from blip_core.model.inference import for_inference
from blip_core.runtime.progress import Progress
from blip_core.tables.captions import VAL, write_table
from blip_core.tables.heldout import heldout_pictures, heldout_tables
from blip_core.tables.shards import ShardImages
from blip_core.tables.slices import FEWEST, Columns, keys_of, require_values
from blip_core.weights.models import load_any

log = logging.getLogger(__name__)


@on_every_process
def evaluate(
    model: Path,
    heldout: Path,
    shards: Path,
    out: Path,
    out_metrics: Path,
    *,
    cfg: EvaluateConfig,
    seed: int,
    columns: Path = Path("columns"),
) -> None:
    """Writes metrics.json, items.parquet (the value of each item, for paired tests) and captions.parquet to `out`.

    `tokenization` says how captions were parted before they were scored (blip_core/evaluation/tokens.py). Beside each recall stands its
    chance level; collapsed captions and a retrieval at chance are alarms (blip_core/evaluation/alarms.py).

    The same of val, without ITM's ranks, which take most of the time, to `out`/val, where the held-out set has such pictures.
    `columns`: where the files lie by which it is told in slices as well (tables/slices.py).
    """
    set_threads(cfg.threads)
    network, tokenizer = load_any(model)
    facts = json.loads((model / "config.json").read_text())
    for_inference(network.to(device()), resolved(cfg.precision))
    images, splits = ShardImages(shards), {split: heldout_pictures(heldout, split) for split in ("test", VAL)}
    subjects = {s: Subject(network, tokenizer, facts["max_tokens"], cfg, items, images, facts["prompt"]) for s, items in splits.items()}
    sliced = _slices(heldout, Columns(columns, cfg.slices))
    metrics = _measure(subjects["test"], out, sliced["test"], itm=True, seed=seed)
    if splits[VAL]:
        _measure(subjects[VAL], out / VAL, sliced[VAL], itm=False, seed=seed)
    if metrics is not None:
        write_json(metrics, out_metrics)


def _slices(heldout: Path, columns: Columns) -> dict[str, dict[str, set[str]]]:
    """By split and `[column=value]`, the keys of the pictures that have it."""
    values = {split: columns.of_pictures(heldout_tables(heldout, split)) for split in ("test", VAL)}
    for column in columns.names:
        require_values(column, (value for own in values.values() for value in own[column].values()))
    return {split: keys_of(own) for split, own in values.items()}


def _measure(subject: Subject, out: Path, sliced: Mapping[str, set[str]], *, itm: bool, seed: int) -> dict[str, Any] | None:
    """Write what was found, and return the metrics, in the first of the processes alone. `sliced`: the keys of each slice."""
    ranks, captions = _answers(subject, name=out.name, itm=itm, seed=seed)
    if rank() > 0:
        return None
    references = {item.key: item.texts for item in subject.items}
    scores = caption_scores(references, captions)
    rows = [row for prefix, both in ranks.items() for row in retrieval_rows(subject, prefix, *both)]
    for metric in ("cider", "rouge_l"):
        rows += [(metric, key, key, float(v)) for key, v in zip(scores.keys, scores.per_image[metric], strict=True)]
    metrics: dict[str, Any] = intervals(rows, scores.bleu_counts, subject.cfg, seed) | {"tokenization": scores.tokenization}
    chance = chance_levels([len(texts) for texts in references.values()])
    metrics |= {f"{prefix}{recall}_chance": level for prefix in ranks for recall, level in chance.items()}
    metrics |= caption_facts(list(captions.values()), list(references.values()))
    metrics |= by_slices(rows, scores, sliced, subject.cfg, seed)
    for name, words in alarms(metrics).items():
        metrics[f"alarm_{name}"] = 1.0
        log.warning("%s: %s", out, words)
    write_items(rows, captions, references, out)
    write_json(metrics, out / "metrics.json")
    return metrics


def _answers(subject: Subject, *, name: str, itm: bool, seed: int) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, str]]:
    """Ranks of image to text and of text to image by ITC ("") and, where it is asked for, by ITM ("itm_"), and captions by key."""
    progress = Progress(f"evaluate {name}", 2 + itm) if rank() == 0 else None
    itc = encode(subject)
    ranks = {"": _ranks(itc, itc, subject.owner)}
    if progress:
        progress.update(1)
    if itm:
        ranks["itm_"] = _ranks(*rerank(subject, itc), subject.owner)
        if progress:
            progress.update(2)
    captions = write_captions(subject, seed)
    if progress:
        progress.update(2 + itm)
        progress.close()
    return ranks, captions


def _ranks(to_text: Scores, to_image: Scores, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
    """A caption of each item, by key, in order of the items."""
    own: dict[str, str] = {}
    keys = [item.key for item in subject.items]
    for batch, pictures in subject.batches(range(len(keys))):
        texts = caption_images(
            subject.model,
            subject.tokenizer,
            pictures,
            [keys[i] for i in batch],
            subject.cfg.sampler,
            seed=seed,
            prompt=subject.prompt,
            precision=subject.cfg.precision,
        )
        own |= {keys[i]: candidates[0] for i, candidates in zip(batch, texts, strict=True)}
    captions = {key: caption for part in every(own) for key, caption in part.items()}
    return {key: captions[key] for key in keys}


def by_slices(
    rows: list[tuple[str, str, str, float]], scores: CaptionScores, sliced: Mapping[str, set[str]], cfg: EvaluateConfig, seed: int
) -> dict[str, float]:
    """m[column=value] of the images that have it, and how many they are. A text or image is still sought among all, and CIDEr weighs
    n-grams by all references, as NoCaps' evaluation does (docs/slices.md)."""
    found: dict[str, float] = {}
    for name, own in sliced.items():
        found[f"images{name}"] = len(own)
        counts = scores.bleu_counts[[key in own for key in scores.keys]]
        found |= intervals([row for row in rows if row[2] in own], counts, cfg, seed, of=name)
        if len(own) < FEWEST:
            log.warning("%s: %d images are too few for an interval", name, len(own))
    return found


def intervals(
    rows: list[tuple[str, str, str, float]], bleu_counts: np.ndarray, cfg: EvaluateConfig, seed: int, *, of: str = ""
) -> dict[str, float]:
    """Each metric with the bounds of its interval: m, m_low, m_high. `of`: a slice; one of few images has no bounds."""
    options: dict[str, Any] = {"resamples": cfg.bootstrap, "confidence": cfg.confidence, "seed": seed}
    by_metric: dict[str, tuple[list[float], list[str]]] = {}
    for metric, _, image, value in rows:
        values, images = by_metric.setdefault(metric, ([], []))
        values.append(value)
        images.append(image)
    sums: dict[str, tuple[np.ndarray, bootstrap.Statistic]] = {}
    sums |= {m: (bootstrap.sums_by_image(np.array(v), i), bootstrap.mean) for m, (v, i) in by_metric.items()}
    sums["bleu4"] = (bleu_counts, lambda counts: bleu(counts)[..., 3])
    found: dict[str, float] = {}
    for metric, (columns, statistic) in sums.items():
        name = f"{metric}{of}"
        if of and len(columns) < FEWEST:
            found[name] = float(statistic(columns.sum(axis=0)))
            continue
        i = bootstrap.interval(columns, statistic, **options)
        found |= {name: i.value, f"{name}_low": i.low, f"{name}_high": i.high}
    return found


def write_items(rows: list[tuple[str, str, str, float]], captions: dict[str, str], references: dict[str, list[str]], out: Path) -> None:
    names = ("metric", "item", "image", "value")
    write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), out / "items.parquet")
    table = {"key": list(captions), "caption": list(captions.values()), "references": [references[k] for k in captions]}
    write_table(pa.table(table), out / "captions.parquet")

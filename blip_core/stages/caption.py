"""Write synthetic captions for every image of the crawl: one caption table per shard."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from blip_core.ahead import read_ahead
from blip_core.capfilt import caption_images, set_threads
from blip_core.captions import caption_table, content_hash, read_table, require_gate, table_paths, write_table
from blip_core.checkpoint import load_model, model_hash
from blip_core.config import CaptionConfig
from blip_core.data import read_resized
from blip_core.distributed import device
from blip_core.model.blip import Blip
from blip_core.model.inference import for_inference
from blip_core.progress import Progress
from blip_core.shards import ShardImages
from blip_core.tokenizer import Tokenizer
from blip_core.work import publish, run_folder


class Crawled(NamedTuple):
    """An image of the crawl."""

    key: str  # in its shard
    image_id: str


def caption(
    captioner: Path, generation: Path, shards: Path, gate: Path, out: Path, *, round: str, cfg: CaptionConfig, seed: int, work: Path
) -> None:
    """A shard's table is a function of captioner, sampler, seed and shard. Those finished before an interruption are kept."""
    require_gate(gate, generation)
    set_threads(cfg.threads)
    identity = model_hash(captioner)
    staged = run_folder(
        work, "caption", cfg=cfg.model_dump(), seed=seed, captioner=identity, generation=content_hash(generation), round=round
    )
    model, tokenizer = load_model(captioner)
    for_inference(model.to(device()), cfg.precision)
    prompt, images = json.loads((captioner / "config.json").read_text())["prompt"], ShardImages(shards, at_once=16)
    sizes = {path: num for path in table_paths(generation) if (num := len(crawl_images(path)))}
    todo = [path for path in sizes if not (staged / path.name).exists()]
    name = f"nucleus p={cfg.sampler.p}" if cfg.sampler.name == "nucleus" else f"beam {cfg.sampler.beams}"
    shared = {"source": "synthetic", "round": round, "model": identity, "sampler": name, "seed": seed}
    done = sum(sizes.values()) - sum(sizes[path] for path in todo)
    progress = Progress("caption", sum(sizes.values()), start=done, unit="images")
    for path in todo:
        rows = []
        for batch, pictures in read_shard(images, path, size=model.cfg.vision.image_size, batch_size=cfg.batch_size):
            rows += [{**shared, **row} for row in caption_batch(model, tokenizer, batch, pictures, cfg, seed=seed, prompt=prompt)]
            done += len(batch)
            progress.update(done)
        write_table(caption_table(rows), staged / path.name)
    progress.close()
    publish(staged, out, captioner=identity, round=round)


def read_shard(images: ShardImages, path: Path, *, size: int, batch_size: int) -> Iterator[tuple[list[Crawled], list[np.ndarray]]]:
    """The images that a table names, in batches, each with its pictures of size x size pixels, which are read ahead."""
    found = crawl_images(path)
    batches = (found[start : start + batch_size] for start in range(0, len(found), batch_size))
    return read_ahead(lambda image: read_resized(images, path.stem, image.key, size), batches)


def caption_batch(
    model: Blip, tokenizer: Tokenizer, batch: list[Crawled], pictures: list[np.ndarray], cfg: CaptionConfig, *, seed: int, prompt: str
) -> list[dict]:
    """Rows of the candidates of a few images of one shard."""
    keys = [image.key for image in batch]
    texts = caption_images(
        model, tokenizer, pictures, keys, cfg.sampler, seed=seed, num_candidates=cfg.num_candidates, prompt=prompt, precision=cfg.precision
    )
    return [
        {**image._asdict(), "text": text, "candidate": i}
        for image, candidates in zip(batch, texts, strict=True)
        for i, text in enumerate(candidates)
    ]


def crawl_images(path: Path) -> list[Crawled]:
    """A table's crawled images, each once, in order."""
    table = read_table(path, ["key", "image_id", "source"])
    return list(dict.fromkeys(Crawled(r["key"], r["image_id"]) for r in table.to_pylist() if r["source"] != "human"))

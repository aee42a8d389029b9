"""Write synthetic captions for every image of the crawl: one caption table per shard."""

import json
from pathlib import Path

from blip_core.capfilt import caption_images, set_threads
from blip_core.captions import caption_table, content_hash, read_table, require_gate, table_paths, write_table
from blip_core.checkpoint import load_model, model_hash
from blip_core.config import CaptionConfig
from blip_core.distributed import device
from blip_core.images import decode_rgb
from blip_core.model.blip import Blip
from blip_core.progress import Progress
from blip_core.shards import ShardImages
from blip_core.tokenizer import Tokenizer
from blip_core.work import publish, run_folder


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
    model.to(device())
    prompt, images = json.loads((captioner / "config.json").read_text())["prompt"], ShardImages(shards)
    todo = {path: keys for path in table_paths(generation) if (keys := crawl_keys(path))}
    name = f"nucleus p={cfg.sampler.p}" if cfg.sampler.name == "nucleus" else f"beam {cfg.sampler.beams}"
    shared = {"source": "synthetic", "round": round, "model": identity, "sampler": name, "seed": seed}
    progress, done = Progress("caption", sum(map(len, todo.values())), unit="images"), 0
    for path, keys in todo.items():
        if (staged / path.name).exists():
            done += len(keys)
            continue
        rows = []
        for start in range(0, len(keys), cfg.batch_size):
            batch = keys[start : start + cfg.batch_size]
            rows += [{**shared, **row} for row in caption_batch(model, tokenizer, images, path.stem, batch, cfg, seed=seed, prompt=prompt)]
            done += len(batch)
            progress.update(done)
        write_table(caption_table(rows), staged / path.name)
    progress.close()
    publish(staged, out, captioner=identity, round=round)


def caption_batch(
    model: Blip,
    tokenizer: Tokenizer,
    images: ShardImages,
    shard: str,
    batch: list[tuple[str, str]],
    cfg: CaptionConfig,
    *,
    seed: int,
    prompt: str,
) -> list[dict]:
    """Rows of the candidates of a few images of one shard."""
    keys = [key for key, _ in batch]
    pictures = [decode_rgb(images.bytes(shard, key)) for key in keys]
    texts = caption_images(
        model, tokenizer, pictures, keys, cfg.sampler, seed=seed, num_candidates=cfg.num_candidates, prompt=prompt, precision=cfg.precision
    )
    return [
        {"key": key, "image_id": image_id, "text": text, "candidate": i}
        for (key, image_id), candidates in zip(batch, texts, strict=True)
        for i, text in enumerate(candidates)
    ]


def crawl_keys(path: Path) -> list[tuple[str, str]]:
    """Key and image_id of a table's crawled images, each once, in order."""
    table = read_table(path, ["key", "image_id", "source"])
    return list(dict.fromkeys((r["key"], r["image_id"]) for r in table.to_pylist() if r["source"] != "human"))

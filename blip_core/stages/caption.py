"""Write synthetic captions for every image of the crawl: one caption table per shard."""

import json
from pathlib import Path

from blip_core.capfilt import caption_images, device, set_threads
from blip_core.captions import caption_table, read_table, require_gate, table_paths, write_manifest, write_table
from blip_core.checkpoint import load_model, model_hash
from blip_core.config import CaptionConfig
from blip_core.images import decode_rgb
from blip_core.progress import Progress
from blip_core.shards import ShardImages


def caption(captioner: Path, generation: Path, shards: Path, gate: Path, out: Path, *, round: str, cfg: CaptionConfig, seed: int) -> None:
    """A shard's table is a function of the captioner, the seed and the shard; finished tables are kept on a rerun."""
    require_gate(gate, generation)
    set_threads(cfg.threads)
    model, tokenizer = load_model(captioner)
    model.to(device())
    facts, images = json.loads((captioner / "config.json").read_text()), ShardImages(shards)
    work = [(p, crawl_keys(p)) for p in table_paths(generation)]
    work = [(p, keys) for p, keys in work if keys]
    progress, done = Progress("caption", sum(len(keys) for _, keys in work), unit="images"), 0
    name = f"nucleus p={cfg.sampler.p}" if cfg.sampler.name == "nucleus" else f"beam {cfg.sampler.beams}"
    shared = {"source": "synthetic", "round": round, "model": model_hash(captioner), "sampler": name, "seed": seed}
    for path, keys in work:
        rows = []
        for start in range(0, len(keys), cfg.batch_size):
            batch = keys[start : start + cfg.batch_size]
            pictures = [decode_rgb(images.bytes(path.stem, key)) for key, _ in batch]
            texts = caption_images(
                model,
                tokenizer,
                pictures,
                [key for key, _ in batch],
                cfg.sampler,
                seed=seed,
                num_candidates=cfg.num_candidates,
                prompt=facts["prompt"],
                precision=cfg.precision,
            )
            rows += [
                {"key": key, "image_id": image_id, "text": text, "candidate": i, **shared}
                for (key, image_id), candidates in zip(batch, texts, strict=True)
                for i, text in enumerate(candidates)
            ]
            done += len(batch)
            progress.update(done)
        write_table(caption_table(rows), out / path.name)
    progress.close()
    write_manifest(out, captioner=shared["model"], round=round)


def crawl_keys(path: Path) -> list[tuple[str, str]]:
    """Key and image_id of a table's crawled images, each once, in order."""
    table = read_table(path, ["key", "image_id", "source"])
    return list(dict.fromkeys((r["key"], r["image_id"]) for r in table.to_pylist() if r["source"] != "human"))

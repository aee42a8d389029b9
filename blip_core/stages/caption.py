"""Write synthetic captions for every image of the crawl: one caption table per shard."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from blip_core.ahead import read_ahead
from blip_core.capfilt import Captioner, set_threads
from blip_core.captions import caption_table, content_hash, read_table, require_gate, table_paths, write_table
from blip_core.config import CaptionConfig, WriterConfig
from blip_core.plugins import Fetch, open_captioner
from blip_core.progress import Progress
from blip_core.shards import ShardImages
from blip_core.work import publish, run_folder


class Crawled(NamedTuple):
    """An image of the crawl."""

    key: str  # in its shard
    image_id: str


class Writer(NamedTuple):
    """A captioner at work; `first` is the number of its first candidate."""

    captioner: Captioner
    cfg: WriterConfig
    first: int


def caption(
    captioner: Path,
    generation: Path,
    shards: Path,
    gate: Path,
    out: Path,
    *,
    round: str,
    cfg: CaptionConfig,
    seed: int,
    work: Path,
    fetch: Fetch | None = None,
) -> None:
    """`captioner` is the round's own, which writers call tuned. A shard's table is a function of captioners, samplers, seed and shard.
    Those finished before an interruption are kept."""
    require_gate(gate, generation)
    set_threads(cfg.threads)
    writers = open_writers(cfg, captioner, fetch)
    identities = [w.captioner.identity for w in writers]
    staged = run_folder(
        work, "caption", cfg=cfg.model_dump(), seed=seed, captioners=identities, generation=content_hash(generation), round=round
    )
    images = ShardImages(shards, at_once=16)
    sizes = {path: num for path in table_paths(generation) if (num := len(crawl_images(path)))}
    todo = [path for path in sizes if not (staged / path.name).exists()]
    done = sum(sizes.values()) - sum(sizes[path] for path in todo)
    progress = Progress("caption", sum(sizes.values()) * len(writers), start=done * len(writers), unit="images")
    done *= len(writers)
    for path in todo:
        rows = []
        for writer in writers:
            shared = {"source": "synthetic", "round": round, "model": writer.captioner.identity, "sampler": writer.cfg.sampler.label}
            for batch, pictures in read_shard(images, path, writer.captioner, batch_size=cfg.batch_size):
                rows += [{**shared, "seed": seed, **row} for row in caption_batch(writer, batch, pictures, seed=seed)]
                done += len(batch)
                progress.update(done)
        write_table(caption_table(rows), staged / path.name)
    progress.close()
    publish(staged, out, captioners=identities, round=round)


def open_writers(cfg: CaptionConfig, tuned: Path, fetch: Fetch | None = None) -> list[Writer]:
    """With the candidates of one numbered behind those of the writers before it."""
    writers, first = [], 0
    for writer in cfg.writers:
        captioner = open_captioner(writer.captioner, tuned, prompt=writer.prompt, precision=cfg.precision, fetch=fetch)
        writers.append(Writer(captioner, writer, first))
        first += writer.num_candidates
    return writers


def read_shard(images: ShardImages, path: Path, captioner: Captioner, *, batch_size: int) -> Iterator[tuple[list[Crawled], list]]:
    """The images that a table names, in batches, each with its pictures as the captioner takes them, which are read ahead."""
    found = crawl_images(path)
    batches = (found[start : start + batch_size] for start in range(0, len(found), batch_size))
    return read_ahead(lambda image: captioner.read(images, path.stem, image.key), batches)


def caption_batch(writer: Writer, batch: list[Crawled], pictures: list, *, seed: int) -> list[dict]:
    """Rows of the candidates of a few images of one shard."""
    keys = [image.key for image in batch]
    numbers = {"seed": seed, "num_candidates": writer.cfg.num_candidates, "first": writer.first}
    captions = writer.captioner.captions(pictures, keys, writer.cfg.sampler, **numbers)
    return [
        {**image._asdict(), "text": written.text, "truncated": written.truncated, "candidate": writer.first + i}
        for image, candidates in zip(batch, captions, strict=True)
        for i, written in enumerate(candidates)
    ]


def crawl_images(path: Path) -> list[Crawled]:
    """A table's crawled images, each once, in order."""
    table = read_table(path, ["key", "image_id", "source"])
    return list(dict.fromkeys(Crawled(r["key"], r["image_id"]) for r in table.to_pylist() if r["source"] != "human"))

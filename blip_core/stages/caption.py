"""Write synthetic captions for every image of the crawl, and fused texts where a writer makes them: one caption table per shard."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.compute as pc

from blip_core.capfilt.answers import MOST_SENTENCES, parted
from blip_core.capfilt.chat import Terms
from blip_core.capfilt.engine import Seen, make_tables
from blip_core.capfilt.fuse import Fuser, Pair, pairs
from blip_core.capfilt.med import Captioner, set_threads
from blip_core.capfilt.pace import Maker, begin, paced
from blip_core.capfilt.plugins import Fetch, Place, describe_captioner, find_model, identify_captioner, open_captioner, open_fuser
from blip_core.compute.pixels import read_picture
from blip_core.compute.work import ANSWERS, publish, run_folder
from blip_core.config.capfilt import CaptionConfig, WriterConfig
from blip_core.tables.captions import caption_table, read_table, table_paths
from blip_core.tables.gates import require_gate
from blip_core.tables.manifest import content_hash
from blip_core.tables.shards import ShardImages


class Crawled(NamedTuple):
    """An image of the crawl."""

    key: str  # in its shard
    image_id: str


class Writer(NamedTuple):
    """A captioner at work; `first` is the number of its first candidate. Answer i has the numbers from first + i * `numbers` on.

    One that fuses has `num_candidates` answers of each number that `fuses` has."""

    captioner: Captioner
    cfg: WriterConfig
    first: int
    fuses: "Writer | None" = None

    @property
    def numbers(self) -> int:
        """That each answer has for its candidates."""
        return MOST_SENTENCES if self.cfg.sentences == "split" else 1

    @property
    def all_numbers(self) -> range:
        """That its candidates may have."""
        answers = self.cfg.num_candidates * (len(self.fuses.all_numbers) if self.fuses else 1)
        return range(self.first, self.first + answers * self.numbers)


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
    places = {w.captioner: find_model(w.captioner, captioner, fetch) for w in cfg.writers}
    identities = [identify_captioner(places[w.captioner], w.prompt) for w in cfg.writers]
    decides, source = cfg.model_dump(exclude={"engine", "ray", "endpoint"}), content_hash(generation)
    staged = run_folder(work, "caption", cfg=decides, seed=seed, captioners=identities, generation=source, round=round)
    sizes = {path.name: num * len(cfg.writers) for path in table_paths(generation) if (num := num_crawled(path))}
    terms = Terms(cfg.endpoint, work / ANSWERS, staged.name, cfg.workers)
    task = CaptionTask(generation, shards, captioner, places, round, cfg, seed, terms)
    make_tables(task, sizes, staged, cfg=cfg, name="caption", unit="images")
    words = [describe_captioner(w.captioner, places[w.captioner], w.prompt) for w in cfg.writers]
    publish(staged, out, captioners=identities, makers=dict(zip(identities, words, strict=True)), round=round)


@dataclass(frozen=True)
class CaptionTask:
    """What the engine has its workers do; `places` says where the models lie."""

    generation: Path
    shards: Path
    captioner: Path
    places: dict[str, Place]
    round: str
    cfg: CaptionConfig
    seed: int
    terms: Terms

    def open(self) -> Maker:
        set_threads(self.cfg.threads)
        writers = open_writers(self.cfg, self.captioner, self.places.__getitem__)
        models = [w.captioner for w in writers]
        begin(models, self.terms)
        return Maker(partial(self._captions, writers, ShardImages(self.shards, at_once=16)), models)

    def _captions(self, writers: list[Writer], images: ShardImages, name: str, seen: Seen) -> pa.Table:
        """All candidates of the images that a table names."""
        rows: list[dict[str, Any]] = []
        for writer in writers:
            shared = {"round": self.round, "model": writer.captioner.identity, "sampler": writer.cfg.label, "seed": self.seed}
            if writer.fuses:
                rows += [{"source": "fused", **shared, **row} for row in self._fused(writer, rows, name)]
                seen(num_crawled(self.generation / name))
                continue
            for batch, made in self._written(writer, images, name):
                rows += [{"source": "synthetic", **shared, **row} for row in made]
                seen(len(batch))
        return caption_table(rows)

    def _written(self, writer: Writer, images: ShardImages, name: str) -> Iterator[tuple[list[Crawled], list[dict[str, Any]]]]:
        """Some of the images that a table names at a time, with the rows of their candidates."""

        def prepare(image: Crawled) -> Any:
            return writer.captioner.prepare(read_picture(images, Path(name).stem, image.key))

        def write(batch: list[Crawled], pictures: list[Any]) -> list[dict[str, Any]]:
            return caption_batch(writer, batch, pictures, seed=self.seed)

        found = crawl_images(self.generation / name)
        return paced(writer.captioner, prepare, write, found, batch_size=self.cfg.batch_size, table=name)

    def _fused(self, writer: Writer, rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
        """Rows of the texts that are made of the captions among `rows` and a table's web texts."""
        assert writer.fuses
        fuser, parents = cast(Fuser, writer.captioner), writer.fuses.all_numbers

        def write(batch: list[Pair], prepared: list[Any]) -> list[dict[str, Any]]:
            return fuse_batch(writer, batch, prepared, seed=self.seed)

        found = pairs(read_table(self.generation / name), [row for row in rows if row["candidate"] in parents])
        batches = paced(fuser, lambda p: fuser.prepare_pair(p.web, p.caption), write, found, batch_size=self.cfg.batch_size, table=name)
        made = [row for _, own in batches for row in own]
        return sorted(made, key=lambda row: (row["key"], row["candidate"]))


def open_writers(cfg: CaptionConfig, tuned: Path, fetch: Fetch | None = None) -> list[Writer]:
    """With the candidates of one numbered behind those of the writers before it."""
    writers: list[Writer] = []
    for writer in cfg.writers:
        opener = open_captioner if writer.fuses is None else open_fuser
        captioner = opener(writer.captioner, tuned, prompt=writer.prompt, precision=cfg.precision, fetch=fetch)
        first = writers[-1].all_numbers.stop if writers else 0
        writers.append(Writer(captioner, writer, first, None if writer.fuses is None else writers[writer.fuses]))
    return writers


def caption_batch(writer: Writer, batch: list[Crawled], pictures: list[Any], *, seed: int) -> list[dict[str, Any]]:
    """Rows of the candidates of a few images of one shard."""
    return _written_rows(writer, [image._asdict() for image in batch], pictures, seed=seed, done=0)


def fuse_batch(writer: Writer, batch: list[Pair], prepared: list[Any], *, seed: int) -> list[dict[str, Any]]:
    """Likewise of a few pairs; each of a picture's captions has answers with numbers of their own."""
    assert writer.fuses
    rows = []
    for parent in sorted({pair.fused_synthetic for pair in batch}):
        own = [i for i, pair in enumerate(batch) if pair.fused_synthetic == parent]
        about = [{name: value for name, value in batch[i]._asdict().items() if name not in ("web", "caption")} for i in own]
        done = (parent - writer.fuses.first) * writer.cfg.num_candidates
        rows += _written_rows(writer, about, [prepared[i] for i in own], seed=seed, done=done)
    return rows


def _written_rows(writer: Writer, about: list[dict[str, Any]], prepared: list[Any], *, seed: int, done: int) -> list[dict[str, Any]]:
    """Rows of the answers from number `done` on; `about` has what stands in each row of an image."""
    keys = [row["key"] for row in about]
    numbers = {"seed": seed, "num_candidates": writer.cfg.num_candidates, "first": writer.first + done}
    captions = writer.captioner.captions(prepared, keys, writer.cfg.sampler, **numbers)
    return [
        {**row, "text": written.text, "truncated": written.truncated, "candidate": writer.first + i * writer.numbers + part}
        for row, answers in zip(about, captions, strict=True)
        for i, answer in enumerate(answers, start=done)
        for part, written in enumerate(parted(answer, writer.cfg.sentences))
    ]


def crawl_images(path: Path) -> list[Crawled]:
    """A table's crawled images, each once, in order."""
    table = read_table(path, ["key", "image_id", "source"])
    return list(dict.fromkeys(Crawled(r["key"], r["image_id"]) for r in table.to_pylist() if r["source"] != "human"))


def num_crawled(path: Path) -> int:
    """Images that `crawl_images` finds, without making them all."""
    table = read_table(path, ["key", "source"])
    return pc.count_distinct(table.filter(pc.not_equal(table["source"], "human"))["key"]).as_py()

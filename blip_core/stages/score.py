"""Score web texts, synthetic captions and planted controls with the filters: slow, writes numbers. `calibrate` says what they mean
and `assemble` chooses by them."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blip_core.capfilt.chat import Terms
from blip_core.capfilt.controls import plant
from blip_core.capfilt.engine import Seen, make_tables
from blip_core.capfilt.med import Filter, set_threads
from blip_core.capfilt.pace import Maker, begin
from blip_core.capfilt.pair_scores import PairScores, set_opinions
from blip_core.capfilt.plugins import Fetch, Place, describe_filter, find_model, identify_filter, open_filter
from blip_core.capfilt.scoring import score_table
from blip_core.compute.work import ANSWERS, publish, run_folder
from blip_core.config.capfilt import ScoreConfig
from blip_core.files.content import hash64
from blip_core.tables.captions import CONTROLS, SCHEMA, read_table, table_paths
from blip_core.tables.heldout import heldout_halves
from blip_core.tables.manifest import content_hash, read_makers
from blip_core.tables.shards import ShardImages
from blip_core.texts.screens import screened


def score(
    filter: Path,
    generation: Path,
    captions: Path,
    shards: Path,
    heldout: Path,
    out: Path,
    *,
    cfg: ScoreConfig,
    seed: int,
    work: Path,
    fetch: Fetch | None = None,
) -> None:
    """One table per shard with all its web texts and synthetic captions, and controls.parquet with the planted pairs.

    `filter` is the round's own, which `cfg.filters` calls tuned. Tables finished before an interruption are kept.
    """
    places = {name: find_model(name, filter, fetch) for name in cfg.filters}
    identities = [identify_filter(places[name], cfg.question) for name in cfg.filters]
    inputs = [content_hash(folder) for folder in (generation, captions, heldout)]
    decides = cfg.model_dump(exclude={"engine", "ray", "endpoint"})
    staged = run_folder(work, "score", cfg=decides, seed=seed, filters=identities, inputs=inputs)
    terms = Terms(cfg.endpoint, work / ANSWERS, staged.name, cfg.workers)
    task = ScoreTask(generation, captions, shards, heldout, filter, places, cfg, seed, terms)
    sizes = {path.name: num_candidates(generation / path.name, path) for path in table_paths(captions)}
    sizes[CONTROLS] = task.controls().num_rows
    make_tables(task, sizes, staged, cfg=cfg, name="score", unit="texts")
    words = [describe_filter(name, places[name], cfg.question) for name in cfg.filters]
    publish(staged, out, filters=identities, makers=read_makers(captions) | dict(zip(identities, words, strict=True)))


@dataclass(frozen=True)
class ScoreTask:
    """What the engine has its workers do; `places` says where the models lie."""

    generation: Path
    captions: Path
    shards: Path
    heldout: Path
    filter: Path
    places: dict[str, Place]
    cfg: ScoreConfig
    seed: int
    terms: Terms

    def open(self) -> Maker:
        set_threads(self.cfg.threads)
        fetch = self.places.__getitem__
        filters = [
            open_filter(name, self.filter, question=self.cfg.question, precision=self.cfg.precision, fetch=fetch)
            for name in self.cfg.filters
        ]
        begin(filters, self.terms)
        return Maker(partial(self._scored, filters, ShardImages(self.shards, at_once=16)), filters)

    def _scored(self, filters: list[Filter], images: ShardImages, name: str, seen: Seen) -> pa.Table:
        # a table is read when its turn comes: all of them together may be larger than the memory
        table = self.controls() if name == CONTROLS else candidates(self.generation / name, self.captions / name)
        scored = scored_table(table, filters, images, batch_size=self.cfg.batch_size, name=name)
        return scored if name == CONTROLS else scored.drop_columns(["shard"])

    def controls(self) -> pa.Table:
        pictures, per_image = heldout_halves(self.heldout)[1], self.cfg.controls_per_image
        crawl = crawl_texts(self.generation, count=per_image * len(pictures), seed=self.seed)
        return plant(pictures, per_image=per_image, seed=self.seed, crawl=crawl)


def scored_table(table: pa.Table, filters: list[Filter], images: ShardImages, *, batch_size: int, name: str = "") -> pa.Table:
    """The table with its score columns filled, but for `match`, and no decision yet."""
    scores = [score_table(f, table, images, batch_size=batch_size, name=name) for f in filters]
    identities = [f.identity for f in filters]
    columns = {**_columns(scores[0], identities[0]), "reason": pa.array([""] * table.num_rows, pa.string())}
    for name, values in columns.items():
        table = table.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), values)
    empty = pa.nulls(table.num_rows, pa.float64())
    further = [pa.table({**_columns(s, i), "match": empty}) for s, i in zip(scores[1:], identities[1:], strict=True)]
    return set_opinions(table, further)


def _columns(scores: PairScores, identity: str) -> dict[str, pa.Array]:
    numbers = {name: pa.array(values, pa.float64(), from_pandas=True) for name, values in (("itm", scores.itm), ("itc", scores.itc))}
    return {"filter": pa.array([identity] * len(scores.itc), pa.string()), **numbers}


def crawl_texts(generation: Path, *, count: int, seed: int) -> list[str]:
    """So many of the web texts that no screen took, drawn at random, in random order. One table is in memory at a time."""
    drawn = pa.table({"text": pa.array([], pa.string()), "draw": pa.array([], pa.float64())})
    for path in table_paths(generation):
        table = read_table(path, ["source", "text", "reason", "filter"])
        texts = _unscreened_web(table)["text"]
        draws = np.random.default_rng([seed, hash64(path.stem) & 0xFFFFFFFF]).random(len(texts))
        drawn = pa.concat_tables([drawn, pa.table({"text": texts, "draw": draws})]).sort_by("draw").slice(0, count)
    return drawn["text"].to_pylist()


def candidates(generation: Path, captions: Path) -> pa.Table:
    """Web texts, without those that a screen dropped, and synthetic captions of a shard, those of an image together, with the column
    `shard`."""
    web = _unscreened_web(read_table(generation, SCHEMA.names))
    table = pa.concat_tables([web, read_table(captions, SCHEMA.names)])
    table = table.sort_by([("key", "ascending"), ("source", "descending"), ("candidate", "ascending")])
    return table.append_column("shard", pa.array([captions.stem] * table.num_rows, pa.string()))


def num_candidates(generation: Path, captions: Path) -> int:
    """Rows of their `candidates`, by a look at what decides about them alone."""
    return _unscreened_web(read_table(generation, ["source", "reason", "filter"])).num_rows + read_table(captions, ["key"]).num_rows


def _unscreened_web(table: pa.Table) -> pa.Table:
    return table.filter(pc.and_not(pc.equal(table["source"], "web"), screened(table)))

"""Score web texts, synthetic captions and planted controls with the filters: slow, writes numbers. `calibrate` says what they mean
and `assemble` chooses by them."""

from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from blip_core.calibration import set_opinions
from blip_core.capfilt import Filter, score_table, set_threads
from blip_core.captions import CONTROLS, SCHEMA, content_hash, read_table, table_paths, write_table
from blip_core.config import ScoreConfig
from blip_core.controls import heldout_halves, plant
from blip_core.pair_scores import PairScores
from blip_core.plugins import Fetch, open_filter
from blip_core.progress import Progress
from blip_core.screens import screened
from blip_core.shards import ShardImages
from blip_core.work import publish, run_folder


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
    set_threads(cfg.threads)
    filters = [open_filter(name, filter, precision=cfg.precision, fetch=fetch) for name in cfg.filters]
    identities, inputs = [f.identity for f in filters], [content_hash(f) for f in (generation, captions, heldout)]
    images = ShardImages(shards, at_once=16)
    staged = run_folder(work, "score", cfg=cfg.model_dump(), seed=seed, filters=identities, inputs=inputs)
    # a table is read when its turn comes: all of them together may be larger than the memory
    parts = {path.name: partial(candidates, generation / path.name, path) for path in table_paths(captions)}
    sizes = {path.name: num_candidates(generation / path.name, path) for path in table_paths(captions)}
    controls = plant(heldout_halves(heldout)[1], per_image=cfg.controls_per_image, seed=seed)
    parts[CONTROLS], sizes[CONTROLS] = lambda: controls, controls.num_rows
    todo = [name for name in parts if not (staged / name).exists()]
    done = sum(sizes[name] for name in parts.keys() - set(todo))
    progress = Progress("score", sum(sizes.values()), start=done, unit="texts")
    for name in todo:
        scored = scored_table(parts[name](), filters, images, batch_size=cfg.batch_size)
        write_table(scored if name == CONTROLS else scored.drop_columns(["shard"]), staged / name)
        done += scored.num_rows
        progress.update(done)
    progress.close()
    publish(staged, out, filters=identities)


def scored_table(table: pa.Table, filters: list[Filter], images: ShardImages, *, batch_size: int) -> pa.Table:
    """The table with its score columns filled, but for `match`, and no decision yet."""
    scores = [score_table(f, table, images, batch_size=batch_size) for f in filters]
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

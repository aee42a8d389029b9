"""Score web texts, synthetic captions and planted controls with the filter: slow, writes numbers. `assemble` chooses by them."""

import json
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from blip_core.capfilt import Calibration, PairScores, score_table, set_threads
from blip_core.captions import CONTROLS, SCHEMA, content_hash, read_table, table_paths, write_table
from blip_core.checkpoint import load_model, model_hash
from blip_core.config import ScoreConfig
from blip_core.controls import heldout_halves, plant
from blip_core.distributed import device
from blip_core.model.inference import for_inference
from blip_core.progress import Progress
from blip_core.screens import screened
from blip_core.shards import ShardImages
from blip_core.work import publish, run_folder


def score(
    filter: Path, generation: Path, captions: Path, shards: Path, heldout: Path, out: Path, *, cfg: ScoreConfig, seed: int, work: Path
) -> None:
    """One table per shard with all its web texts and synthetic captions, and controls.parquet with the planted pairs.

    Tables finished before an interruption are kept.
    """
    set_threads(cfg.threads)
    identity, inputs = model_hash(filter), [content_hash(f) for f in (generation, captions, heldout)]
    calibration, images = Calibration.load(filter), ShardImages(shards, at_once=16)
    staged = run_folder(work, "score", cfg=cfg.model_dump(), seed=seed, filter=identity, calibration=vars(calibration), inputs=inputs)
    model, tokenizer = load_model(filter)
    for_inference(model.to(device()), cfg.precision)
    max_tokens = json.loads((filter / "config.json").read_text())["max_tokens"]
    # a table is read when its turn comes: all of them together may be larger than the memory
    parts = {path.name: partial(candidates, generation / path.name, path) for path in table_paths(captions)}
    sizes = {path.name: num_candidates(generation / path.name, path) for path in table_paths(captions)}
    controls = plant(heldout_halves(heldout)[1], per_image=cfg.controls_per_image, seed=seed)
    parts[CONTROLS], sizes[CONTROLS] = lambda: controls, controls.num_rows
    todo = [name for name in parts if not (staged / name).exists()]
    done = sum(sizes[name] for name in parts.keys() - set(todo))
    progress = Progress("score", sum(sizes.values()), start=done, unit="texts")
    for name in todo:
        table = parts[name]()
        found = score_table(model, tokenizer, table, images, max_tokens=max_tokens, precision=cfg.precision, batch_size=cfg.batch_size)
        scored = with_scores(table, found, calibration, identity)
        write_table(scored if name == CONTROLS else scored.drop_columns(["shard"]), staged / name)
        done += table.num_rows
        progress.update(done)
    progress.close()
    publish(staged, out, filter=identity)


def candidates(generation: Path, captions: Path) -> pa.Table:
    """Web texts, without those that a screen dropped, and synthetic captions of a shard, those of an image together, with the column
    `shard`."""
    web = _unscreened_web(read_table(generation, SCHEMA.names))
    table = pa.concat_tables([web, read_table(captions, SCHEMA.names)])
    table = table.sort_by([("key", "ascending"), ("source", "descending"), ("candidate", "ascending")])
    return table.append_column("shard", pa.array([captions.stem] * table.num_rows, pa.string()))


def num_candidates(generation: Path, captions: Path) -> int:
    """Rows of their `candidates`, by a look at what decides about them alone."""
    return _unscreened_web(read_table(generation, ["source", "reason", "itm"])).num_rows + read_table(captions, ["key"]).num_rows


def _unscreened_web(table: pa.Table) -> pa.Table:
    return table.filter(pc.and_not(pc.equal(table["source"], "web"), screened(table)))


def with_scores(table: pa.Table, scores: PairScores, calibration: Calibration, identity: str) -> pa.Table:
    """The table with its score columns filled and no decision yet."""
    rows = table.num_rows
    match = calibration.match(scores, synthetic=pc.equal(table["source"], "synthetic").to_numpy())
    columns = {"itm": scores.itm, "itc": scores.itc, "match": match, "filter": [identity] * rows, "reason": [""] * rows}
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), SCHEMA.field(name), pa.array(values, SCHEMA.field(name).type))
    return table

"""Score web texts, synthetic captions and planted controls with the filter: slow, writes numbers. `assemble` chooses by them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from blip_core.capfilt import Calibration, PairScores, score_table, set_threads
from blip_core.captions import CONTROLS, SCHEMA, content_hash, read_table, table_paths, write_table
from blip_core.checkpoint import load_model, model_hash
from blip_core.config import ScoreConfig
from blip_core.controls import heldout_halves, plant
from blip_core.distributed import device
from blip_core.progress import Progress
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
    staged = run_folder(work, "score", cfg=cfg.model_dump(), seed=seed, filter=identity, inputs=inputs)
    model, tokenizer = load_model(filter)
    model.to(device())
    calibration, images = Calibration.load(filter), ShardImages(shards)
    max_tokens = json.loads((filter / "config.json").read_text())["max_tokens"]
    parts = {path.name: candidates(generation / path.name, path) for path in table_paths(captions)}
    parts[CONTROLS] = plant(heldout_halves(heldout)[1], per_image=cfg.controls_per_image, seed=seed)
    progress, done = Progress("score", sum(t.num_rows for t in parts.values()), unit="texts"), 0
    for name, table in parts.items():
        if not (staged / name).exists():
            found = score_table(model, tokenizer, table, images, max_tokens=max_tokens, precision=cfg.precision, batch_size=cfg.batch_size)
            scored = with_scores(table, found, calibration, identity)
            write_table(scored if name == CONTROLS else scored.drop_columns(["shard"]), staged / name)
        done += table.num_rows
        progress.update(done)
    progress.close()
    publish(staged, out, filter=identity)


def candidates(generation: Path, captions: Path) -> pa.Table:
    """Web texts and synthetic captions of a shard, those of an image together, with the column `shard`."""
    base = read_table(generation, SCHEMA.names)
    web = base.filter(pc.equal(base["source"], "web"))
    table = pa.concat_tables([web, read_table(captions, SCHEMA.names)])
    table = table.sort_by([("key", "ascending"), ("source", "descending"), ("candidate", "ascending")])
    return table.append_column("shard", pa.array([captions.stem] * table.num_rows, pa.string()))


def with_scores(table: pa.Table, scores: PairScores, calibration: Calibration, identity: str) -> pa.Table:
    """The table with its score columns filled and no decision yet."""
    rows = table.num_rows
    columns = {"itm": scores.itm, "itc": scores.itc, "match": calibration.match(scores), "filter": [identity] * rows, "reason": [""] * rows}
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), SCHEMA.field(name), pa.array(values, SCHEMA.field(name).type))
    return table

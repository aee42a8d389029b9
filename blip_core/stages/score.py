"""Score web texts, synthetic captions and planted controls with the filter: slow, writes numbers. `assemble` chooses by them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from blip_core.capfilt import Calibration, device, score_table, set_threads
from blip_core.captions import SCHEMA, read_table, table_paths, write_manifest, write_table
from blip_core.checkpoint import load_model, model_hash
from blip_core.config import ScoreConfig
from blip_core.controls import heldout_halves, plant
from blip_core.progress import Progress
from blip_core.shards import ShardImages


def score(filter: Path, generation: Path, captions: Path, shards: Path, heldout: Path, out: Path, *, cfg: ScoreConfig, seed: int) -> None:
    """One table per shard with all its web texts and synthetic captions, and controls.parquet with the planted pairs."""
    set_threads(cfg.threads)
    model, tokenizer = load_model(filter)
    model.to(device())
    calibration, identity = Calibration.load(filter), model_hash(filter)
    max_tokens = json.loads((filter / "config.json").read_text())["max_tokens"]
    images, parts = ShardImages(shards), {}
    for path in table_paths(captions):
        base = read_table(generation / path.name, SCHEMA.names)
        web = base.filter(pc.equal(base["source"], "web"))
        table = pa.concat_tables([web, read_table(path, SCHEMA.names)]).sort_by([("key", "ascending"), ("source", "descending"), ("candidate", "ascending")])
        parts[path.name] = table.append_column("shard", pa.array([path.stem] * table.num_rows))
    parts["controls.parquet"] = plant(heldout_halves(heldout)[1], per_image=cfg.controls_per_image, seed=seed)
    progress, done = Progress("score", sum(t.num_rows for t in parts.values()), unit="texts"), 0
    for name, table in parts.items():
        scores = score_table(model, tokenizer, table, images, max_tokens=max_tokens, precision=cfg.precision, batch_size=cfg.batch_size)
        found = {"itm": scores.itm, "itc": scores.itc, "match": calibration.match(scores), "filter": [identity] * table.num_rows}
        for column, values in found.items():
            table = table.set_column(table.schema.get_field_index(column), SCHEMA.field(column), pa.array(values, SCHEMA.field(column).type))
        table = table.set_column(table.schema.get_field_index("reason"), SCHEMA.field("reason"), pa.array([""] * table.num_rows))
        write_table(table if name == "controls.parquet" else table.drop_columns(["shard"]), out / name)
        done += table.num_rows
        progress.update(done)
    progress.close()
    write_manifest(out, filter=identity)


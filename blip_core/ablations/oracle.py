"""What would a captioner without faults bring? As many true captions as the real one leaves, of the sample world's own pictures.
A stage of an ablation: `python -m blip_core.ablations.oracle`."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blip_core.ablations.variant import paths_of, write_variant
from blip_core.config.params import load_params
from blip_core.sample.scene_texts import text_of_kind
from blip_core.sample.truth import Truth, load_truth
from blip_core.tables.captions import KEPT, SCHEMA, caption_table, each_table, kept
from blip_core.tables.gates import require_gate


def oracle_texts(generation: Path, gate: Path, data: Path, out: Path, out_gate: Path, shards: Path, *, seed: int) -> None:
    """`generation` with other synthetic texts: as many as it keeps, each true and worded as people do, at pictures of the crawl drawn at
    random. Human and web texts stay as they are. ValueError where `data` is no sample world, whose truth is known.
    """
    require_gate(gate, generation)
    truth = load_truth(data)
    if truth is None:
        raise ValueError(f"{data}: holds no truth.parquet; only of the sample world is it known what is true of a picture")
    tables = [t.select(SCHEMA.names) for t in each_table(generation)]
    others = (table.filter(pc.not_equal(table["source"], "synthetic")) for table in tables)
    made = (pa.concat_tables(parts) for parts in zip(others, _captions(tables, truth, seed), strict=True))
    write_variant(generation, made, out, out_gate, shards)


def _captions(tables: list[pa.Table], truth: Truth, seed: int) -> Iterator[pa.Table]:
    """Of each table. Every picture that the captioner wrote for may be drawn, whether its text was kept or not."""
    written = [table.filter(pc.equal(table["source"], "synthetic")) for table in tables]
    rng, wanted = np.random.default_rng(seed), sum(kept(table).num_rows for table in written)
    pictures = [{row["key"]: row for row in table.select(["key", "image_id", "round"]).to_pylist()} for table in written]
    places = [(i, key) for i, rows in enumerate(pictures) for key in rows if key in truth]
    drawn: list[list[str]] = [[] for _ in tables]
    for place in np.sort(rng.permutation(len(places))[:wanted]):
        drawn[places[place][0]].append(places[place][1])
    for rows, keys in zip(pictures, drawn, strict=True):
        texts = (text_of_kind(rng, truth[key].scene, "clean") for key in keys)
        yield caption_table([_row(rows[key], text) for key, text in zip(keys, texts, strict=True)])


def _row(picture: dict[str, str], text: str) -> dict[str, object]:
    return {**picture, "text": text, "source": "synthetic", "candidate": 0, "sampler": "truth", "reason": KEPT}


def main() -> None:
    args = paths_of("generation", "gate", "data", "out", "out-gate", "params")
    oracle_texts(args.generation, args.gate, args.data, args.out, args.out_gate, args.shards, seed=load_params(args.params).seed)


if __name__ == "__main__":
    main()

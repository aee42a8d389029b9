"""As many web texts as another generation keeps of the crawl, drawn at random: is it their number alone that helps (paper Table 12)?
A stage of an ablation: `python -m blip_core.ablations.equal`."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blip_core.ablations.variant import paths_of, write_variant
from blip_core.config.params import load_params
from blip_core.tables.captions import SCHEMA, WRITTEN, each_table, kept, read_table, table_paths
from blip_core.tables.gates import require_gate


def equal_texts(generation: Path, gate: Path, like: Path, out: Path, out_gate: Path, shards: Path, *, seed: int) -> None:
    """The human texts of `generation`, and of its web texts that were kept as many as `like` keeps of the crawl, web texts and written
    ones together: each as often as all of them fit, and a random part once more.

    No text is new.
    """
    require_gate(gate, generation)
    times = _times(_num_kept(generation, ["web"]), _num_kept(like, ["web", *WRITTEN]), seed)
    write_variant(generation, _tables(generation, times), out, out_gate, shards, like=like)


def _tables(generation: Path, times: np.ndarray) -> Iterator[pa.Table]:
    start = 0
    for path in table_paths(generation):
        table = read_table(path, SCHEMA.names)
        web, human = _web(table), table.filter(pc.equal(table["source"], "human"))
        own = times[start : start + web.num_rows]
        start += web.num_rows
        yield pa.concat_tables([human, _repeated(web, own)])


def _num_kept(generation: Path, sources: list[str]) -> int:
    tables = map(kept, each_table(generation, ["source", "reason"]))
    return sum(pc.sum(pc.is_in(t["source"], value_set=pa.array(sources)), min_count=0).as_py() for t in tables)


def _web(table: pa.Table) -> pa.Table:
    return kept(table.filter(pc.equal(table["source"], "web")))


def _times(num_web: int, wanted: int, seed: int) -> np.ndarray:
    """How often each web text stands in the result."""
    if not num_web:
        raise ValueError(f"no web text is kept, so {wanted} can't be drawn")
    whole, part = divmod(wanted, num_web)
    times = np.full(num_web, whole)
    times[np.random.default_rng(seed).permutation(num_web)[:part]] += 1
    return times


def _repeated(table: pa.Table, times: np.ndarray) -> pa.Table:
    """Each row so many times, numbered as candidates."""
    rows = table.take(pa.array(np.repeat(np.arange(table.num_rows), times)))
    number = np.concatenate([np.arange(t) for t in times]) if times.sum() else np.empty(0, int)
    place = SCHEMA.get_field_index("candidate")
    return rows.set_column(place, SCHEMA.field("candidate"), pc.add(rows["candidate"], pa.array(number, pa.int32())))


def main() -> None:
    args = paths_of("generation", "gate", "like", "out", "out-gate", "params")
    equal_texts(args.generation, args.gate, args.like, args.out, args.out_gate, args.shards, seed=load_params(args.params).seed)


if __name__ == "__main__":
    main()

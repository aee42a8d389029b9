"""What the noise is estimated from: the crawl's judged texts and the planted pairs, by source, with the values that tell slices."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blip_core.config.selection import Crawled
from blip_core.selection.calibration import with_match
from blip_core.selection.choice import Rule, read_whole, rejected
from blip_core.selection.noise import Judged
from blip_core.selection.outcome import judged
from blip_core.tables.captions import SCHEMA, table_paths
from blip_core.tables.counting import hashes
from blip_core.tables.slices import Columns


@dataclass(frozen=True)
class Texts:
    """`values`: by column, an entry per text."""

    judged: Judged
    values: dict[str, np.ndarray]


def crawl_texts(generation: Path, rule: Rule, columns: Columns) -> dict[Crawled, Texts]:
    """By source, the texts that the filter scored. A source without a threshold has none."""
    parts: dict[Crawled, list[Texts]] = defaultdict(list)
    for path in table_paths(generation):
        table = read_whole(path)
        table = table.append_column("shard", pa.array([path.stem] * table.num_rows, pa.string())).filter(judged(table))
        for source in rule.cfg.threshold:
            own = table.filter(pc.equal(table["source"], source))
            passed = ~rejected(own, rule=rule, where=str(path)).to_numpy(zero_copy_only=False)
            texts = Judged(own[rule.cfg.score].to_numpy(), passed, hashes(own, ["image_id"]), own["itc"].to_numpy())
            parts[source].append(Texts(texts, columns.of(own)))
    return {source: _together(own) for source, own in parts.items()}


def planted_pairs(controls: pa.Table, rule: Rule, columns: Columns, *, where: str) -> tuple[np.ndarray, Texts]:
    """The kind of each pair, and what the filter makes of it: pairs stand for web texts, so they pass by the web's threshold."""
    controls = with_match(controls, rule.calibrated, where=where)
    as_web = controls.set_column(SCHEMA.get_field_index("source"), "source", pa.array(["web"] * controls.num_rows, pa.string()))
    passed = ~rejected(as_web, rule=rule, where=where).to_numpy(zero_copy_only=False)
    kind, image = (np.array(controls[c].to_pylist(), str) for c in ("kind", "image_id"))
    return kind, Texts(Judged(controls[rule.cfg.score].to_numpy(), passed, image, controls["itc"].to_numpy()), columns.of(controls))


def _together(parts: list[Texts]) -> Texts:
    whole = {name: np.concatenate([getattr(p.judged, name) for p in parts]) for name in ("score", "passed", "image", "itc")}
    values = {name: np.concatenate([p.values[name] for p in parts]) for name in parts[0].values}
    return Texts(Judged(**whole), values)

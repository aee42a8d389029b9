"""What people said, as the calibration of a filter takes it: pairs of the crawl whose truth is known.

A label holds its text, so any filter can score it, also when its captioner is long gone. Its picture must be the very one that
was judged, and no picture that evaluates or controls: a filter must not have seen those.
"""

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from blip_core.selection.labels import Judged, judged, read_labels
from blip_core.tables.captions import WRITTEN
from blip_core.tables.shards import ShardImages, index_path, read_index

SCHEMA = pa.schema(
    [
        ("shard", pa.string()),
        ("key", pa.string()),
        ("image_id", pa.string()),
        ("text", pa.string()),
        ("truth", pa.bool_()),
        ("synthetic", pa.bool_()),
        ("weight", pa.float64()),
    ]
)
HELDOUT = ("val-", "test-")
LEFT_OUT = {
    "labels_tied": "on which people are divided evenly",
    "labels_other_picture": "at pictures that are not in the shards as they were judged, or are held out",
    "labels_too_few": "of a source with fewer right or wrong ones than calibrate.min_labels",
}

log = logging.getLogger(__name__)


def labelled_pairs(labels: Path, shards: Path, *, min_labels: int) -> tuple[pa.Table, dict[str, int]]:
    """Pairs with their truth and weight, none when there are no labels; and how many there were and why some are left out.

    A source counts with at least `min_labels` right and wrong pairs each. ValueError when there are labels and no source counts."""
    found = read_labels([labels])
    lines = [line for line in found if line.asked == "all"]
    said = judged(lines)
    clear = [j for j in said if j.right != 0.5]
    known = _known(clear, shards)
    pairs = [j for source in ("web", *WRITTEN) for j in known if j.pair.source == source and _enough(known, source, min_labels)]
    facts = {
        "labels": len(lines),
        "labels_kept_alone": len(found) - len(lines),
        "labels_used": len(pairs),
        "labels_right": sum(j.right > 0.5 for j in pairs),
        "labels_wrong": sum(j.right < 0.5 for j in pairs),
        "labels_tied": len(said) - len(clear),
        "labels_other_picture": len(clear) - len(known),
        "labels_too_few": len(known) - len(pairs),
    }
    counts = ", ".join(f"{facts[name]} texts {why}" for name, why in LEFT_OUT.items() if facts[name]) or "no text that anybody is sure of"
    if lines and not pairs:
        need = f"a source with {min_labels} right and {min_labels} wrong texts at least (calibrate.min_labels)"
        raise ValueError(f"{labels}: of {len(lines)} labels none can be used: {counts}; expected {need}; judge more, or empty the folder")
    if len(found) > len(lines):
        log.info("%s: %d labels are of sheets that asked about kept texts alone: the gate takes them", labels, len(found) - len(lines))
    if lines:
        left_out = f"; left out: {counts}" if any(facts[name] for name in LEFT_OUT) else ""
        log.info("%s: %d labels, %d texts take part in the calibration%s", labels, len(lines), len(pairs), left_out)
    columns = {name: [getattr(j.pair, name) for j in pairs] for name in ("shard", "key", "image_id", "text")}
    columns |= {"truth": [j.right > 0.5 for j in pairs], "synthetic": [j.pair.source in WRITTEN for j in pairs]}
    return pa.table(columns | {"weight": [j.weight for j in pairs]}, schema=SCHEMA), facts


def _enough(known: list[Judged], source: str, min_labels: int) -> bool:
    right = [j.right > 0.5 for j in known if j.pair.source == source]
    return min(sum(right), len(right) - sum(right)) >= min_labels


def _known(said: list[Judged], shards: Path) -> list[Judged]:
    """Those whose picture lies in its shard as it was judged, and is none of the held-out ones."""
    stems, wanted = ShardImages(shards).shards, {j.pair.shard for j in said}
    hashes = [read_index(index_path(shards, stem))["sha256"].combine_chunks() for stem in stems if stem.startswith(HELDOUT)]
    heldout = pa.chunked_array(hashes, pa.string())
    there = set()
    for stem in sorted(wanted & set(stems)):
        index = read_index(index_path(shards, stem))
        free = index.filter(pc.invert(pc.is_in(index["sha256"], value_set=heldout)))
        there |= {(stem, key, image) for key, image in zip(free["key"].to_pylist(), free["image_id"].to_pylist(), strict=True)}
    return [j for j in said if (j.pair.shard, j.pair.key, j.pair.image_id) in there]

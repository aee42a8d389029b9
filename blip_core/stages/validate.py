"""g0 and the held-out splits keep their contract, or nothing trains."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blip_core.checks.contract import COLUMNS, each_row, max_chars, row_expectations
from blip_core.checks.docs import RESULTS, Docs, write_docs
from blip_core.checks.expect import Expect, at_least, at_most, pairs, share_at_most
from blip_core.checks.expectations import broken, check, folder_faults, require
from blip_core.config.capfilt import ScoreConfig
from blip_core.config.intake import ValidateConfig
from blip_core.config.selection import GateConfig
from blip_core.files.content import write_json
from blip_core.tables.captions import KEPT, NO_TEXT, SCHEMA, SCREENS, kept, read_table, table_paths
from blip_core.tables.counting import Walk, hashes, num_distinct, repeated
from blip_core.tables.heldout import num_true_controls
from blip_core.tables.manifest import listed_hash, read_manifest
from blip_core.tables.shards import INDEX_SCHEMA, read_index

# folder / part of a table: the one source that its texts may have
SOURCES = {"generation/web": "web", "generation/train": "human", "heldout/val": "human", "heldout/test": "human"}
REMEDY = "Nothing trains on this generation. Mend the data, or the limits in section validate of params.yaml, and run the stage again."


def validate(
    generation: Path,
    heldout: Path,
    shards: Path,
    out_gate: Path,
    out_decision: Path,
    out_metrics: Path,
    out_docs: Path,
    *,
    cfg: ValidateConfig,
    gate_cfg: GateConfig,
    score_cfg: ScoreConfig,
) -> None:
    """Write the gate file of `generation` only when every check passed; ChecksFailed lists those that failed.

    Metrics and Data Docs are written either way: `out_docs`, and the index of all beside it. With the gate goes the decision that a
    round may start from this generation: there is no model before its own that it could have brought no gain over. Of the later
    generations `decide` says so.

    The held-out val must be large enough for the controls that the gate of a round will ask for: hours later it would stop there.
    """
    for path in (out_gate, out_decision, out_metrics, out_docs / RESULTS):
        path.unlink(missing_ok=True)
    faults = folder_faults(generation, heldout)
    docs = Docs(out_docs, f"Validation of {generation.name}", listed_hash(generation))
    if faults:
        results = broken(faults)
        write_docs(docs, results, answers={})
        write_json({"checks": len(faults), "checks_failed": len(faults)}, out_metrics)
    else:
        facts = _facts(generation, heldout, shards)
        facts["controls_true"] = num_true_controls(heldout, score_cfg.controls_per_image)
        texts, images = Walk(lambda: _texts(generation, heldout, shards)), pa.Table.from_pylist([facts])
        suites = {"texts": (texts, _text_expectations(generation, cfg)), "images": (images, _fact_expectations(cfg, gate_cfg))}
        results = check(suites, docs=docs)
        write_json({**facts, "checks": len(results), "checks_failed": sum(not r["passed"] for r in results)}, out_metrics)
    require(results, what=f"{generation} does not keep its contract", remedy=REMEDY, docs=out_docs)
    write_json({"passed": True, "generation": listed_hash(generation), "checks": results}, out_gate)
    write_json({"go_on": True}, out_decision)


def _texts(generation: Path, heldout: Path, shards: Path) -> Iterator[pa.Table]:
    """The texts of both folders; `place` says where they stand, `blank` is 1 for a text without a letter or digit."""
    for role, folder in (("generation", generation), ("heldout", heldout)):
        for table in each_row(table_paths(folder), COLUMNS, shards):
            blank = pc.invert(pc.match_substring_regex(table["form"], r"[\p{L}\p{N}]"))
            place = pc.binary_join_element_wise(role, _part(table["shard"]), "/")
            yield table.append_column("place", place).append_column("blank", pc.cast(blank, pa.float64()))


def _part(shard: pa.ChunkedArray) -> pa.ChunkedArray:
    """web-00000 is of the part web."""
    return pc.replace_substring_regex(shard, r"-\d+$", "")


def _text_expectations(generation: Path, cfg: ValidateConfig) -> list[Expect]:
    return [
        *row_expectations(max_chars=max_chars(generation), reasons=(KEPT, NO_TEXT, *SCREENS)),
        pairs("place", ("place", "source"), tuple(SOURCES.items()), "rows whose source is not that of their part (web, else human)"),
        share_at_most("empty_share", "blank", cfg.max_empty, "share of texts without a letter or digit", where=("has_text", "yes")),
    ]


def _fact_expectations(cfg: ValidateConfig, gate_cfg: GateConfig) -> list[Expect]:
    return [
        *[at_least(f"images_{part}", cfg.min_images, f"{part} images with a kept text") for part in ("web", "human")],
        *[at_least(f"images_{part}", cfg.min_heldout_images, f"held-out images ({part}) with a kept text") for part in ("val", "test")],
        at_least("controls_true", gate_cfg.min_controls, "true pairs that score can plant of half of val (gate.min_controls)"),
        at_most("images_without_text", 0, "images of the shards without a text"),
        at_most("keys_repeated", 0, "keys that several images have"),
        at_most("heldout_in_training", 0, "pictures (image_id) that are both held out and trained on"),
        at_most("duplicate_share_web", cfg.max_duplicate, "share of web images whose bytes occur more than once"),
    ]


@dataclass
class _Part:
    """What is counted of web, train, val or test; hashes, eight bytes each."""

    num_images: int = 0  # with a text
    ids: list[np.ndarray] = field(default_factory=list)  # image_id of each of these
    sha256: list[np.ndarray] = field(default_factory=list)  # of each image


def _facts(generation: Path, heldout: Path, shards: Path) -> dict[str, float]:
    parts = {name: _Part() for name in ("web", "train", "val", "test")}
    textless, imageless = 0, 0
    for stem, table, index in _shards(generation, heldout, shards):
        texts, images = (t.group_by(["key", "image_id"]).aggregate([]) for t in (table, index))
        both = pa.concat_tables([texts, images]).group_by(["key", "image_id"]).aggregate([]).num_rows
        textless, imageless = textless + both - texts.num_rows, imageless + both - images.num_rows
        part = parts.setdefault(stem.rsplit("-", 1)[0], _Part())
        part.num_images += pc.count_distinct(kept(table)["key"], mode="all").as_py()
        part.ids.append(hashes(texts, ["image_id"]))
        part.sha256.append(hashes(index, ["sha256"]))
    web, train, val, test = (parts[name] for name in ("web", "train", "val", "test"))
    return {
        "images_web": web.num_images,
        "images_human": train.num_images,
        "images_val": val.num_images,
        "images_test": test.num_images,
        "images_without_text": textless,
        "texts_without_image": imageless,
        "keys_repeated": _keys_repeated(shards),
        "heldout_in_training": _num_common([*web.ids, *train.ids], [*val.ids, *test.ids]),
        "heldout_copies_in_training": _num_common([*web.sha256, *train.sha256], [*val.sha256, *test.sha256]),
        "duplicate_share_web": _share_repeated(web.ids),
    }


def _keys_repeated(shards: Path) -> int:
    """Images whose key another has, but for the first of them."""
    paths = [shards / name for name in read_manifest(shards)["files"] if name.endswith(".index.parquet")]
    rows = repeated(Walk(lambda: (read_table(path, ["key"]) for path in paths)), ["key"])
    return rows.num_rows - pc.count_distinct(rows["key"]).as_py()


def _num_common(some: list[np.ndarray], others: list[np.ndarray]) -> int:
    """How many different hashes stand in both."""
    return num_distinct(some) + num_distinct(others) - num_distinct([*some, *others])


def _share_repeated(parts: list[np.ndarray]) -> float:
    """Of all hashes, those that occur more than once."""
    _, counts = np.unique(np.concatenate([*parts, np.empty(0, np.uint64)]), return_counts=True)
    return int(counts[counts > 1].sum()) / max(int(counts.sum()), 1)


def _shards(generation: Path, heldout: Path, shards: Path) -> Iterator[tuple[str, pa.Table, pa.Table]]:
    """Each shard that has texts or images: its stem, the key, image_id and reason of its texts, its index."""
    texts = {p.stem: p for folder in (generation, heldout) for p in table_paths(folder)}
    indexes = {n.removesuffix(".index.parquet"): shards / n for n in read_manifest(shards)["files"] if n.endswith(".index.parquet")}
    for stem in sorted({*texts, *indexes}):
        table = read_table(texts[stem], ["key", "image_id", "reason"]) if stem in texts else SCHEMA.empty_table()
        yield stem, table, read_index(indexes[stem]) if stem in indexes else INDEX_SCHEMA.empty_table()

"""g0 and the held-out splits keep their contract, or nothing trains."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from blip_core.captions import SCHEMA, content_hash, read_manifest, read_table, read_tables, table_paths, write_json
from blip_core.config import ValidateConfig
from blip_core.expectations import (
    Expect,
    at_least,
    at_most,
    broken,
    check,
    folder_faults,
    matches,
    never_null,
    one_of,
    pairs,
    require,
    share_at_most,
    unique,
)
from blip_core.shards import INDEX_SCHEMA, KEY, read_index

# folder / part of a table: the one source that its texts may have
SOURCES = {"generation/web": "web", "generation/train": "human", "heldout/val": "human", "heldout/test": "human"}
REMEDY = "Nothing trains on this generation. Mend the data, or the limits in section validate of params.yaml, and run the stage again."


def validate(
    generation: Path, heldout: Path, shards: Path, out_gate: Path, out_metrics: Path, out_docs: Path, *, cfg: ValidateConfig
) -> None:
    """Write the gate file of `generation` only when every check passed; ValueError lists those that failed.

    Metrics are written either way.
    """
    for path in (out_gate, out_metrics):
        path.unlink(missing_ok=True)
    identity, faults = content_hash(generation), folder_faults(generation, heldout)
    if faults:
        results, docs = broken(faults), None
        write_json({"checks": len(faults), "checks_failed": len(faults)}, out_metrics)
    else:
        facts, docs = _facts(generation, heldout, shards), out_docs
        texts, images = _texts(generation, heldout), pa.Table.from_pylist([facts])
        suites = {"texts": (texts, _text_expectations(cfg)), "images": (images, _fact_expectations(cfg))}
        results = check(suites, docs=out_docs, title="validate")
        write_json({**facts, "checks": len(results), "checks_failed": sum(not r["passed"] for r in results)}, out_metrics)
    require(results, what=f"{generation} does not keep its contract", remedy=REMEDY, docs=docs)
    write_json({"passed": True, "generation": identity, "checks": results}, out_gate)


def _texts(generation: Path, heldout: Path) -> pa.Table:
    """Every text of both folders; `place` says where it stands, `blank` is 1 for a text without a letter or digit."""
    columns, tables = ["key", "image_id", "text", "source", "candidate", "reason"], []
    for role, folder in (("generation", generation), ("heldout", heldout)):
        table = read_tables(folder, columns)
        tables.append(table.append_column("place", pc.binary_join_element_wise(role, _part(table["shard"]), "/")))
    table = pa.concat_tables(tables)
    blank = pc.invert(pc.match_substring_regex(table["text"], r"[\p{L}\p{N}]"))
    return table.append_column("blank", pc.cast(blank, pa.float64()))


def _part(shard: pa.ChunkedArray) -> pa.ChunkedArray:
    """web-00000 is of the part web."""
    return pc.replace_substring_regex(shard, r"-\d+$", "")


def _text_expectations(cfg: ValidateConfig) -> list[Expect]:
    return [
        never_null("text", "rows without a text"),
        never_null("image_id", "rows without the identity of their picture"),
        matches("key_form", "key", KEY.pattern, f"rows whose key is not of the form {KEY.pattern}"),
        unique("key_source_candidate", ("key", "source", "candidate"), "rows that share key, source and candidate number with another"),
        pairs("source", ("place", "source"), tuple(SOURCES.items()), "rows whose source is not that of their part (web, else human)"),
        one_of("reason", "reason", ("kept",), "rows that are not marked kept"),
        share_at_most("empty_share", "blank", cfg.max_empty, "share of texts without a letter or digit"),
    ]


def _fact_expectations(cfg: ValidateConfig) -> list[Expect]:
    enough = {"web": cfg.min_images, "human": cfg.min_images, "val": cfg.min_heldout_images, "test": cfg.min_heldout_images}
    return [
        *[at_least(f"images_{part}", least, f"images of {part} with a text") for part, least in enough.items()],
        at_most("images_without_text", 0, "images of the shards without a text"),
        at_most("texts_without_image", 0, "(key, image_id) of texts that their shard does not hold"),
        at_most("keys_repeated", 0, "keys that several images have"),
        at_most("heldout_in_training", 0, "pictures (image_id) that are both held out and trained on"),
        at_most("duplicate_share_web", cfg.max_duplicate, "share of web images whose bytes occur more than once"),
    ]


@dataclass
class _Part:
    """What is counted of web, train, val or test."""

    num_images: int = 0  # with a text
    ids: list[str] = field(default_factory=list)  # image_id of each image
    sha256: set[str] = field(default_factory=set)


def _facts(generation: Path, heldout: Path, shards: Path) -> dict[str, float]:
    parts = {name: _Part() for name in ("web", "train", "val", "test")}
    textless, imageless, num_keys, keys = 0, 0, 0, set()
    for stem, table, index in _shards(generation, heldout, shards):
        texts, images = _identities(table), _identities(index)
        textless, imageless = textless + len(images - texts), imageless + len(texts - images)
        num_keys += index.num_rows
        keys.update(index["key"].to_pylist())
        part = parts.setdefault(stem.rsplit("-", 1)[0], _Part())
        part.num_images += len({key for key, _ in texts})
        part.ids += [identity for _, identity in texts]
        part.sha256.update(index["sha256"].to_pylist())
    web, train, val, test = (parts[name] for name in ("web", "train", "val", "test"))
    repeated = Counter(web.ids)
    return {
        "images_web": web.num_images,
        "images_human": train.num_images,
        "images_val": val.num_images,
        "images_test": test.num_images,
        "images_without_text": textless,
        "texts_without_image": imageless,
        "keys_repeated": num_keys - len(keys),
        "heldout_in_training": len({*web.ids, *train.ids} & {*val.ids, *test.ids}),
        "heldout_copies_in_training": len((web.sha256 | train.sha256) & (val.sha256 | test.sha256)),
        "duplicate_share_web": sum(n for n in repeated.values() if n > 1) / max(len(web.ids), 1),
    }


def _shards(generation: Path, heldout: Path, shards: Path) -> Iterator[tuple[str, pa.Table, pa.Table]]:
    """Each shard that has texts or images: its stem, the key and image_id of its texts, its index."""
    texts = {p.stem: p for folder in (generation, heldout) for p in table_paths(folder)}
    indexes = {n.removesuffix(".index.parquet"): shards / n for n in read_manifest(shards)["files"] if n.endswith(".index.parquet")}
    for stem in sorted({*texts, *indexes}):
        table = read_table(texts[stem], ["key", "image_id"]) if stem in texts else SCHEMA.empty_table()
        yield stem, table, read_index(indexes[stem]) if stem in indexes else INDEX_SCHEMA.empty_table()


def _identities(table: pa.Table) -> set[tuple[str, str]]:
    return set(zip(table["key"].to_pylist(), table["image_id"].to_pylist(), strict=True))

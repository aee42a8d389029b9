"""Choose among the scored candidates: the next generation. Scores are read, not computed, so a new threshold takes seconds.

`assemble` walks the shards; `choose` is the rule, a pure function of one shard's table; `measure` counts what it did.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from blip_core.captions import (
    CONTROLS,
    KEPT,
    REASONS,
    SCHEMA,
    SCREENS,
    content_hash,
    read_manifest,
    read_table,
    table_paths,
    write_json,
    write_manifest,
    write_table,
)
from blip_core.config import AssembleConfig
from blip_core.counting import Walk, frequent, hashes, num_distinct
from blip_core.expectations import schema_faults
from blip_core.screens import fill, hits, loops, normalised, screened

SOURCES = ("web", "synthetic")


def assemble(generation: Path, scores: Path, out: Path, out_metrics: Path, *, cfg: AssembleConfig) -> None:
    """Write the next generation: the base's human texts and those that a screen dropped before scoring as they are, and every
    candidate with the reason why it stays or not.

    `generation` is the base of the round. A table of `out` has the name and order of its shard's; one shard is in memory at a
    time, and eight bytes for each synthetic text.
    """
    if out.resolve() in (generation.resolve(), scores.resolve()):
        raise ValueError(f"{out}: a generation is never edited; name another folder for the next one")
    parents = {"generation": content_hash(generation), "scores": content_hash(scores)}
    base, scored = ({p.name: p for p in paths} for paths in (table_paths(generation), candidate_paths(scores)))
    for name in sorted({*base, *scored}):
        _check_images(generation / name, _crawl_keys(base.get(name)), scores / name, _crawl_keys(scored.get(name)))
    common = overused(scored.values(), max_share=cfg.max_share)
    _clear(out)
    for name, path in base.items():
        table = _read(path)
        parts = [table.filter(pc.or_(pc.equal(table["source"], "human"), screened(table)))]
        if name in scored:
            parts.append(choose(read_candidates(scored[name]), overused=common, cfg=cfg, where=str(scored[name])))
        write_table(pa.concat_tables(parts), out / name)
    metrics = measure([out / name for name in base], cfg=cfg)
    counts = {k: v for k, v in metrics.items() if isinstance(v, int)}
    limits = {k: v for k, v in read_manifest(generation).items() if k == "limits"}
    write_manifest(out, parents=parents, counts=counts, rule=cfg.model_dump(mode="json"), **limits)
    write_json(metrics, out_metrics)


def candidate_paths(scores: Path) -> list[Path]:
    """The tables of scored candidates, one per shard of the crawl."""
    paths = [p for p in table_paths(scores) if p.name != CONTROLS]
    if not paths:
        raise ValueError(f"{scores}: holds no table of candidates; run score")
    return paths


def read_candidates(path: Path) -> pa.Table:
    """One shard's candidates. ValueError names a row that can't be judged."""
    table = _read(path)
    strange = table.filter(pc.invert(pc.is_in(table["source"], value_set=pa.array(SOURCES))))
    if strange.num_rows:
        row = strange.slice(0, 1).to_pylist()[0]
        raise ValueError(f"{path}: key {row['key']!r}: source is {row['source']!r}, expected one of {SOURCES}; run score again")
    missing = table.filter(pc.is_null(table["text"]))
    if missing.num_rows:
        raise ValueError(f"{path}: key {missing['key'][0].as_py()!r}: text is null; run caption and score again")
    return table


def choose(table: pa.Table, *, overused: pa.Array, cfg: AssembleConfig, where: str = "candidates") -> pa.Table:
    """The rule: fill `reason` of one shard's candidates. The first that applies counts:

    source_off       the source takes no part
    degenerate       a synthetic text that is empty, says a few words again and again, or is `overused`
    file_name, ...   a screen that drops what it hits hits it (screens.py)
    below_threshold  the filter rejects it
    duplicate        a better candidate of the image says the same

    Synthetic texts also get what the screens say of them; web texts have it from ingest.
    """
    words = normalised(table["text"])
    synthetic, takes_part = (pc.is_in(table["source"], value_set=pa.array(s, pa.string())) for s in (["synthetic"], cfg.sources))
    useless = pa.concat_arrays([overused, loops(words, cfg.max_repeat), pa.array([""])])
    table = _screen_synthetic(table, words, synthetic, overused, cfg)
    hit = hits(table, cfg.screens)
    reasons = {
        "source_off": pc.invert(takes_part),
        "degenerate": pc.and_(synthetic, pc.is_in(words, value_set=useless)),
        **{name: hit[name] for name in hit if getattr(cfg.screens, name) == "drop"},
        "below_threshold": rejected(table, cfg=cfg, where=where),
    }
    reason = pa.array([KEPT] * table.num_rows, pa.string())
    for name, applies in reversed(reasons.items()):
        reason = pc.if_else(applies, name, reason)
    reason = pc.if_else(_duplicates(table, words, pc.equal(reason, KEPT), cfg.score), "duplicate", reason)
    return table.set_column(SCHEMA.get_field_index("reason"), SCHEMA.field("reason"), reason)


def _screen_synthetic(
    table: pa.Table, words: pa.ChunkedArray, synthetic: pa.ChunkedArray, overused: pa.Array, cfg: AssembleConfig
) -> pa.Table:
    """The table with the screens' columns of its synthetic texts. `overused` ones are their boilerplate."""
    filled = fill(table.filter(synthetic), cfg.screens, max_repeat=cfg.max_repeat)
    if cfg.screens.boilerplate != "off":
        common = pc.is_in(words.filter(synthetic), value_set=overused)
        filled = filled.set_column(SCHEMA.get_field_index("boilerplate"), SCHEMA.field("boilerplate"), common)
    for name in SCREENS:
        column = pc.replace_with_mask(table[name].combine_chunks(), synthetic.combine_chunks(), filled[name].combine_chunks())
        table = table.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), column)
    return table


def rejected(table: pa.Table, *, cfg: AssembleConfig, where: str) -> pa.ChunkedArray:
    """Whether the filter rejects each text: its score is below its source's threshold. ValueError names a key without a score."""
    score = table[cfg.score]
    unknown = pc.or_kleene(pc.is_null(score, nan_is_null=True), pc.invert(pc.is_finite(score)))
    bad = table.filter(unknown)
    if bad.num_rows:
        row = bad.slice(0, 1).to_pylist()[0]
        found = f"text {row['text']!r} has {cfg.score} {row[cfg.score]!r}"
        raise ValueError(f"{where}: key {row['key']!r}: {found}, expected a number ({bad.num_rows} such rows); run score again")
    limits = pa.array([_threshold(s, cfg) for s in SOURCES], pa.float64())
    sources = pc.index_in(table["source"], value_set=pa.array(SOURCES))
    return pc.less(score, pc.take(limits, pc.fill_null(sources, 0)))


def _threshold(source: str, cfg: AssembleConfig) -> float:
    """A source that is off needs no threshold: none of its texts stays anyway."""
    if source not in cfg.threshold and source not in cfg.sources:
        return -math.inf
    limit = cfg.threshold.get(source, math.nan)
    if not math.isfinite(limit):
        got = f"expected a finite number for source {source!r}, got {cfg.threshold.get(source)}"
        raise ValueError(f"assemble.threshold: {got}; set it in params.yaml")
    return limit


def overused(paths: Iterable[Path], *, max_share: float) -> pa.Array:
    """Synthetic texts (normalised) that stand at more than this share of the images, and at more than one."""
    paths, num_images = list(paths), {}

    def texts() -> Iterator[pa.Table]:
        for path in paths:
            table = read_candidates(path).select(["key", "source", "text"])
            num_images[path] = pc.count_distinct(table["key"]).as_py()
            synthetic = table.filter(pc.equal(table["source"], "synthetic"))
            yield pa.table({"key": synthetic["key"], "words": normalised(synthetic["text"])}).group_by(["key", "words"]).aggregate([])

    return frequent(Walk(texts), "words", more_than=lambda: max(1, max_share * sum(num_images.values())))


def _duplicates(table: pa.Table, words: pa.ChunkedArray, eligible: pa.ChunkedArray, score: str) -> pa.Array:
    """Eligible rows whose text an eligible row of the image has with a higher score; equal scores: web first, then the older."""
    columns = {n: table[n] for n in ("key", "source", "round", "candidate")}
    rows = pa.table({**columns, "words": words, "score": table[score], "row": pa.array(range(table.num_rows), pa.int64())}).filter(eligible)
    order = [("score", "descending"), ("source", "descending"), ("round", "ascending"), ("candidate", "ascending")]
    best = rows.sort_by(order).group_by(["key", "words"], use_threads=False).aggregate([("row", "first")])["row_first"]
    second = pc.invert(pc.is_in(pa.array(range(table.num_rows), pa.int64()), value_set=best))
    return pc.and_(eligible, second)


def measure(paths: Iterable[Path], *, cfg: AssembleConfig) -> dict[str, float]:
    """What the rule did, by the tables of a generation. A share of nothing (a source without texts) is left out."""
    reasons, below, judged, images, covered, texts = Counter(), Counter(), Counter(), 0, 0, []
    for path in paths:
        table = _read(path)
        human, stays = pc.equal(table["source"], "human"), pc.equal(table["reason"], KEPT)
        crawl, kept = table.filter(pc.invert(human)), table.filter(pc.and_not(stays, human))
        images += pc.count_distinct(crawl["key"]).as_py()
        covered += pc.count_distinct(kept["key"]).as_py()
        groups = table.group_by(["source", "reason"]).aggregate([([], "count_all")]).to_pylist()
        reasons.update({(g["source"], g["reason"]): g["count_all"] for g in groups})
        scored = crawl.filter(pc.invert(screened(crawl)))
        below.update(scored["source"].filter(rejected(scored, cfg=cfg, where=str(path))).to_pylist())
        judged.update(scored["source"].to_pylist())
        words = pc.unique(normalised(kept.filter(pc.equal(kept["source"], "synthetic"))["text"]))
        texts.append(hashes(pa.table({"words": words}), ["words"]))
    return _metrics(reasons, below, judged, images=images, covered=covered, distinct=num_distinct(texts), sources=cfg.threshold)


def _metrics(
    reasons: Counter, below: Counter, judged: Counter, *, images: int, covered: int, distinct: int, sources: Iterable[str]
) -> dict[str, float]:
    """`judged`: how many candidates of each source the filter scored; the others are those that a screen dropped before."""
    found: dict[str, float] = {"images": images, "texts_human": sum(n for (s, _), n in reasons.items() if s == "human")}
    for source in SOURCES:
        candidates, stay = sum(n for (s, _), n in reasons.items() if s == source), reasons[source, KEPT]
        found |= {f"candidates_{source}": candidates, f"kept_{source}": stay}
        if judged[source] and source in sources:
            found[f"rejected_share_{source}"] = below[source] / judged[source]
    for reason in REASONS:
        found[f"reason_{reason}"] = sum(n for (s, r), n in reasons.items() if r == reason and s != "human")
    found["texts_kept"] = found["kept_web"] + found["kept_synthetic"]
    shares = {
        "coverage": (covered, images),
        "distinct_share_synthetic": (distinct, found["kept_synthetic"]),
        "degenerate_share_synthetic": (reasons["synthetic", "degenerate"], found["candidates_synthetic"]),
    }
    return found | {name: part / whole for name, (part, whole) in shares.items() if whole}


def _crawl_keys(path: Path | None) -> set[str]:
    if path is None:
        return set()
    table = read_table(path, ["key", "source"])
    return set(table["key"].filter(pc.not_equal(table["source"], "human")).to_pylist())


def _check_images(base: Path, has: set[str], scored: Path, found: set[str]) -> None:
    """Every image of the crawl must have been scored, and nothing else: a lost shard must not pass for a smaller crawl."""
    for missing, of, lacks in ((has - found, base, scored), (found - has, scored, base)):
        if missing:
            some = ", ".join(sorted(missing)[:3])
            raise ValueError(f"{lacks}: {len(missing)} images of {of} are not in it (e.g. {some}); run caption and score again")


def _read(path: Path) -> pa.Table:
    faults = schema_faults(path)
    if faults:
        raise ValueError("\n".join(faults))
    return read_table(path)


def _clear(out: Path) -> None:
    """Tables of an earlier run must not be sealed with the new ones; the manifest goes first, so no reader takes the rest for whole."""
    out.mkdir(parents=True, exist_ok=True)
    for path in [out / "manifest.json", *out.glob("*.parquet"), *out.glob("_tmp.*")]:
        path.unlink(missing_ok=True)

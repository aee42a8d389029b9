"""Choose among the scored candidates: the next generation. `assemble` walks the shards, choice.py is the rule, `measure` counts what it
did."""

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blip_core.config.selection import AssembleConfig
from blip_core.files.content import sha256_file, write_json
from blip_core.selection.calibration import read_calibrations
from blip_core.selection.choice import SOURCES, Rule, candidate_paths, choose, judged_candidates, overused, read_whole
from blip_core.selection.outcome import NoiseRatio, kept_nothing
from blip_core.tables.captions import DEGENERATE, KEPT, NO_TEXT, REASONS, WRITTEN, read_table, table_paths, write_table
from blip_core.tables.counting import hashes, num_distinct
from blip_core.tables.manifest import content_hash, read_makers, read_manifest, write_manifest
from blip_core.texts.screens import normalised, screened

log = logging.getLogger(__name__)


def assemble(generation: Path, scores: Path, calibration: Path, out: Path, out_metrics: Path, *, cfg: AssembleConfig) -> None:
    """Write the next generation: the base's human texts and those that a screen dropped before scoring as they are, and every
    candidate with the reason why it stays or not.

    `generation` is the base of the round. A table of `out` has the name and order of its shard's; one shard is in memory at a
    time, and eight bytes for each text of a captioner.
    """
    if out.resolve() in (generation.resolve(), scores.resolve()):
        raise ValueError(f"{out}: a generation is never edited; name another folder for the next one")
    rule = Rule(cfg, read_calibrations(calibration))
    parents = {"generation": content_hash(generation), "scores": content_hash(scores), "calibration": sha256_file(calibration)}
    base, scored = ({p.name: p for p in paths} for paths in (table_paths(generation), candidate_paths(scores)))
    for name in sorted({*base, *scored}):
        _check_images(generation / name, _crawl_keys(base.get(name)), scores / name, _crawl_keys(scored.get(name)))
    common = overused(scored.values(), max_share=cfg.max_share)
    _clear(out)
    for name, path in base.items():
        table = read_whole(path)
        parts = [table.filter(pc.or_(pc.equal(table["source"], "human"), screened(table)))]
        if name in scored:
            parts.append(choose(judged_candidates(scored[name], rule), overused=common, rule=rule, where=str(scored[name])))
        write_table(pa.concat_tables(parts), out / name)
    made = [out / name for name in base]
    metrics = measure(made, rule=rule)
    for reason in kept_nothing(made, metrics, rule=rule):
        log.warning("%s", reason)
    counts = {k: v for k, v in metrics.items() if isinstance(v, int)}
    limits = {k: v for k, v in read_manifest(generation).items() if k == "limits"}
    makers = read_makers(generation) | read_makers(scores)
    write_manifest(out, parents=parents, counts=counts, rule=rule.described(), makers=makers, **limits)
    write_json(metrics, out_metrics)


def measure(paths: Iterable[Path], *, rule: Rule) -> dict[str, float]:
    """What the rule did, by the tables of a generation. A share of nothing (a source without texts) is left out."""
    reasons: Counter[tuple[str, str]] = Counter()
    noise, images, covered = NoiseRatio(rule), 0, 0
    texts: dict[str, list[np.ndarray]] = {source: [] for source in WRITTEN}
    for path in paths:
        table = read_whole(path)
        human, stays = pc.equal(table["source"], "human"), pc.equal(table["reason"], KEPT)
        crawl, kept = table.filter(pc.invert(human)), table.filter(pc.and_not(stays, human))
        images += pc.count_distinct(crawl["key"]).as_py()
        covered += pc.count_distinct(kept["key"]).as_py()
        groups = table.group_by(["source", "reason"]).aggregate([([], "count_all")]).to_pylist()
        reasons.update({(g["source"], g["reason"]): g["count_all"] for g in groups})
        noise.add(table, where=str(path))
        for source, found in texts.items():
            words = pc.unique(normalised(kept.filter(pc.equal(kept["source"], source))["text"]))
            found.append(hashes(pa.table({"words": words}), ["words"]))
    distinct = {source: num_distinct(found) for source, found in texts.items()}
    return _metrics(reasons, noise, images=images, covered=covered, distinct=distinct)


def _metrics(
    reasons: Counter[tuple[str, str]], noise: NoiseRatio, *, images: int, covered: int, distinct: dict[str, int]
) -> dict[str, float]:
    found: dict[str, float] = {"images": images, "texts_human": sum(n for (s, _), n in reasons.items() if s == "human")}
    for source in SOURCES:
        candidates, stay = sum(n for (s, r), n in reasons.items() if s == source and r != NO_TEXT), reasons[source, KEPT]
        found |= {f"candidates_{source}": candidates, f"kept_{source}": stay}
        if (ratio := noise.of(source)) is not None:
            found[f"noise_{source}"] = ratio
    for reason in REASONS:
        found[f"reason_{reason}"] = sum(n for (s, r), n in reasons.items() if r == reason and s != "human")
    found["texts_kept"] = sum(found[f"kept_{source}"] for source in SOURCES)
    shares: dict[str, tuple[float, float]] = {"coverage": (covered, images)}
    for source in WRITTEN:
        shares[f"distinct_share_{source}"] = (distinct[source], found[f"kept_{source}"])
        shares[f"degenerate_share_{source}"] = (sum(reasons[source, r] for r in DEGENERATE), found[f"candidates_{source}"])
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


def _clear(out: Path) -> None:
    """Tables of an earlier run must not be sealed with the new ones; the manifest goes first, so no reader takes the rest for whole."""
    out.mkdir(parents=True, exist_ok=True)
    for path in [out / "manifest.json", *out.glob("*.parquet"), *out.glob("_tmp.*")]:
        path.unlink(missing_ok=True)

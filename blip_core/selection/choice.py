"""The rule that chooses among scored candidates: a pure function of one shard's table.

Start at `choose`. Scores are read, not computed: another rule takes seconds. The stage assemble walks the shards, the gate applies the
rule anew, and explain/image.py tells a person what it made of a text.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blip_core.capfilt.pair_scores import opinions
from blip_core.checks.expectations import schema_faults
from blip_core.config.selection import AssembleConfig
from blip_core.selection.calibration import Calibrated, with_match
from blip_core.selection.refusals import refuses
from blip_core.tables.captions import CONTROLS, KEPT, SCHEMA, SCREENS, WRITTEN, read_table, table_paths
from blip_core.tables.counting import Walk, frequent
from blip_core.tables.manifest import read_manifest
from blip_core.texts.screens import fill, hits, loops, normalised

SOURCES = ("web", *WRITTEN)


@dataclass(frozen=True)
class Rule:
    """The settings and, by content hash, the filters that were calibrated for them."""

    cfg: AssembleConfig
    calibrated: dict[str, Calibrated] = field(default_factory=dict)
    applied: dict[str, dict[str, float]] = field(default_factory=dict)  # thresholds by filter and source, of a rule that was applied

    @classmethod
    def of(cls, generation: Path) -> "Rule":
        """By which the texts of a generation were chosen, as its manifest keeps it. ValueError where no round made it."""
        rule = read_manifest(generation).get("rule")
        if rule is None:
            path = generation / "manifest.json"
            raise ValueError(f"{path}: names no rule by which texts were chosen; expected a generation that a round made, as g1")
        return cls(AssembleConfig(**{name: rule[name] for name in AssembleConfig.model_fields}), applied=rule["thresholds"])

    def threshold(self, source: str, filter: str) -> float:
        """Below it this filter rejects a text of the source. A source that is off needs none: none of its texts stays anyway."""
        if source not in self.cfg.threshold:
            return -math.inf
        limit = self.applied.get(filter, {}).get(source, self.cfg.threshold[source])
        return self._calibrated(source, filter) if limit == "calibrated" else limit

    def _calibrated(self, source: str, filter: str) -> float:
        found = self.calibrated.get(filter)
        if found is None or found.threshold is None:
            best = "the filter reaches calibrate.target_precision at none (best_precision in calibrate's metrics is what it reaches)"
            why = f"filter {filter!r} was not calibrated" if found is None else best
            raise ValueError(f"assemble.threshold: of {source!r} it is calibrated, but {why}; lower the target or set a number")
        return found.threshold

    def described(self) -> dict[str, Any]:
        """As a manifest keeps it: `threshold` as the numbers of the first filter, and those of each filter by content hash."""
        filters = {f: {s: self.threshold(s, f) for s in self.cfg.threshold} for f in self.calibrated}
        names = {f: c.name for f, c in self.calibrated.items()}
        return self.cfg.model_dump(mode="json") | {"threshold": next(iter(filters.values())), "thresholds": filters, "filters": names}


def candidate_paths(scores: Path) -> list[Path]:
    """The tables of scored candidates, one per shard of the crawl."""
    paths = [p for p in table_paths(scores) if p.name != CONTROLS]
    if not paths:
        raise ValueError(f"{scores}: holds no table of candidates; run score")
    return paths


def read_candidates(path: Path) -> pa.Table:
    """One shard's candidates. ValueError names a row that can't be judged."""
    table = read_whole(path)
    strange = table.filter(pc.invert(pc.is_in(table["source"], value_set=pa.array(SOURCES))))
    if strange.num_rows:
        row = strange.slice(0, 1).to_pylist()[0]
        raise ValueError(f"{path}: key {row['key']!r}: source is {row['source']!r}, expected one of {SOURCES}; run score again")
    missing = table.filter(pc.is_null(table["text"]))
    if missing.num_rows:
        raise ValueError(f"{path}: key {missing['key'][0].as_py()!r}: text is null; run caption and score again")
    return table


def judged_candidates(path: Path, rule: Rule) -> pa.Table:
    """One shard's candidates with what their scores mean."""
    return with_match(read_candidates(path), rule.calibrated, where=str(path))


def read_whole(path: Path) -> pa.Table:
    """A table of SCHEMA. ValueError says what about it is not."""
    if faults := schema_faults(path):
        raise ValueError("\n".join(faults))
    return read_table(path)


def choose(table: pa.Table, *, overused: pa.Array, rule: Rule, where: str = "candidates") -> pa.Table:
    """Fill `reason` of one shard's candidates. The first that applies counts:

    source_off       the source takes no part
    empty            a text of a captioner that is none: nothing but the prompt came
    marks            one without a letter or digit, as "!!!"
    refusal          the captioner says that it can't, or won't
    loop             one that says a few words again and again
    truncated        one that its captioner's limit of tokens cut off, perhaps while it still thought
    overused         one that stands at too many images
    file_name, ...   a screen that drops what it hits hits it (screens.py)
    below_threshold  too few filters accept it
    duplicate        a better candidate of the image says the same
    outranked        the image has `keep_best` better ones

    Synthetic and fused texts, those of captioners, also get what the screens say of them; web texts have it from ingest.
    """
    cfg, words = rule.cfg, normalised(table["text"])
    written, takes_part = (pc.is_in(table["source"], value_set=pa.array(s, pa.string())) for s in (WRITTEN, cfg.sources))
    table = _screen_written(table, words, written, overused, cfg)
    hit, nothing, cut = (
        hits(table, cfg.screens),
        pc.equal(pc.utf8_trim_whitespace(table["text"]), ""),
        pc.fill_null(table["truncated"], False),
    )
    reasons = {
        "source_off": pc.invert(takes_part),
        "empty": pc.and_(pc.and_(written, nothing), pc.invert(cut)),
        "marks": pc.and_(pc.and_(written, pc.equal(words, "")), pc.invert(nothing)),
        "refusal": pc.and_(written, refuses(table["text"])),
        "loop": pc.and_(written, pc.is_in(words, value_set=loops(words, cfg.max_repeat))),
        "truncated": pc.and_(written, cut),
        "overused": pc.and_(written, pc.is_in(words, value_set=overused)),
        **{name: hit[name] for name in hit if getattr(cfg.screens, name) == "drop"},
        "below_threshold": rejected(table, rule=rule, where=where),
    }
    reason = pa.array([KEPT] * table.num_rows, pa.string())
    for name, applies in reversed(reasons.items()):
        reason = pc.if_else(applies, name, reason)
    ranked = _best_first(table, score(table, cfg))
    reason = pc.if_else(_behind(ranked, [table["key"], words], pc.equal(reason, KEPT), most=1), "duplicate", reason)
    if cfg.keep_best is not None:
        reason = pc.if_else(_behind(ranked, [table["key"]], pc.equal(reason, KEPT), most=cfg.keep_best), "outranked", reason)
    return table.set_column(SCHEMA.get_field_index("reason"), SCHEMA.field("reason"), reason)


def rejected(table: pa.Table, *, rule: Rule, where: str) -> pa.Array:
    """Whether fewer than `votes` filters find a text at its source's threshold or above. ValueError names a key without a score."""
    votes = np.zeros(table.num_rows, dtype=np.int64)
    for judged in (table, *opinions(table)):
        votes += _accepted(judged, table, rule, where)
    return pa.array(votes < rule.cfg.votes)


def score(table: pa.Table, cfg: AssembleConfig) -> np.ndarray:
    """By which candidates are ranked: that of the filter, or the mean of several."""
    return np.mean([judged[cfg.score].to_numpy() for judged in (table, *opinions(table))], axis=0)


def _accepted(judged: pa.Table, table: pa.Table, rule: Rule, where: str) -> np.ndarray:
    """What one filter says; `judged` has its scores of the rows of `table`."""
    name = rule.cfg.score
    numbers = pc.fill_null(judged[name], math.nan).to_numpy()
    if (unknown := ~np.isfinite(numbers)).any():
        at = int(np.flatnonzero(unknown)[0])
        row = table.slice(at, 1).to_pylist()[0]
        found = f"text {row['text']!r} has {name} {judged[name][at].as_py()!r} by filter {judged['filter'][at].as_py()!r}"
        raise ValueError(
            f"{where}: key {row['key']!r}: {found}, expected a number ({int(unknown.sum())} such rows); run score again, or choose by "
            "another assemble.score where the filter has none of this name"
        )
    limits = np.full(table.num_rows, math.inf)
    filters, sources = (np.array(t.to_pylist(), dtype=object) for t in (judged["filter"], table["source"]))
    for filter in dict.fromkeys(filters.tolist()):
        for source in SOURCES:  # each must have a threshold, whether a text of it is here or not
            limits[(sources == source) & (filters == filter)] = rule.threshold(source, filter)
    return numbers >= limits


def _screen_written(table: pa.Table, words: pa.ChunkedArray, written: pa.ChunkedArray, overused: pa.Array, cfg: AssembleConfig) -> pa.Table:
    """The table with the screens' columns of its captioners' texts. `overused` ones are their boilerplate."""
    filled = fill(table.filter(written), cfg.screens, max_repeat=cfg.max_repeat)
    if cfg.screens.boilerplate != "off":
        common = pc.is_in(words.filter(written), value_set=overused)
        filled = filled.set_column(SCHEMA.get_field_index("boilerplate"), SCHEMA.field("boilerplate"), common)
    for name in SCREENS:
        column = pc.replace_with_mask(table[name].combine_chunks(), written.combine_chunks(), filled[name].combine_chunks())
        table = table.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), column)
    return table


def overused(paths: Iterable[Path], *, max_share: float) -> pa.Array:
    """Texts of captioners (normalised) that stand at more than this share of the images, and at more than one."""
    paths, num_images = list(paths), {}

    def texts() -> Iterator[pa.Table]:
        for path in paths:
            table = read_candidates(path).select(["key", "source", "text"])
            num_images[path] = pc.count_distinct(table["key"]).as_py()
            written = table.filter(pc.is_in(table["source"], value_set=pa.array(WRITTEN)))
            yield pa.table({"key": written["key"], "words": normalised(written["text"])}).group_by(["key", "words"]).aggregate([])

    return frequent(Walk(texts), "words", more_than=lambda: max(1, max_share * sum(num_images.values())))


def _best_first(table: pa.Table, score: np.ndarray) -> np.ndarray:
    """The rows by score; equal ones: web first, then synthetic, then the older."""
    columns = {name: table[name] for name in ("source", "round", "candidate")}
    order = [("score", "descending"), ("source", "descending"), ("round", "ascending"), ("candidate", "ascending")]
    return pc.sort_indices(pa.table({**columns, "score": score}), sort_keys=order).to_numpy()


def _behind(ranked: np.ndarray, group: list[pa.ChunkedArray], eligible: pa.Array, *, most: int) -> pa.Array:
    """Eligible rows with `most` eligible rows of their group or more before them."""
    eligible = np.asarray(eligible)
    rows = ranked[eligible[ranked]]
    ids = np.zeros(len(eligible), dtype=np.int64)
    for column in group:
        codes = pc.dictionary_encode(column).combine_chunks().indices.to_numpy()
        ids = ids * (int(codes.max(initial=0)) + 1) + codes
    own = ids[rows]
    together = np.argsort(own, kind="stable")  # groups one after the other, the best of each first
    starts = np.flatnonzero(np.append(True, np.diff(own[together]) != 0)) if len(rows) else np.empty(0, dtype=np.int64)
    sizes = np.diff(np.append(starts, len(rows)))
    place = np.arange(len(rows)) - np.repeat(starts, sizes)
    behind = np.zeros(len(eligible), dtype=bool)
    behind[rows[together[place >= most]]] = True
    return pa.array(behind)

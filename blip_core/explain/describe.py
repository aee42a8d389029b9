"""What a round did to the texts: whom the filter rejected, which words were lost and gained, how diverse what was kept is.

`describe_round` walks over both generations once, a shard at a time. In memory beside it: the vocabulary with its counts, eight bytes
for each kept text, and a sample of words. Words are those of words.py, in lower case, so that a captioner that writes all small does not
seem to lose names.

Three kinds of words carry knowledge that a captioner hardly brings back:

names    words that begin with a capital inside a sentence more often than not, in web texts whose case says something
numbers  words with a digit
rare     other words than numbers that stand at 1 to `rare_images` of the crawl's images
"""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blip_core.config.selection import DescribeConfig
from blip_core.explain.words import words_of
from blip_core.selection.choice import Rule
from blip_core.selection.outcome import NoiseRatio
from blip_core.tables.captions import KEPT, NO_TEXT, WRITTEN, read_table, table_paths
from blip_core.tables.counting import hashes
from blip_core.texts.screens import normalised, screened

CRAWL = ("web", *WRITTEN)
SOURCES = (*CRAWL, "human")
ORIGIN = ("source", "sampler", "model")
KNOWLEDGE = ("names", "numbers", "rare")
QUANTILES = {"p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95}
_HERE = {source: f"here_{source}" for source in CRAWL}
_COUNTS = ("base", "name", "plain", "here", *_HERE.values(), *SOURCES)
_COLUMNS = ["key", "text", "source", "round", "candidate", "model", "sampler", "reason", "filter", "opinions", "itm", "itc", "match"]
Reasons = Counter[tuple[str, str, str, str]]  # texts by source, sampler, captioner and reason
_FEW_ROWS = 1_000_000  # counts that may wait until they are added up


def describe_round(base: Path, generation: Path, cfg: DescribeConfig) -> dict[str, Any]:
    """Of the generation that a round made of `base`: noise, retention and diversity (`docs/noise.md` says how they are counted)."""
    reasons: Reasons = Counter()
    ratio = NoiseRatio(Rule.of(generation), by=ORIGIN)
    vocabulary, kept = Vocabulary(), {source: Diversity(cfg.sample_words) for source in SOURCES}
    old, new = ({p.name: p for p in table_paths(folder)} for folder in (base, generation))
    for name in sorted({*old, *new}):
        before, after = (read_table(found[name], _COLUMNS) if name in found else None for found in (old, new))
        words = words_of(after["text"]) if after is not None else None
        if after is not None:
            count_reasons(reasons, after)
            ratio.add(after, where=str(new[name]))
            for source in SOURCES:
                kept[source].add(after, words, pc.and_(pc.equal(after["source"], source), pc.equal(after["reason"], KEPT)), new[name])
        vocabulary.add(before, after, words)
    diversity = compared(kept, vocabulary.sizes())
    retention = vocabulary.retention(cfg)
    compares = {source: {**noise_of(source, ratio), **{k: retention[k]["at_image_by"][source] for k in KNOWLEDGE}} for source in CRAWL}
    return {"noise": noise_by_origin(reasons, ratio), "retention": retention, "sources": compares, "diversity": diversity}


# noise


def count_reasons(reasons: Reasons, table: pa.Table) -> None:
    """Add up the crawl's candidates by (source, sampler, captioner, reason)."""
    groups = table.group_by([*ORIGIN, "reason"]).aggregate([([], "count_all")]).to_pylist()
    for g in groups:
        if g["source"] != "human":
            reasons[*(g[name] for name in ORIGIN), g["reason"]] += g["count_all"]


def noise_by_origin(reasons: Reasons, ratio: NoiseRatio) -> list[dict[str, Any]]:
    """By source, sampler and captioner: texts, how many the filter judged, the noise ratio, reasons."""
    rows: dict[tuple[str, ...], Counter[str]] = {}
    for (source, sampler, captioner, reason), count in reasons.items():
        rows.setdefault((source, sampler, captioner), Counter())[reason] += count
    found = []
    for origin, own in sorted(rows.items(), key=lambda item: (SOURCES.index(item[0][0]), item[0])):
        counts = {"texts": own.total() - own[NO_TEXT], "judged": ratio.judged[origin], "kept": own[KEPT], "noise": ratio.of(*origin)}
        found.append({**dict(zip(ORIGIN, origin, strict=True)), **counts, "reasons": dict(own)})
    return found


def noise_of(source: str, ratio: NoiseRatio) -> dict[str, float | None]:
    """Of a source, whoever wrote its texts."""
    judged, rejected = (sum(n for origin, n in counts.items() if origin[0] == source) for counts in (ratio.judged, ratio.rejected))
    return {"judged": judged, "noise": _share(rejected, judged)}


# retention


class Vocabulary:
    """For each word at how many images it stands: `base` in web texts of the base (`name`, `plain`: so written), `here` of those also
    in a kept text of the next generation (`here_web`, ...: of that source), `web`, `synthetic`, `fused` and `human` in kept texts of the
    next generation."""

    def __init__(self) -> None:
        self._total = pa.table({"word": pa.array([], pa.string()), **{c: pa.array([], pa.int64()) for c in _COUNTS}})
        self._waiting: list[pa.Table] = []
        self._rows = self.num_images = 0

    def add(self, before: pa.Table | None, after: pa.Table | None, words: pa.Table | None) -> None:
        """A shard of the base and of the next generation, with the words of the latter."""
        pairs = []
        if before is not None:
            web = before.filter(pc.and_(pc.equal(before["source"], "web"), pc.invert(screened(before))))
            pairs.append(_at_images(web, words_of(web["text"]), "base"))
            self.num_images += pc.count_distinct(web["key"]).as_py()
        if after is not None and words is not None:
            kept = pc.equal(after["reason"], KEPT)
            for source in SOURCES:
                own = np.flatnonzero(pc.and_(kept, pc.equal(after["source"], source)).to_numpy())
                pairs.append(_at_images(after, words.filter(pc.is_in(words["row"], value_set=pa.array(own))), source))
        if pairs:
            self._waiting.append(_by_word(pairs))
            self._rows += self._waiting[-1].num_rows
        if self._rows > max(_FEW_ROWS, self._total.num_rows):
            self.total()

    def total(self) -> pa.Table:
        """The counts by word. They are added up seldom, since each time all of them are gone through."""
        self._total, self._waiting, self._rows = _summed([self._total, *self._waiting]), [], 0
        return self._total

    def retention(self, cfg: DescribeConfig) -> dict[str, Any]:
        total = self.total()
        count = {c: total[c].to_numpy() for c in _COUNTS}
        number, there = pc.match_substring_regex(total["word"], r"\p{N}").to_numpy(), count["base"] > 0
        kinds = {
            "names": there & ~number & (count["name"] > count["plain"]),
            "numbers": there & number,
            "rare": there & ~number & (count["base"] <= cfg.rare_images),
        }
        found = {kind: _retained(total["word"], count, mask, cfg.examples) for kind, mask in kinds.items()}
        added = ~there & (count["synthetic"] > 0)
        most = _most(total["word"], count["synthetic"], added, cfg.examples)
        return {**found, "added_by_synthetic": {"words": int(added.sum()), "most": most}, "web_images": self.num_images}

    def sizes(self) -> dict[str, int]:
        """By source, how many words its kept texts have."""
        return {source: pc.sum(pc.greater(self.total()[source], 0), min_count=0).as_py() for source in SOURCES}


def _at_images(table: pa.Table, words: pa.Table, column: str) -> pa.Table:
    """Each word of an image once, with which counts it takes part in."""
    named = {"name": words["name"], "plain": words["plain"]} if column == "base" else {}
    pairs = pa.table({"key": pc.take(table["key"], words["row"]), "word": words["word"], **named})
    pairs = pairs.group_by(["key", "word"]).aggregate([(c, "max") for c in named]).rename_columns({f"{c}_max": c for c in named})
    values = {c: np.full(pairs.num_rows, int(c == column)) for c in _COUNTS} | {c: pc.cast(pairs[c], pa.int64()) for c in named}
    return pa.table({"key": pairs["key"], "word": pairs["word"], **values})


def _by_word(pairs: list[pa.Table]) -> pa.Table:
    """Counts by word of a shard's (image, word) pairs; `here` counts those that both generations have."""
    sums = pa.concat_tables(pairs).group_by(["key", "word"]).aggregate([(c, "sum") for c in _COUNTS])
    sums = sums.rename_columns({f"{c}_sum": c for c in _COUNTS})
    base, here = sums["base"].to_numpy() > 0, {column: sums[source].to_numpy() > 0 for source, column in _HERE.items()}
    for column, there in {**here, "here": np.any([*here.values()], axis=0)}.items():
        sums = sums.set_column(sums.schema.get_field_index(column), column, pa.array((base & there).astype(np.int64)))
    return _summed([sums.drop_columns(["key"])])


def _summed(tables: list[pa.Table]) -> pa.Table:
    tables = [t.select(["word", *_COUNTS]) for t in tables]
    total = pa.concat_tables(tables).group_by("word").aggregate([(c, "sum") for c in _COUNTS])
    return total.rename_columns({f"{c}_sum": c for c in _COUNTS}).combine_chunks()


def _retained(words: pa.ChunkedArray, count: dict[str, np.ndarray], mask: np.ndarray, examples: int) -> dict[str, Any]:
    """Shares are None where there is no such word."""
    anywhere, synthetic = sum(count[source] for source in CRAWL) > 0, count["synthetic"] > 0
    times, num, lost = int(count["base"][mask].sum()), int(mask.sum()), mask & ~anywhere
    return {
        "words": num,
        "occurrences": times,
        "kept": _share(int((mask & anywhere).sum()), num),
        "kept_weighted": _share(int(count["base"][mask & anywhere].sum()), times),
        "kept_at_image": _share(int(count["here"][mask].sum()), times),
        "at_image_by": {source: _share(int(count[column][mask].sum()), times) for source, column in _HERE.items()},
        "in_synthetic": _share(int((mask & synthetic).sum()), num),
        "lost": int(lost.sum()),
        "most_lost": _most(words, count["base"], lost, examples),
    }


def _most(words: pa.ChunkedArray, count: np.ndarray, mask: np.ndarray, examples: int) -> list[list[Any]]:
    """The most frequent of the words, with their counts; equal ones by the alphabet."""
    chosen = pa.table({"word": words.filter(pa.array(mask)), "count": count[mask]})
    first = chosen.take(pc.select_k_unstable(chosen, examples, [("count", "descending"), ("word", "ascending")])) if len(chosen) else chosen
    return [[r["word"], r["count"]] for r in first.to_pylist()]


# diversity


class Diversity:
    """What the kept texts of a source are like."""

    def __init__(self, sample_words: int):
        self.sample_words = sample_words
        self.lengths = np.zeros(1, np.int64)  # texts by number of words
        self.sample = pa.table({"hash": pa.array([], pa.uint64()), "words": pa.array([], pa.list_(pa.string()))})
        self.texts: list[tuple[Path, np.ndarray]] = []  # hashes of the texts, by table

    def add(self, table: pa.Table, words: pa.Table, mask: pa.ChunkedArray, path: Path) -> None:
        rows = np.flatnonzero(mask.to_numpy())
        if not len(rows):
            return
        own = words.filter(pc.is_in(words["row"], value_set=pa.array(rows)))
        length = np.bincount(own["row"].to_numpy(), minlength=table.num_rows)[rows]
        self.lengths = _added(self.lengths, np.bincount(length))
        self.texts.append((path, hashes(pa.table({"text": normalised(table["text"].take(rows))}), ["text"])))
        self._draw(table.take(rows), own, length)

    def _draw(self, table: pa.Table, words: pa.Table, length: np.ndarray) -> None:
        """The sample: the texts with the smallest hashes of their names, as many as it takes for its words."""
        names = hashes(table, ["key", "source", "round", "candidate"])
        parts = pa.ListArray.from_arrays(pa.array(np.r_[0, np.cumsum(length)], pa.int32()), words["word"].combine_chunks())
        both = pa.concat_tables([self.sample, pa.table({"hash": pa.array(names), "words": parts})]).sort_by("hash")
        before = np.cumsum(np.r_[0, pc.list_value_length(both["words"]).to_numpy()[:-1]])
        self.sample = both.filter(pa.array(before < self.sample_words)).combine_chunks()

    def sampled(self) -> int:
        """Words of the sample."""
        return min(self.sample_words, pc.sum(pc.list_value_length(self.sample["words"]), min_count=0).as_py())

    def facts(self, num_words: int, *, vocabulary: int) -> dict[str, Any]:
        """`num_words`: of the sample, that distinct-1 and distinct-2 are of."""
        num, total = int(self.lengths.sum()), int(self.lengths @ np.arange(len(self.lengths)))
        if not num:
            return {"texts": 0}
        values, counts = np.unique(np.concatenate([h for _, h in self.texts]), return_counts=True)
        most = int(counts.argmax())
        ends = np.cumsum(self.lengths) / num
        return {
            "texts": num,
            "words": total,
            "vocabulary": vocabulary,
            "distinct_texts": len(values),
            "duplicates": 1 - len(values) / num,
            "most_common": self._find(values[most]),
            "most_common_share": int(counts[most]) / num,
            "length": {"mean": total / num, **{name: int(np.searchsorted(ends, q)) for name, q in QUANTILES.items()}},
            **distinct(self.sample["words"].to_pylist(), num_words),
        }

    def _find(self, wanted: np.uint64) -> str:
        """The text (`normalised`) of this hash: only one table is read again."""
        path = next(p for p, own in self.texts if wanted in own)
        texts = pc.unique(normalised(read_table(path, ["text"])["text"]))
        return texts.filter(pa.array(hashes(pa.table({"text": texts}), ["text"]) == wanted))[0].as_py()


def distinct(texts: list[list[str]], num_words: int) -> dict[str, float | None]:
    """Different words / words, and different pairs of neighbours / such pairs, of the first `num_words` words."""
    words: list[str] = []
    pairs: list[tuple[str, str]] = []
    left = num_words
    for text in texts:
        text = text[:left]
        left -= len(text)
        words += text
        pairs += pairwise(text)
    return {"distinct_1": _share(len(set(words)), len(words)), "distinct_2": _share(len(set(pairs)), len(pairs))}


def compared(kept: dict[str, Diversity], vocabulary: dict[str, int]) -> dict[str, Any]:
    """By source. distinct-n falls with the size of what it is computed on, so that all sources give equally many words."""
    num_words = min((d.sampled() for d in kept.values() if d.texts), default=0)
    return {"sample_words": num_words, **{source: d.facts(num_words, vocabulary=vocabulary[source]) for source, d in kept.items()}}


def flat(description: dict[str, Any]) -> dict[str, float]:
    """The numbers that one follows from round to round; what is not known is left out."""
    found: dict[str, float | None] = {}
    for kind in KNOWLEDGE:
        found |= {f"{kind}_{k}": description["retention"][kind][k] for k in ("kept", "kept_weighted", "kept_at_image")}
    found["words_added_by_synthetic"] = description["retention"]["added_by_synthetic"]["words"]
    for source in SOURCES:
        own = description["diversity"][source]
        named = ("vocabulary", "distinct_1", "distinct_2", "duplicates", "most_common_share")
        found |= {f"{name}_{source}": own.get(name) for name in named} | {f"length_{source}": own.get("length", {}).get("mean")}
    return {k: v for k, v in found.items() if v is not None}


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _added(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    found = np.zeros(max(len(a), len(b)), np.int64)
    found[: len(a)] += a
    found[: len(b)] += b
    return found

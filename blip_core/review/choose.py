"""Which texts a person is asked about: a sample of a generation's candidates, more of them near the threshold, none without a chance.

Candidates of a source are parted by the side of the threshold on which their score stands, and each side in three bands by distance
from it. Each source and side has an equal part of the sample; half of that is dealt to the bands by their size, half evenly, which favours
the near and narrow ones. Within a band all are equally likely. So each drawn text stands for a known number of texts, its weight, and
weighted shares estimate those of the whole without bias. Of its side, hardly a text weighs more than twice what it would in a plain random
sample: the price of knowing more near the threshold.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blip_core.files.content import read_json
from blip_core.selection.labels import Pair
from blip_core.tables.captions import KEPT, WRITTEN, each_table, read_table
from blip_core.tables.counting import hashes
from blip_core.tables.stopped import require_made

SOURCES = ("web", *WRITTEN)
# which texts are asked about: their fate hung on the score. Not what a look at the text alone threw out
BELOW = "below_threshold"
JUDGED_BY_SCORE = (KEPT, BELOW, "duplicate", "outranked")
BANDS = (0.1, 0.4, 1.0)  # of a side's candidates, by distance from the threshold
EVENLY = 0.5  # of the sample
LEAST = 2  # texts of a band
SCORES = ("match", "itm", "itc")
IDENTITY = ("key", "source", "round", "candidate")
Identity = tuple[Any, ...]  # of one text: the values of these


@dataclass(frozen=True)
class Rule:
    """By which score the generation was chosen, and its threshold for each source."""

    score: str
    threshold: dict[str, float]
    asked: tuple[str, ...] = JUDGED_BY_SCORE  # the reasons of the texts that a sheet asks about


@dataclass(frozen=True)
class Row:
    """A text, what is known of it, and for how many it stands."""

    pair: Pair
    reason: str
    filter: str
    scores: dict[str, float]
    weight: float


@dataclass(frozen=True)
class Card:
    """A picture with the texts that were drawn, and its other texts, about which nobody is asked."""

    rows: list[Row]
    others: list[Row]


@dataclass(frozen=True)
class _Band:
    source: str
    above: bool
    near: float  # distance from the threshold; the band begins there
    far: float  # and ends before here
    size: int


def read_rule(generation: Path, *, around: float | None = None, kept: bool = False, source: str | None = None) -> Rule:
    """Of a generation that a round made; `around` instead of its thresholds. `kept`: ask about kept texts alone; `source`: of it alone.

    ValueError when no round made it, or it has no such source."""
    require_made(generation)
    path = generation / "manifest.json"
    rule = read_json(path).get("rule") if path.exists() else None
    if rule is None:
        raise ValueError(f"{path}: names no rule by which texts were chosen; expected a generation that a round made, as g1")
    threshold = {s: float(rule["threshold"][s]) for s in SOURCES if s in rule["threshold"] and source in (None, s)}
    if not threshold:
        known = ", ".join(s for s in SOURCES if s in rule["threshold"])
        raise ValueError(f"{path}: no threshold for the texts of source {source!r}; there are {known}")
    asked = (KEPT,) if kept else JUDGED_BY_SCORE
    return Rule(rule["score"], threshold if around is None else dict.fromkeys(threshold, around), asked)


def choose_cards(generation: Path, *, rule: Rule, count: int, seed: int) -> list[Card]:
    """`count` texts (all, if there are fewer), those of a picture together, in an order that tells nothing.

    Two walks over the tables: the scores are counted in the first, texts drawn in the second. ValueError when nothing is scored."""
    scores: dict[str, list[np.ndarray]] = defaultdict(list)
    for table in _candidates(generation, rule):
        for source in rule.threshold:
            scores[source].append(_score(table.filter(pc.equal(table["source"], source)), rule))
    found = {source: np.concatenate(parts) for source, parts in scores.items() if sum(map(len, parts))}
    if not found:
        raise ValueError(f"{generation}: no candidate of {', '.join(rule.threshold)} has a score; name a generation that a round made")
    bands = [band for source, values in found.items() for band in _bands(source, values - rule.threshold[source])]
    if count < LEAST * len(bands):
        raise ValueError(
            f"{count} texts on a sheet: expected at least {LEAST * len(bands)}, {LEAST} of each of {len(bands)} bands of scores "
            "(--count, or report.review in params.yaml)"
        )
    return _cards(generation, _draw(generation, bands, _deal(bands, count), rule=rule, seed=seed), seed=seed)


def _candidates(generation: Path, rule: Rule) -> Iterator[pa.Table]:
    """Of each table those candidates whose fate hung on the score."""
    for table in each_table(generation, [*IDENTITY, "reason", rule.score]):
        taking_part = pc.is_in(table["source"], value_set=pa.array(rule.threshold, pa.string()))
        asked = pc.and_(taking_part, pc.is_in(table["reason"], value_set=pa.array(rule.asked)))
        yield table.filter(pc.and_(asked, pc.is_valid(table[rule.score])))


def _score(table: pa.Table, rule: Rule) -> np.ndarray:
    return table[rule.score].to_numpy()


def _bands(source: str, offset: np.ndarray) -> Iterator[_Band]:
    """`offset`: score minus threshold of all candidates of a source. Bands in which nothing stands are left out."""
    for above in (False, True):
        distance = np.sort(np.abs(offset[(offset >= 0) == above]))
        ends = [distance[int(share * len(distance))] for share in BANDS[:-1]] if len(distance) else []
        near = 0.0
        for far in [*ends, np.inf]:
            if size := int(np.searchsorted(distance, far) - np.searchsorted(distance, near)):
                yield _Band(source, above, near, float(far), size)
            near = float(far)


def _deal(bands: list[_Band], count: int) -> list[int]:
    """How many to draw from each band: as many of each source and side, within it half by the bands' size, half evenly."""
    sizes, dealt = np.array([band.size for band in bands]), np.zeros(len(bands), dtype=np.int64)
    sides = sorted(((b.source, b.above) for b in bands), key=lambda side: sum(b.size for b in bands if (b.source, b.above) == side))
    sides = list(dict.fromkeys(sides))  # a small one comes first: what it lacks goes to the others
    for done, side in enumerate(sides):
        own = np.flatnonzero([(band.source, band.above) == side for band in bands])
        share = int(count - dealt.sum()) // (len(sides) - done)
        wanted = share * (EVENLY / len(own) + (1 - EVENLY) * sizes[own] / sizes[own].sum())
        dealt[own] = _rounded(np.maximum(wanted, LEAST), sizes[own], share)
    return dealt.tolist()


def _rounded(wanted: np.ndarray, most: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers near `wanted`, at most `most`, that add up to `total` or to all there are."""
    given = np.minimum(np.floor(wanted).astype(np.int64), most)
    while given.sum() < min(total, most.sum()):
        given[np.argmax(np.where(given < most, wanted - given, -np.inf))] += 1
    while given.sum() > total:
        given[np.argmax(given)] -= 1
    return given


def _draw(generation: Path, bands: list[_Band], counts: list[int], *, rule: Rule, seed: int) -> dict[str, dict[Identity, float]]:
    """By shard, the identity of the drawn texts and their weight: in each band those whose hash with the seed comes first."""
    best: list[list[tuple[int, str, Identity]]] = [[] for _ in bands]
    for table in _candidates(generation, rule):
        offset = _score(table, rule) - pc.take(pa.array(list(rule.threshold.values())), _place(table, rule)).to_numpy()
        chance = hashes(table.append_column("seed", pa.array([str(seed)] * table.num_rows, pa.string())), ["seed", *IDENTITY])
        sources = table["source"].to_numpy(zero_copy_only=False)
        for i, band in enumerate(bands):
            distance = np.abs(offset)
            inside = (sources == band.source) & ((offset >= 0) == band.above) & (distance >= band.near) & (distance < band.far)
            rows = np.flatnonzero(inside)
            rows = rows[np.argsort(chance[rows], kind="stable")[: counts[i]]]
            drawn = table.take(rows).select(["shard", *IDENTITY]).to_pylist()
            new = [(int(h), r["shard"], tuple(r[n] for n in IDENTITY)) for h, r in zip(chance[rows], drawn, strict=True)]
            best[i] = sorted(best[i] + new)[: counts[i]]
    weights: dict[str, dict[Identity, float]] = defaultdict(dict)
    for band, found in zip(bands, best, strict=True):
        for _, shard, identity in found:
            weights[shard][identity] = band.size / len(found)
    return weights


def _place(table: pa.Table, rule: Rule) -> pa.ChunkedArray:
    return pc.index_in(table["source"], value_set=pa.array(rule.threshold, pa.string()))


def _cards(generation: Path, weights: dict[str, dict[Identity, float]], *, seed: int) -> list[Card]:
    """The drawn texts by picture, each picture's in an order by hash, and so the pictures."""
    columns = [*IDENTITY, "image_id", "text", "reason", "filter", *SCORES]
    cards = []
    for shard, drawn in weights.items():
        table = read_table(generation / f"{shard}.parquet", columns)
        keys = pa.array({identity[0] for identity in drawn}, pa.string())
        rows: dict[str, list[Row]] = defaultdict(list)
        for r in table.filter(pc.is_in(table["key"], value_set=keys)).to_pylist():
            pair = Pair.of(shard, r)
            scores = {name: r[name] for name in SCORES if r[name] is not None}
            rows[pair.key].append(Row(pair, r["reason"], r["filter"], scores, drawn.get(tuple(r[n] for n in IDENTITY), 0.0)))
        for found in rows.values():
            found.sort(key=lambda row: _hash(seed, *row.pair))
            cards.append(Card([r for r in found if r.weight], [r for r in found if not r.weight]))
    return sorted(cards, key=lambda card: _hash(seed, card.rows[0].pair.shard, card.rows[0].pair.key))


def _hash(seed: int, *identity: object) -> bytes:
    return blake2b(repr((seed, *identity)).encode(), digest_size=8).digest()

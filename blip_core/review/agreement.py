"""How far people agree with each other and with the filter, and what their labels say of a generation as a whole.

A text that was drawn stands for others (choose.py), so what is said of the generation is weighted. The interval of a share is Wilson's,
with the number of pictures that would tell as much if all weighed the same (Kish), the texts of a picture counting as one. That of kappa
is by bootstrap over pictures. People agree with each other or not on the very texts they judged, so nothing is weighted there. Who was
unsure of a text said nothing of it.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blip_core.config.evaluation import EvaluateConfig
from blip_core.evaluation.bootstrap import interval
from blip_core.report.page import Section, Table, as_text
from blip_core.report.wording import MISSING, number
from blip_core.review.choose import BELOW, JUDGED_BY_SCORE, Rule, read_rule
from blip_core.selection.labels import Label, Pair, judged
from blip_core.tables.captions import KEPT, read_table, table_paths

Estimate = dict[str, float | None]  # value, low, high; None: there is nothing to tell it by
NOTHING: Estimate = {"value": None, "low": None, "high": None}
WITH_FILTER = (
    "alike, kappa: person and filter at the threshold. kept, right: of the texts that were kept, how many are right. dropped, right: "
    "of those that the filter rejected. right, dropped: of all that are right, how many it rejected. Weighted: they speak of "
    "all texts of the generation whose fate hung on the score. In per cent; in brackets the {confidence:.0%} interval."
)


@dataclass(frozen=True)
class Said:
    """What was said of some pairs of a generation, an entry each."""

    right: np.ndarray  # share of the reviewers who were sure
    weight: np.ndarray
    passes: np.ndarray  # whether the rule accepts it: its score reaches the threshold, of several filters as many as must
    kept: np.ndarray  # whether the text was kept: one that passes may still be a duplicate
    source: np.ndarray
    picture: np.ndarray

    def where(self, rows: np.ndarray) -> "Said":
        return Said(*(values[rows] for values in vars(self).values()))


def agreement(labels: list[Label], generation: Path, *, cfg: EvaluateConfig, seed: int) -> dict[str, Any]:
    """All of it as a nested dict of numbers. ValueError when none of the labels is about this generation.

    Of `cfg` the bootstrap and the confidence count."""
    rule, pairs = read_rule(generation), {label.pair for label in labels}
    fates = _fates(generation, pairs, rule)
    if not fates:
        raise ValueError(f"{generation}: holds none of the {len(pairs)} judged texts; name the generation that the sheet was made of")
    labels = [label for label in labels if label.pair in fates]
    reviewers = {name: [label for label in labels if label.reviewer == name] for name in sorted({label.reviewer for label in labels})}
    said = _said(labels, fates)
    parts = {source: said.where(said.source == source) for source in rule.threshold} | {"all": said}
    return {
        "rule": {"score": rule.score, "threshold": rule.threshold},
        "confidence": cfg.confidence,
        "pairs": len(said.right),
        "pairs_elsewhere": len(pairs) - len(fates),
        "reviewers": {name: {**_counts(own), **_with_filter(_said(own, fates), cfg, seed)} for name, own in reviewers.items()},
        "between": {f"{a} - {b}": _between(reviewers[a], reviewers[b], cfg, seed) for a, b in combinations(reviewers, 2)},
        "sources": {name: _with_filter(part, cfg, seed) | _shares(part, cfg.confidence) for name, part in parts.items() if len(part.right)},
    }


def weighted_share(value: np.ndarray, weight: np.ndarray, picture: np.ndarray, confidence: float) -> Estimate:
    """The weighted mean of values from 0 to 1, with Wilson's interval (1927) for as many trials as the weights are worth."""
    if not weight.sum() > 0:
        return NOTHING
    share = min(1.0, float(value @ weight / weight.sum()))
    trials = weight.sum() ** 2 / (_by_picture(weight[:, None], picture) ** 2).sum()
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = (z2 * (share * (1 - share) / trials + z2 / (4 * trials**2))) ** 0.5 / (1 + z2 / trials)
    return {"value": share, "low": max(0.0, float(centre - half)), "high": min(1.0, float(centre + half))}


def kappa(cells: np.ndarray) -> np.ndarray:
    """Cohen's kappa (1960) of [..., 4] weights: both say right, only the first, only the second, neither. 0 where it is undefined."""
    both, first, second, neither = np.moveaxis(cells / cells.sum(axis=-1, keepdims=True), -1, 0)
    chance = (both + first) * (both + second) + (neither + first) * (neither + second)
    return np.where(chance < 1, (both + neither - chance) / np.where(chance < 1, 1 - chance, 1), 0.0)


def _fates(generation: Path, pairs: set[Pair], rule: Rule) -> dict[Pair, tuple[bool, bool]]:
    """Of those pairs whose fate hung on the score: whether they pass the threshold and whether they were kept."""
    fates = {}
    for path in table_paths(generation):
        keys = pa.array({pair.key for pair in pairs if pair.shard == path.stem}, pa.string())
        if not len(keys):
            continue
        columns = ["key", "image_id", "text", "source", "round", "candidate", "reason"]
        table = read_table(path, columns)
        for row in table.filter(pc.is_in(table["key"], value_set=keys)).to_pylist():
            pair = Pair.of(path.stem, row)
            if pair in pairs and row["reason"] in JUDGED_BY_SCORE and pair.source in rule.threshold:
                fates[pair] = (row["reason"] != BELOW, row["reason"] == KEPT)
    return fates


def _said(labels: Iterable[Label], fates: dict[Pair, tuple[bool, bool]]) -> Said:
    found = judged(labels)
    passes, kept = np.array([fates[j.pair] for j in found], dtype=bool).reshape(-1, 2).T
    right, weight = (np.array([getattr(j, name) for j in found], dtype=np.float64) for name in ("right", "weight"))
    source, picture = (np.array([getattr(j.pair, name) for j in found], dtype=str) for name in ("source", "image_id"))
    return Said(right, weight, passes, kept, source, picture)


def _counts(labels: list[Label]) -> dict[str, int]:
    verdicts = Counter(label.verdict for label in labels)
    return {"labels": len(labels), **{v: verdicts[v] for v in ("right", "wrong", "unsure")}, "blind": sum(label.blind for label in labels)}


def _with_filter(said: Said, cfg: EvaluateConfig, seed: int) -> dict[str, Any]:
    alike = np.where(said.passes, said.right, 1 - said.right)
    cells = _cells(said.right, said.passes) * said.weight[:, None]
    return {
        "pairs": len(said.right),
        "alike": weighted_share(alike, said.weight, said.picture, cfg.confidence),
        "kappa": _kappa(cells, said.picture, cfg, seed),
    }


def _shares(said: Said, confidence: float) -> dict[str, Estimate]:
    kept, dropped = said.where(said.kept), said.where(~said.passes)
    return {
        "kept_right": weighted_share(kept.right, kept.weight, kept.picture, confidence),
        "dropped_right": weighted_share(dropped.right, dropped.weight, dropped.picture, confidence),
        "right_dropped": weighted_share(1.0 - said.passes, said.weight * said.right, said.picture, confidence),
    }


def _between(first: list[Label], second: list[Label], cfg: EvaluateConfig, seed: int) -> dict[str, Any]:
    """Of two people, on the pairs that both were sure about; where one judged a pair on two sheets, the newest counts."""
    sure = [{k.pair: k.verdict == "right" for k in sorted(own, key=lambda k: k.time) if k.verdict != "unsure"} for own in (first, second)]
    common = sorted(sure[0].keys() & sure[1].keys())
    a, b = (np.array([own[pair] for pair in common], dtype=np.float64) for own in sure)
    picture = np.array([pair.image_id for pair in common], dtype=str)
    alike = weighted_share((a == b).astype(np.float64), np.ones(len(common)), picture, cfg.confidence)
    return {"pairs": len(common), "alike": alike, "kappa": _kappa(_cells(a, b), picture, cfg, seed)}


def _cells(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Two opinions from 0 to 1 to the four cells of `kappa`."""
    return np.stack([first * second, first * (1 - second), (1 - first) * second, (1 - first) * (1 - second)], axis=1)


def _kappa(cells: np.ndarray, picture: np.ndarray, cfg: EvaluateConfig, seed: int) -> Estimate:
    """Undefined when fewer than two pictures or one opinion is all there is."""
    opinions = cells.sum(axis=0)
    if len(set(picture)) < 2 or opinions[0] == opinions.sum() or opinions[3] == opinions.sum():
        return NOTHING
    found = interval(_by_picture(cells, picture), kappa, resamples=cfg.bootstrap, confidence=cfg.confidence, seed=seed)
    return {"value": found.value, "low": found.low, "high": found.high}


def _by_picture(values: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """[rows, columns] summed over the rows of each picture."""
    _, group = np.unique(picture, return_inverse=True)
    return np.stack([np.bincount(group, weights=column) for column in values.T], axis=1)


def as_table(found: dict[str, Any]) -> str:
    """Lines for a person."""
    thresholds = ", ".join(f"{source} {limit:.3g}" for source, limit in found["rule"]["threshold"].items())
    elsewhere = f"; {found['pairs_elsewhere']} judged texts are not in it and left out" if found["pairs_elsewhere"] else ""
    people = Table(
        ["reviewer", "labels", "right", "wrong", "unsure", "judged\nblind", "alike with\nthe filter", "kappa"],
        [
            [name, *(str(r[k]) for k in ("labels", "right", "wrong", "unsure", "blind")), _percent(r["alike"]), _number(r["kappa"])]
            for name, r in found["reviewers"].items()
        ],
    )
    between = Table(
        ["reviewers", "texts in\ncommon", "alike", "kappa"],
        [[name, str(b["pairs"]), _percent(b["alike"]), _number(b["kappa"])] for name, b in found["between"].items()],
    )
    shares = ("kept_right", "dropped_right", "right_dropped")
    sources = Table(
        ["texts", "judged", "alike with\nthe filter", "kappa", "kept,\nright", "dropped,\nright", "right,\ndropped"],
        [
            [name, str(s["pairs"]), _percent(s["alike"]), _number(s["kappa"]), *(_percent(s[share]) for share in shares)]
            for name, s in found["sources"].items()
        ],
    )
    about = WITH_FILTER.format(confidence=found["confidence"])
    sections = [
        Section("People", [people, *([between] if found["between"] else [])]),
        Section("People and filter", [sources, f"{about} Thresholds of {found['rule']['score']}: {thresholds}{elsewhere}."]),
    ]
    return as_text("What people say of the texts", sections)


def _percent(estimate: Estimate) -> str:
    if estimate["value"] is None:
        return MISSING
    # an interval is known where the value is
    value, low, high = (f"{100 * estimate[k]:.1f}" for k in ("value", "low", "high"))  # type: ignore[operator]
    return f"{value}\n[{low}, {high}]"


def _number(estimate: Estimate) -> str:
    return MISSING if estimate["value"] is None else f"{number(estimate['value'])}\n[{estimate['low']:.2f}, {estimate['high']:.2f}]"

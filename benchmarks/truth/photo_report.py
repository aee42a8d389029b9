"""The tables of photos.py: noise by kind, the filter, the gate's bound beside the truth, models beside the linear floor, compute."""

import csv
import json
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from linear_floor import SIDE, LinearFloor, picture_features
from photo_world import FALSE, KINDS

from blip_core.capfilt.pair_scores import pair_scores
from blip_core.compute.pixels import read_resized
from blip_core.config.params import Params, load_params
from blip_core.evaluation.bootstrap import interval, sums_by_image
from blip_core.evaluation.metrics import RECALLS, caption_scores, image_ranks, roc_auc, text_ranks
from blip_core.files.content import write_json
from blip_core.review.choose import choose_cards, read_rule
from blip_core.selection.judged_noise import bounded
from blip_core.selection.labels import Judged
from blip_core.tables.captions import KEPT, read_tables
from blip_core.tables.heldout import heldout_pictures
from blip_core.tables.shards import ShardImages
from blip_core.training.batches import Rows

# the generation that an arm's model learned from, and the sources that it saw of it
SEEN = {"none": "g0 human,web", "human": "g0 human", "F": "F human,web", "CF": "CF human,web,synthetic", "long": "g0 human,web"}
SHOWN = {f"tr_r{k}": f"text R@{k}" for k in RECALLS} | {f"ir_r{k}": f"image R@{k}" for k in RECALLS} | {"cider": "CIDEr"}
LABELS = 200
Measured = dict[str, float]


def report(folder: Path, labels: dict[str, list[str]]) -> str:
    """All that is known so far, in Markdown; also written to report.md. `labels`: the steps that are each arm's compute."""
    artifacts, params = folder / "artifacts", load_params(folder / "params.yaml")
    costs = json.loads((folder / "costs.json").read_text())
    arms = [arm for arm in labels if (artifacts / f"evaluations/{arm}/metrics.json").exists()]
    sections = [model_table(artifacts, arms, {a: sum(costs[s]["cpu_seconds"] for s in labels[a]) for a in arms}, params)]
    kinds = truth_of(folder / "truth.csv")
    chosen = [g for g in ("F", "CF") if (artifacts / f"metrics/gate-{g}.json").exists()]
    sections += [filter_table(artifacts, g, kinds) for g in chosen[:1]]  # all have the same scores
    sections += [noise_table(artifacts, g, kinds) for g in chosen]
    text = "\n\n".join(sections) + "\n"
    (folder / "report.md").write_text(text)
    return text


def truth_of(path: Path) -> dict[str, str]:
    """The kind of each web text by the key that ingest gives its picture."""
    with path.open(newline="") as f:
        return {f"web-{Path(row['file_name']).stem}": row["kind"] for row in csv.DictReader(f)}


def model_table(artifacts: Path, arms: list[str], seconds: dict[str, float], params: Params) -> str:
    lines = ["| arm | of | " + " | ".join(SHOWN.values()) + " | CPU seconds |", "|---" * (len(SHOWN) + 3) + "|"]
    for arm in arms:
        model = json.loads((artifacts / f"evaluations/{arm}/metrics.json").read_text())
        lines.append(f"| {arm} | model | " + " | ".join(_shown(model, m) for m in SHOWN) + f" | {seconds[arm]:,.0f} |")
        lines.append(f"| {arm} | linear floor | " + " | ".join(_shown(floor_of(artifacts, arm, params), m) for m in SHOWN) + " | |")
    return "\n".join(lines)


def _shown(values: Measured, name: str) -> str:
    scale, digits = (1, 3) if name == "cider" else (100, 1)
    mean, low, high = (f"{scale * values[key]:.{digits}f}" for key in (name, f"{name}_low", f"{name}_high"))
    return f"{mean} [{low}, {high}]"


def floor_of(artifacts: Path, arm: str, params: Params) -> Measured:
    """Of the linear fit to the texts that the arm's model saw, on the same test pictures; its caption of a picture is the text of the
    clean set that it finds nearest."""
    path = artifacts / f"floors/{arm}.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    floor, clean = fitted_floor(artifacts, arm)
    test = heldout_pictures(artifacts / "heldout", "test")
    test_features = features_of(artifacts, [(p.shard, p.key) for p in test])
    nearest = floor.scores(test_features, clean).argmax(1)
    captions = {p.key: clean[i] for p, i in zip(test, nearest, strict=True)}
    owner = np.repeat(np.arange(len(test)), [len(p.texts) for p in test])
    scores = floor.scores(test_features, [t for p in test for t in p.texts])
    measured = _measured(scores, owner, params)
    cider = caption_scores({p.key: p.texts for p in test}, captions).per_image["cider"]
    write_json(measured | _interval("cider", cider, np.arange(len(test)), params), path)
    return floor_of(artifacts, arm, params)


@cache  # a fit takes seconds, and arms and filter share it
def fitted_floor(artifacts: Path, arm: str) -> tuple[LinearFloor, list[str]]:
    """The fit to the texts that the arm's model saw, and those of the clean set among them."""
    generation, sources = SEEN[arm].split()
    rows = Rows.of(artifacts / f"generations/{generation}", sources.split(","))
    shards, keys, texts = rows.at(np.arange(len(rows.text)))
    places = list(zip(shards, keys, strict=True))
    seen = list(dict.fromkeys(places))
    features = dict(zip(seen, features_of(artifacts, seen), strict=True))
    floor = LinearFloor.fit(np.stack([features[place] for place in places]), texts)
    return floor, [texts[i] for i in rows.by_source["human"]]


def features_of(artifacts: Path, places: list[tuple[str, str]]) -> np.ndarray:
    """Of pictures by shard and key."""
    images = ShardImages(artifacts / "shards")
    return picture_features([read_resized(images, *place, SIDE) for place in places])


def _measured(scores: np.ndarray, owner: np.ndarray, params: Params) -> Measured:
    found: Measured = {}
    for prefix, ranks, images in (("tr", text_ranks(scores, owner), np.arange(len(scores))), ("ir", image_ranks(scores, owner), owner)):
        for k in RECALLS:
            found |= _interval(f"{prefix}_r{k}", (ranks < k).astype(float), images, params)
    return found


def _interval(name: str, values: np.ndarray, images: np.ndarray, params: Params) -> Measured:
    cfg = params.evaluate
    sums = sums_by_image(values, [str(i) for i in images])
    found = interval(sums, resamples=cfg.bootstrap, confidence=cfg.confidence, seed=params.seed)
    return {name: float(values.mean()), f"{name}_low": found.low, f"{name}_high": found.high}


def filter_table(artifacts: Path, generation: str, kinds: dict[str, str]) -> str:
    """How well the filter tells the true web texts (also the terse ones) from the false, all and by kind: by the probability that texts
    are chosen by, and by what it is made of. The linear floor is that of the clean set."""
    table = read_tables(artifacts / f"generations/{generation}")
    table = table.filter(pc.equal(table["source"], "web"))
    scores = pair_scores(table)
    judges = {"the filter": table["match"].to_numpy(), "its ITM": scores.itm_logit, "its ITC": scores.itc}
    judges["the linear floor"] = floor_scores(artifacts, generation)
    kind = np.array([kinds[key] for key in table["key"].to_pylist()])
    true, named = ~np.isin(kind, FALSE), {"all false texts": np.isin(kind, FALSE), **{name: kind == name for name in FALSE}}
    lines = ["| AUC, web texts against true ones | texts | " + " | ".join(judges) + " |", "|---" * (len(judges) + 2) + "|"]
    for name, false in named.items():
        if false.any():
            both = true | false
            aucs = (f"{roc_auc(true[both], score[both]):.3f}" for score in judges.values())
            lines.append(f"| {name} | {false.sum():,} | {' | '.join(aucs)} |")
    return "\n".join(lines)


@cache
def floor_scores(artifacts: Path, generation: str) -> np.ndarray:
    """Of the generation's web texts, in its order."""
    table = read_tables(artifacts / f"generations/{generation}")
    table = table.filter(pc.equal(table["source"], "web"))
    floor, _ = fitted_floor(artifacts, "human")
    places = list(zip(table["shard"].to_pylist(), table["key"].to_pylist(), strict=True))
    return floor.pair_scores(features_of(artifacts, places), table["text"].to_pylist())


def noise_table(artifacts: Path, generation: str, kinds: dict[str, str]) -> str:
    """Of the web texts: how many of each kind were there and stayed, and the gate's bound of what is false among those that stayed."""
    table = read_tables(artifacts / f"generations/{generation}")
    counts: dict[str, Counter[bool]] = defaultdict(Counter)
    for key, source, reason in zip(*(table[c].to_pylist() for c in ("key", "source", "reason")), strict=True):
        if source == "web":
            counts[kinds[key]][reason == KEPT] += 1
    lines = [f"| {generation}: web texts | before | kept | share kept |", "|---|---|---|---|"]
    for kind in KINDS:
        before, kept = counts[kind].total(), counts[kind][True]
        lines.append(f"| {kind}{' (false)' if kind in FALSE else ''} | {before:,} | {kept:,} | {kept / max(before, 1):.1%} |")
    before, after = (_noise({k: select(c) for k, c in counts.items()}) for select in (Counter.total, lambda c: c[True]))
    gate: dict[str, Any] = json.loads((artifacts / f"metrics/gate-{generation}.json").read_text())
    estimate, bound = (f"{gate[k]:.1%}" if k in gate else "unknown" for k in ("residual_noise_web", "residual_noise_web_upper"))
    said = [
        f"Noise of the web texts: {before:.1%} before, {after:.1%} after; the gate estimates {estimate}, at most {bound}.",
        f"Synthetic texts kept: {gate['kept_synthetic']:,} of {gate['candidates_synthetic']:,}.",
    ]
    if any(count[True] for count in counts.values()):
        people = judged_bound(artifacts / f"generations/{generation}", kinds)
        said.append(f"With {LABELS} of the kept web texts judged by people who are right it would say at most {people:.1%}.")
    return "\n".join([*lines, "", *said])


def judged_bound(generation: Path, kinds: dict[str, str]) -> float:
    """What the gate would say of the kept web texts with a sheet of LABELS of them; the truth plays the people."""
    cards = choose_cards(generation, rule=read_rule(generation, kept=True, source="web"), count=LABELS, seed=0)
    rows = [row for card in cards for row in card.rows]
    drawn = [(Judged(row.pair, float(kinds[row.pair.key] not in FALSE), row.weight), row.scores["match"]) for row in rows]
    table = read_tables(generation)
    kept = pc.and_(pc.equal(table["source"], "web"), pc.equal(table["reason"], KEPT))
    return bounded(drawn, pc.mean(table.filter(kept)["match"]).as_py(), 0.05).upper


def _noise(counts: dict[str, int]) -> float:
    return sum(counts.get(k, 0) for k in FALSE) / max(1, sum(counts.values()))

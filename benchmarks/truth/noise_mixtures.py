"""Does the estimate of the noise that a filter leaves cover the truth on crawls with other noise?

    make demo && python benchmarks/truth/noise_mixtures.py

Takes the demo's filter and calibration and the crawl's pictures; only the web texts are written anew. One text of each kind is scored for
each of 4,000 pictures; a mixture gives each picture a kind, so that mixtures cost nothing. Planted pairs are those of stage score, their
crawled ones drawn from the mixture itself. Prints a table in Markdown and writes benchmarks/results/noise_mixtures.json. About a minute.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blip_core.capfilt.controls import plant
from blip_core.capfilt.plugins import open_filter
from blip_core.config.params import load_params
from blip_core.files.content import sha256_file
from blip_core.sample.scene_texts import TRUE_KINDS, text_of_kind
from blip_core.sample.truth import Truth, load_truth
from blip_core.selection.calibration import read_calibrations, with_match
from blip_core.selection.noise import Judged, residual_noise
from blip_core.stages.score import scored_table
from blip_core.tables.captions import SCHEMA, caption_table, each_table
from blip_core.tables.heldout import heldout_halves
from blip_core.tables.shards import ShardImages

ROOT = Path(__file__).resolve().parents[2]
NOISE = {
    "as in the demo": {"mismatch": 0.5, "boilerplate": 0.14 / 0.6, "partial": 0.1 / 0.6, "general": 0.1},
    "mismatches": {"mismatch": 1.0},
    "boilerplate": {"boilerplate": 1.0},
    "one attribute wrong": {"partial": 1.0},
    "over-general": {"general": 1.0},
}
TRUE = {"half in human style, half terse": {"clean": 0.5, "terse": 0.5}, "all in human style": {"clean": 1.0}}
KINDS = (*TRUE_KINDS, "mismatch", "boilerplate", "partial", "general")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--texts", type=int, default=3000, help="of a mixture")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.4, 0.7], help="of noise")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.5, 0.8, 0.9])
    parser.add_argument("--draws", type=int, default=5, help="of each mixture")
    parser.add_argument("--per-image", type=int, default=20, help="score.controls_per_image")
    args = parser.parse_args()
    world = World(args.artifacts, args.data, num_pictures=args.pictures)
    rows = [row for draw in range(args.draws) for row in measure(world, args, draw)]
    out = ROOT / "benchmarks" / "results" / "noise_mixtures.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"filter": sha256_file(args.artifacts / "rounds/r1/calibration.json"), "rows": rows}, indent=1) + "\n")
    print(table(rows, args.thresholds))


class World:
    """The demo's pictures, filter and truth, and for each of some pictures of the crawl the score of a text of each kind."""

    def __init__(self, artifacts: Path, data: Path, *, num_pictures: int):
        params = load_params(artifacts.resolve().parent / "params.yaml")
        self.confidence, self.batch_size = params.gate.confidence, params.score.batch_size
        self.artifacts, self.images = artifacts, ShardImages(artifacts / "shards", at_once=16)
        options = {"question": params.score.question, "precision": params.score.precision, "fetch": None}
        self.filter = open_filter(params.score.filters[0], artifacts / "rounds/r1/filter", **options)
        self.calibrations = read_calibrations(artifacts / "rounds/r1/calibration.json")
        truth = load_truth(data)
        if truth is None:
            raise ValueError(f"{data}: holds no truth.parquet; this is measured on the sample world: run `make demo`")
        self.texts = self._texts(truth, num_pictures)
        self.scores = self.score(self.texts).reshape(-1, len(KINDS), 2)

    def _texts(self, truth: Truth, count: int) -> pa.Table:
        rng, pictures = np.random.default_rng(0), []
        for t in each_table(self.artifacts / "generations/g0", ["key", "image_id", "source"]):
            pictures += t.filter(pc.equal(t["source"], "web")).to_pylist()
        chosen = [pictures[i] for i in rng.permutation(len(pictures))[:count]]
        return pa.Table.from_pylist([{**p, "text": text_of_kind(rng, truth[p["key"]].scene, k)} for p in chosen for k in KINDS])

    def score(self, texts: pa.Table) -> np.ndarray:
        """P(match) as a web text has it, and the ITC cosine: texts x 2."""
        rows = caption_table([{**row, "source": "web"} for row in texts.select(["key", "image_id", "text"]).to_pylist()])
        rows = rows.select(SCHEMA.names).append_column("shard", texts["shard"])
        scored = scored_table(rows, [self.filter], self.images, batch_size=self.batch_size)
        scored = with_match(scored, self.calibrations, where="benchmark")
        return np.stack([scored[name].to_numpy() for name in ("match", "itc")], axis=1)


def measure(world: World, args: argparse.Namespace, draw: int) -> list[dict]:
    """Planted pairs are drawn anew with each draw; only their crawled ones depend on the mixture."""
    pictures, rows = heldout_halves(world.artifacts / "heldout")[1], []
    planted = plant(pictures, per_image=args.per_image, seed=draw)
    scored = world.score(planted)
    # crawled ones of every kind, of which a mixture takes its shares
    rng, all_texts = np.random.default_rng([1, draw]), np.array(world.texts["text"].to_pylist(), object).reshape(-1, len(KINDS))
    crawled = {k: plant(pictures, per_image=args.per_image, seed=draw, crawl=_shuffled(rng, all_texts[:, i])) for i, k in enumerate(KINDS)}
    crawled = {k: t.filter(pc.equal(t["kind"], "crawled")) for k, t in crawled.items()}
    borrowed = {k: (world.score(t), t["image_id"].to_numpy(zero_copy_only=False)) for k, t in crawled.items()}
    for true, true_kinds in TRUE.items():
        for noise, false_kinds in NOISE.items():
            for share in args.shares:
                shares = {k: (1 - share) * s for k, s in true_kinds.items()} | {k: share * s for k, s in false_kinds.items()}
                mixture = {"true": true, "noise": noise, "share": share, "draw": draw}
                found = compare(world, shares, (planted, scored), borrowed, args, np.random.default_rng([2, draw, len(rows)]))
                rows += [mixture | row for row in found]
    return rows


def _shuffled(rng: np.random.Generator, texts: np.ndarray) -> list[str]:
    return list(rng.permutation(texts))


def compare(world: World, shares: dict, planted: tuple, borrowed: dict, args: argparse.Namespace, rng: np.random.Generator) -> list[dict]:
    names, p = list(shares), np.array(list(shares.values())) / sum(shares.values())
    pictures, kinds = rng.permutation(len(world.scores))[: args.texts], rng.choice(len(names), args.texts, p=p)
    match, itc = world.scores[pictures, [KINDS.index(names[k]) for k in kinds]].T
    false = ~np.isin(np.array(names)[kinds], TRUE_KINDS)
    table, scored = planted
    parts = [(np.array(table["kind"].to_pylist()), scored, table["image_id"].to_numpy(zero_copy_only=False))]
    for name, share in zip(names, p, strict=True):
        score, image = borrowed[name]
        chosen = rng.choice(len(score), round(share * len(score)), replace=False)
        parts.append((np.full(len(chosen), "crawled"), score[chosen], image[chosen]))
    kind, score, image = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    rows = []
    score, own_itc = score.T
    for threshold in args.thresholds:
        kept = match >= threshold
        controls, crawl = Judged(score, score >= threshold, image, own_itc), Judged(match, kept, pictures, itc)
        found = residual_noise(kind, controls, crawl, confidence=world.confidence)
        rows.append(
            {"threshold": threshold, "truth": float(false[kept].mean()), **{k: getattr(found, k) for k in ("point", "upper", "worst")}}
        )
    return rows


def table(rows: list[dict], thresholds: list[float]) -> str:
    """Means over the draws: truth, estimate, bound, bound of the worst case; and in how many draws the bound covers the truth."""
    lines = [f"| true texts | noise | share | {' | '.join(f'at {t}' for t in thresholds)} |", "|---" * (3 + len(thresholds)) + "|"]
    for key in dict.fromkeys((r["true"], r["noise"], r["share"]) for r in rows):
        cells = [_cell([r for r in rows if (r["true"], r["noise"], r["share"]) == key and r["threshold"] == t]) for t in thresholds]
        lines.append(f"| {key[0]} | {key[1]} | {key[2]:.0%} | {' | '.join(cells)} |")
    covered = {k: np.mean([r[k] >= r["truth"] for r in rows]) for k in ("upper", "worst")}
    tight = {k: np.mean([r[k] for r in rows]) for k in ("truth", "point", "upper", "worst")}
    lines += ["", f"{len(rows)} comparisons; the bound covers {covered['upper']:.1%}, the worst case's {covered['worst']:.1%}. Means:"]
    return "\n".join([*lines, ", ".join(f"{k} {v:.1%}" for k, v in tight.items())])


def _cell(rows: list[dict]) -> str:
    mean = {k: np.mean([np.nan if r[k] is None else r[k] for r in rows]) for k in ("truth", "point", "upper", "worst")}
    missed = sum(r["upper"] < r["truth"] for r in rows)
    return f"{mean['truth']:.1%}: {mean['point']:.1%}, < {mean['upper']:.1%} ({mean['worst']:.1%})" + f", {missed} missed" * (missed > 0)


if __name__ == "__main__":
    main()

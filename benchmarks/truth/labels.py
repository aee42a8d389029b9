"""What labels give the calibration, on a finished demo: `make demo && python benchmarks/truth/labels.py`.

The sample world's truth plays the person. Labels of a sheet join planted pairs as in calibrate; what is measured is the calibration on
all texts of the crawl, right and wrong ones weighing the same: log loss, and expected calibration error. Means over some sheets.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blip_core.capfilt.pair_scores import PairScores, pair_scores
from blip_core.review.choose import IDENTITY, JUDGED_BY_SCORE, choose_cards, read_rule
from blip_core.sample.truth import load_truth, truth_of
from blip_core.selection.calibration import Calibration
from blip_core.stages.calibrate import shared_weight
from blip_core.tables.captions import CONTROLS, each_table, read_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 200, 400], help="texts on a sheet")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5, 0.75], help="calibrate.label_share")
    parser.add_argument("--sheets", type=int, default=10)
    args = parser.parse_args()
    generation = args.artifacts / "generations/g1"
    controls = read_table(args.artifacts / "rounds/r1/scores" / CONTROLS)
    planted = pair_scores(controls), controls["truth"].to_numpy()
    crawl = pa.concat_tables(t.filter(pc.is_in(t["reason"], value_set=pa.array(JUDGED_BY_SCORE))) for t in each_table(generation))
    crawl = crawl.filter(pc.not_equal(crawl["source"], "human"))
    truth = np.array(truth_of(crawl, load_truth(args.data)), dtype=bool)
    place = {row: i for i, row in enumerate(zip(*(crawl[c].to_pylist() for c in IDENTITY), strict=True))}
    print("| labels | share | web: loss | ECE | synthetic: loss | ECE |\n|---|---|---|---|---|---|")
    show("none", "", [Calibration.fit(*planted)], crawl, truth)
    for count in args.counts:
        sheets = [choose_cards(generation, rule=read_rule(generation), count=count, seed=seed) for seed in range(args.sheets)]
        drawn = [[r for card in cards for r in card.rows] for cards in sheets]
        found = [(np.array([place[tuple(getattr(r.pair, c) for c in IDENTITY)] for r in rows]), [r.weight for r in rows]) for rows in drawn]
        for share in args.shares:
            show(str(count), str(share), [taught(planted, crawl, truth, rows, weight, share) for rows, weight in found], crawl, truth)


def taught(planted: tuple, crawl: pa.Table, truth: np.ndarray, rows: np.ndarray, weight: list[float], share: float) -> Calibration:
    """Planted pairs and these rows of the crawl together."""
    count, own = len(planted[1]), pair_scores(crawl.take(rows))
    scores = PairScores(*(np.concatenate([getattr(planted[0], name), getattr(own, name)]) for name in ("itm_logit", "itc")))
    both, labelled = np.concatenate([planted[1], truth[rows]]), np.arange(count + len(rows)) >= count
    synthetic = np.concatenate([np.zeros(count, dtype=bool), pc.equal(crawl.take(rows)["source"], "synthetic").to_numpy()])
    return Calibration.fit(scores, both, synthetic=synthetic, weight=shared_weight(both, labelled, np.r_[np.ones(count), weight], share))


def show(labels: str, share: str, calibrations: list[Calibration], crawl: pa.Table, truth: np.ndarray) -> None:
    cells = []
    for source in ("web", "synthetic"):
        own = pc.equal(crawl["source"], source).to_numpy()
        scores = pair_scores(crawl.filter(pa.array(own)))
        measured = [errors(c.match(scores, synthetic=source == "synthetic"), truth[own]) for c in calibrations]
        cells += [f"{value:.3f}" for value in np.mean(measured, axis=0)]
    print(f"| {labels} | {share} | {' | '.join(cells)} |")


def errors(match: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Log loss and ECE in 15 bins, right and wrong texts weighing the same."""
    weight = np.where(truth, 0.5 / truth.sum(), 0.5 / (~truth).sum())
    likely = np.where(truth, match, 1 - match).clip(1e-9)
    bins = np.array_split(np.argsort(match, kind="stable"), 15)
    return float(-(weight * np.log(likely)).sum()), float(sum(abs((weight[b] * (truth[b] - match[b])).sum()) for b in bins))


if __name__ == "__main__":
    main()

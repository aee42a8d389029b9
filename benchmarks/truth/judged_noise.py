"""How often people's labels bound the noise of the kept texts, and how near: `make demo && python benchmarks/truth/judged_noise.py`.

The sample world's truth plays the person. "as it is": the bound of the generation that the sheet was drawn of. "chosen anew": labels of a
sheet that asks about kept and dropped texts calibrate the filter first, as the chain does; texts are chosen anew by it, and those labels
bound the noise of what is kept then. Cells: share of the sheets whose bound covers the truth; how many points the bound lies above it, on
average; in how many sheets fewer than --least judged texts are kept, so that labels bound nothing.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blip_core.capfilt.pair_scores import pair_scores
from blip_core.review.choose import IDENTITY, JUDGED_BY_SCORE, choose_cards, read_rule
from blip_core.sample.truth import load_truth, truth_of
from blip_core.selection.judged_noise import bounded
from blip_core.selection.labels import Judged
from blip_core.tables.captions import CONTROLS, KEPT, each_table, read_table
from labels import taught

SHEETS = {"as by default": {}, "kept texts": {"kept": True}, "kept web": {"kept": True, "source": "web"}}
SHEETS["kept synthetic"] = {"kept": True, "source": "synthetic"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 200, 400], help="texts on a sheet")
    parser.add_argument("--sheets", type=int, default=200)
    parser.add_argument("--least", type=int, default=30, help="gate.min_labels")
    parser.add_argument("--label-share", type=float, default=0.5, help="calibrate.label_share")
    args = parser.parse_args()
    world = World(args.artifacts, args.data, args.label_share)
    columns = [f"{when}: {what}" for when in ("as it is", "chosen anew") for what in ("covered", "points above", "no bound")]
    print(f"| sheet | labels | source | {' | '.join(columns)} |\n{'|---' * 9}|")
    for name, asked in SHEETS.items():
        for count in args.counts:
            sheets = [world.sheet(count, seed, asked) for seed in range(args.sheets)]
            for source in [asked["source"]] if "source" in asked else ["web", "synthetic"]:
                as_it_is, anew = ([world.bound(*sheet, source, anew=anew, least=args.least) for sheet in sheets] for anew in (False, True))
                print(f"| {name} | {count} | {source} | {told(as_it_is)} | {'| |' if asked else told(anew)} |", flush=True)


def told(found: list[tuple[float, float] | None]) -> str:
    """`found`: bound and truth of each sheet."""
    none, bounds = found.count(None), np.array([pair for pair in found if pair]).reshape(-1, 2).T
    if not bounds.size:
        return f"| | {none} of {none}"
    return f"{100 * np.mean(bounds[0] >= bounds[1]):.1f}% | {100 * np.mean(bounds[0] - bounds[1]):.1f} | {none} of {len(found)}"


class World:
    """The texts of a finished demo's crawl whose fate hung on the score, and the truth."""

    def __init__(self, artifacts: Path, data: Path, label_share: float):
        self.generation, self.label_share = artifacts / "generations/g1", label_share
        crawl = pa.concat_tables(t.filter(pc.is_in(t["reason"], value_set=pa.array(JUDGED_BY_SCORE))) for t in each_table(self.generation))
        self.crawl = crawl.filter(pc.not_equal(crawl["source"], "human"))
        self.truth = np.array(truth_of(self.crawl, load_truth(data)), dtype=bool)
        self.match, self.source = self.crawl["match"].to_numpy(), np.array(self.crawl["source"].to_pylist())
        self.kept = np.array(self.crawl["reason"].to_pylist()) == KEPT
        self.place = {row: i for i, row in enumerate(zip(*(self.crawl[c].to_pylist() for c in IDENTITY), strict=True))}
        controls = read_table(artifacts / "rounds/r1/scores" / CONTROLS)
        self.planted = pair_scores(controls), controls["truth"].to_numpy()
        self.threshold = read_rule(self.generation).threshold

    def sheet(self, count: int, seed: int, asked: dict) -> tuple[np.ndarray, list[Judged], np.ndarray]:
        """Rows of the drawn texts, what people say of them, and P(match) of all texts once these labels have taught the calibration."""
        cards = choose_cards(self.generation, rule=read_rule(self.generation, **asked), count=count, seed=seed)
        rows = [r for card in cards for r in card.rows]
        places = np.array([self.place[tuple(getattr(r.pair, c) for c in IDENTITY)] for r in rows])
        said = [Judged(r.pair, float(self.truth[i]), r.weight) for r, i in zip(rows, places, strict=True)]
        calibration = taught(self.planted, self.crawl, self.truth, places, [r.weight for r in rows], self.label_share)
        match = np.empty(len(self.truth))
        for source in self.threshold:
            own = self.source == source
            match[own] = calibration.match(pair_scores(self.crawl.filter(pa.array(own))), synthetic=source == "synthetic")
        return places, said, match

    def bound(
        self, places: np.ndarray, said: list[Judged], taught_match: np.ndarray, source: str, *, anew: bool, least: int
    ) -> tuple[float, float] | None:
        """The bound and the truth; None where fewer than `least` of the judged texts are kept."""
        match, kept = (taught_match, taught_match >= self.threshold[source]) if anew else (self.match, self.kept)
        kept = kept & (self.source == source)
        drawn = [(j, match[i]) for j, i in zip(said, places, strict=True) if kept[i]]
        if len(drawn) < least:
            return None
        return bounded(drawn, float(match[kept].mean()), 0.05).upper, float(np.mean(~self.truth[kept]))


if __name__ == "__main__":
    main()

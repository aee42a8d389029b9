"""When does bootstrapping pay? A map over crawls and clean sets of the sample world, with every arm at equal compute and at equal steps.

    nice python benchmarks/truth/regimes.py --work /tmp/regimes          # until all cells are there; stop it and start it at will
    python benchmarks/truth/regimes.py --page docs/results.md            # trains nothing: tables and figure of the cells that are there

A cell is a world: the share of the crawl's texts that are true, how much these say, the size of the clean set, a seed. Its arms are those
of regimes.yaml, run as `blip ablate` runs its own: DVC stages in a clone of the last commit, so a cell that was stopped goes on. A cell is
one file in benchmarks/results/regimes/, which grows by an arm at a time; the clone of a whole one is deleted. Corners come first.
"""

import argparse
import logging
import shutil
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from open_gate import OPEN

from blip_core.ablations.arms import arm_values, read_arms
from blip_core.ablations.run import ablate
from blip_core.config.reading import laid_over, read_values
from blip_core.files.atomic import new_file
from blip_core.files.content import read_json, write_json
from blip_core.runtime.times import read_times
from blip_core.stages.compare import paired_comparison

log = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]
ARMS, RESULTS = Path(__file__).with_suffix(".yaml"), ROOT / "benchmarks/results/regimes"
TRUE, CLEAN = (0.05, 0.8, 0.2, 0.1, 0.4), (1000, 100, 250)  # the ends first
SAYS = {"terse": {"terse": 1.0}, "full": {"clean": 1.0}}
NOISE = {"mismatch": 0.5, "boilerplate": 0.14 / 0.6, "partial": 0.1 / 0.6, "general": 0.1}  # as in params.yaml
# over params.yaml: a smaller world, shorter trainings, and a gate that lets everything pass, for a map has no use for refusals
WORLD: dict[str, Any] = {
    "sample": {"num_web": 6000, "num_val": 150, "num_test": 300},
    "pretrain": {"optim": {"steps": 250}},
    "tune_captioner": {"optim": {"steps": 120}},
    "tune_filter": {"optim": {"steps": 120}},
    "score": {"controls_per_image": 8},
    "gate": OPEN,
}
# what arms pay for besides their last training, by runs of stages; the filter scores as many captions as web texts
FILTER = {"base/pretrain-g0": 1.0, "r1/tune_filter": 1.0, "r1/calibrate": 1.0, "r1/score": 0.5}
CAPTIONER = {"base/pretrain-g0": 1.0, "r1/tune_captioner": 1.0, "r1/caption": 1.0}
BOTH = FILTER | CAPTIONER | {"r1/score": 1.0}
PAYS = {"F": FILTER, "F-long": FILTER, "C": CAPTIONER, "CF": BOTH, "CF-human": BOTH, "CF-long": BOTH, "oracle": BOTH}


@dataclass(frozen=True)
class Cell:
    true: float  # share of the crawl's texts
    clean: int  # pictures that people described
    says: str  # of SAYS: what a true text of the crawl is like
    seed: int

    @property
    def name(self) -> str:
        return f"{self.true:.0%}-{self.clean}-{self.says}-{self.seed}".replace("%", "")

    def values(self, values: dict[str, Any]) -> dict[str, Any]:
        """Those of params.yaml, as this cell has them."""
        kinds = {k: self.true * share for k, share in SAYS[self.says].items()} | {k: (1 - self.true) * s for k, s in NOISE.items()}
        sample = values["sample"] | {"num_train": self.clean, "web_kinds": kinds}
        return laid_over(values | {"sample": sample}, WORLD)


def cells() -> list[Cell]:
    """All of the map: corners at three seeds, the others at one."""
    corners = [Cell(t, c, s, seed) for seed in range(3) for t, c, s in product(TRUE[:2], CLEAN[:2], SAYS)]
    return list(dict.fromkeys([*corners, *(Cell(t, c, s, 0) for t, c, s in product(TRUE, CLEAN, SAYS))]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / ".work/regimes", help="where the clones lie")
    parser.add_argument("--results", type=Path, default=RESULTS, help="a file for each cell; default: %(default)s")
    parser.add_argument("--page", type=Path, help="a Markdown page to put the map into, with its figure beside it; nothing is run")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.page:
        from regimes_page import write_map

        write_map(args.results, args.page)
        return
    for cell in cells():
        run(cell, args.work / cell.name, args.results / f"{cell.name}.json")


def run(cell: Cell, work: Path, out: Path) -> None:
    """Nothing where `out` is whole. Until then it is what `ablate` writes, arm by arm. Of an arm that failed it has the reason alone."""
    if out.exists() and "cpu_seconds" in read_json(out):
        return
    log.info("cell %s", cell.name)
    values = cell.values(read_values(ROOT / "params.yaml"))
    work.mkdir(parents=True, exist_ok=True)
    with new_file(params := work / "params.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(values, sort_keys=False))
    failed = ablate(ROOT, params, seeds=[cell.seed], names=None, out=out, work=work, compare=paired_comparison, file=ARMS)
    clone = work / "ablate" / str(cell.seed)
    write_json(read_json(out) | {"failed": failed, "gate": gate(clone), "cpu_seconds": spent(clone, values)}, out)
    shutil.rmtree(work)


def spent(clone: Path, values: dict[str, Any]) -> dict[str, dict[str, float]]:
    """CPU seconds of the default chain's stages without their start-up, and of the arms by these: trainings of any length cost what g0's
    steps cost."""
    stages = {t.run: t.cpu_seconds - t.overhead_cpu_seconds for t in read_times(clone / ".work") if "/" in t.run}
    a_step = stages["base/pretrain-g0"] / values["pretrain"]["optim"]["steps"]
    arms = {}
    for name, arm in read_arms(ARMS).arms.items():
        before = sum(share * stages[run] for run, share in PAYS.get(name, {}).items())
        arms[name] = before + a_step * arm_values(name, arm, values)["pretrain"]["optim"]["steps"]
    return {part: {name: round(value, 1) for name, value in found.items()} for part, found in (("stages", stages), ("arms", arms))}


def gate(clone: Path) -> dict[str, float | None]:
    """What the gate says of the web texts that the filter left."""
    facts = read_json(clone / "artifacts/metrics/gate-r1.json")
    return {"estimate": facts.get("residual_noise_web"), "bound": facts.get("residual_noise_web_upper")}


if __name__ == "__main__":
    main()

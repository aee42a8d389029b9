"""Does bootstrapping pay where trainings are long? Arms at equal compute on a finished demo's texts, compared pair by pair.

    make demo && nice python benchmarks/truth/longer.py --project . [--steps 2946] [--arms long F CF oracle]

Every arm may spend so many steps in all. What came before its last training counts in steps of pretraining, by the CPU seconds of the demo
(`blip times`): 500 for g0, and for tunings, calibration, captions and scores 446 where both captioner and filter are at work, 251 for the
filter alone. The last training has the rest, from random weights.

  long    the crawl as it is, and the clean set
  F       the web texts that the filter leaves
  CF      besides these the captions that it leaves
  oracle  as CF, but its captions are true, as many, at pictures drawn at random

Steps are stages of the project, `blip stage NAME`, below --out; a stage that ended is not run again, and one that was killed goes on. The
project's own files stay as they are. Writes benchmarks/results/longer-<seed>.json and prints its table.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from open_gate import OPEN

from blip_core.config.params import load_params
from blip_core.config.reading import laid_over, read_values
from blip_core.evaluation.task_metrics import Evidence
from blip_core.files.atomic import new_file
from blip_core.files.content import read_json, write_json
from blip_core.stages.compare import paired_comparison

ROOT = Path(__file__).resolve().parents[2]
BEFORE = {"long": 0, "F": 500 + 251, "CF": 500 + 446, "oracle": 500 + 446}  # steps that an arm has spent before its last training
PAIRS = [("F", "long"), ("CF", "long"), ("CF", "F"), ("oracle", "F"), ("oracle", "CF")]
METRICS = ("tr_r1", "ir_r1", "cider")


class Arm:
    """One arm in a folder of its own, over the artifacts of a finished demo."""

    def __init__(self, project: Path, out: Path, name: str, steps: int):
        self.project, self.folder, self.name = project, out / name, name
        self.artifacts, self.round = project / "artifacts", project / "artifacts/rounds/r1"
        values: dict[str, Any] = {"pretrain": {"optim": {"steps": steps - BEFORE[name]}}}
        if name == "F":
            values |= {"assemble": {"sources": ["web"]}, "gate": OPEN}
        self.params = self.folder / "params.yaml"
        self.folder.mkdir(parents=True, exist_ok=True)
        with new_file(self.params) as temporary:
            temporary.write_text(yaml.safe_dump(laid_over(read_values(project / "params.yaml"), values), sort_keys=False))

    def run(self) -> None:
        """Its texts, its last training, its evaluation."""
        generation, gate = self.texts()
        shared = {"shards": self.artifacts / "shards"}
        made = {"out": self.folder / "model", "out-history": self.folder / "history.csv", "out-metrics": self.folder / "training.json"}
        sources = "human,web" if self.name == "long" else "human,web,synthetic"
        vocab = self.artifacts / "tokenizer.json"
        self.stage("pretrain", **shared, generation=generation, gate=gate, sources=sources, vocab=vocab, **made)
        made = {"out": self.folder / "evaluation", "out-metrics": self.folder / "metrics.json"}
        heldout, columns = self.artifacts / "heldout", self.project / "columns"
        self.stage("evaluate", **shared, model=self.folder / "model", heldout=heldout, columns=columns, **made)

    def texts(self) -> tuple[Path, Path]:
        """Generation and gate file."""
        own = self.folder / "generation", self.folder / "gate.json"
        if self.name == "F":
            self.filtered(*own)
        elif self.name == "oracle":
            self.true_captions(*own)
        else:
            return self.of("g0" if self.name == "long" else "g1")
        return own

    def of(self, generation: str) -> tuple[Path, Path]:
        """Folder and gate file of one that the demo made."""
        return self.artifacts / f"generations/{generation}", self.artifacts / f"gates/{generation}.json"

    def filtered(self, generation: Path, gate: Path) -> None:
        told = {"scores": self.round / "scores", "calibration": self.round / "calibration.json"}
        (crawl, _), facts = self.of("g0"), self.folder / "assemble.json"
        self.stage("assemble", **told, generation=crawl, out=generation, **{"out-metrics": facts})
        read = {"shards": self.artifacts / "shards", "columns": self.project / "columns", "labels": self.project / "labels/r1"}
        files = {
            "metrics": "gate-metrics.json",
            "docs": "docs",
            "summary": "gate-summary.json",
            "curve": "curve.csv",
            "histogram": "hist.csv",
        }
        made = {f"out-{name}": self.folder / file for name, file in files.items()}
        self.stage("gate", **told, **read, generation=generation, **{"out-gate": gate}, **made)

    def true_captions(self, generation: Path, gate: Path) -> None:
        if gate.exists():
            return
        read, judged = self.of("g1")
        made = {"out": generation, "out-gate": gate}
        self.call("blip_core.ablations.oracle", generation=read, gate=judged, data=self.project / "data", params=self.params, **made)

    def stage(self, stage: str, **paths: Any) -> None:
        """Unless it has ended before: its metrics come last."""
        if not paths["out-metrics"].exists():
            self.call("blip_core", "stage", stage, params=self.params, work=self.folder / "work", **paths)

    def call(self, module: str, *words: str, **paths: Any) -> None:
        flags = [word for name, value in paths.items() for word in (f"--{name}", str(value))]
        subprocess.run(
            [sys.executable, "-m", module, *words, *flags], cwd=self.project, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True
        )

    @property
    def evidence(self) -> Evidence:
        return Evidence(self.folder / "evaluation", self.folder)


def measured(arms: dict[str, Arm], project: Path, steps: int) -> dict[str, Any]:
    """What each arm reaches, and the difference of each pair of them with its interval."""
    params = load_params(project / "params.yaml")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    pairs = {
        f"{a} - {b}": paired_comparison(arms[a].evidence, arms[b].evidence, cfg=params.compare, seed=params.seed)["metrics"]
        for a, b in PAIRS
        if a in arms and b in arms
    }
    found = {name: read_json(arm.folder / "metrics.json") for name, arm in arms.items()}
    return {
        "commit": commit,
        "seed": params.seed,
        "steps": steps,
        "arms": {name: {m: [f[m], f[f"{m}_low"], f[f"{m}_high"]] for m in METRICS} for name, f in found.items()},
        "pairs": {name: {m: [tests[m][k] for k in ("difference", "low", "high")] for m in METRICS} for name, tests in pairs.items()},
    }


def table(found: dict[str, Any]) -> str:
    lines = [f"seed {found['seed']}, {found['steps']:,} steps in all | text R@1 | image R@1 | CIDEr", "---|---|---|---"]
    for part, shape in (("arms", "{:.3f} [{:.3f}, {:.3f}]"), ("pairs", "{:+.3f} [{:+.3f}, {:+.3f}]")):
        lines += [" | ".join([name, *(shape.format(*values[m]) for m in METRICS)]) for name, values in found[part].items()]
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, default=ROOT, help="where the demo has run; default: %(default)s")
    parser.add_argument("--out", type=Path, help="default: .work/longer of the project")
    parser.add_argument("--steps", type=int, default=2946, help="of an arm in all; default: %(default)s")
    parser.add_argument("--arms", nargs="+", choices=BEFORE, default=list(BEFORE), help="default: all")
    args = parser.parse_args()
    if args.steps <= (least := max(BEFORE[name] for name in args.arms)):
        parser.error(f"--steps {args.steps}: expected more than {least}, which an arm has spent before its last training")
    project = args.project.resolve()
    out = (args.out or project / ".work/longer").resolve() / str(args.steps)
    arms = {name: Arm(project, out, name, args.steps) for name in args.arms}
    for arm in arms.values():
        arm.run()
    found = measured(arms, project, args.steps)
    write_json(found, ROOT / f"benchmarks/results/longer-{found['seed']}.json")
    print(table(found))


if __name__ == "__main__":
    main()

"""Does bootstrapping help on photographs? The chain on a clean set and a crawl whose noise is known, and a linear floor beside every model.

    python benchmarks/truth/photos.py PHOTOS [--out .work/photos] [--gpu] [--set KEY=VALUE …] [--arms ARM …]

PHOTOS has `captions.csv` (file_name, split, caption) and the pictures, in `images.tar` or as files; photo_world.py says what is made of it.
Nothing of it is written but below --out. Where there is no such folder, the command says so and does nothing.

Arms: none (web texts as they are), human (clean set alone), F (filter), CF (captioner and filter), long (none with twice the steps).
Every step is a stage of the project, `blip stage NAME`, on the values of params.yaml with configs/photos-small.yaml laid over them
(--gpu: configs/photos-gpu.yaml, a ViT-S/16 at 128 pixels). A stage that ended is not run again, and one that was killed goes on from its
last checkpoint. The tables are printed after each arm, and lie in --out as report.md. Runs from a bare checkout that has the packages of
pyproject.toml.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import yaml  # noqa: E402
from open_gate import OPEN  # noqa: E402
from photo_report import report  # noqa: E402
from photo_world import lay_out  # noqa: E402

from blip_core.config.params import load_params  # noqa: E402
from blip_core.config.reading import laid_over, read_values  # noqa: E402
from blip_core.files.atomic import new_file  # noqa: E402
from blip_core.files.content import write_json  # noqa: E402
from flows.values import add_set  # noqa: E402

ARMS = ("none", "human", "F", "CF", "long")
A = "artifacts"
G0 = {"generation": f"{A}/generations/g0"}
SHARDS, HELDOUT, COLUMNS = {"shards": f"{A}/shards"}, {"heldout": f"{A}/heldout"}, {"columns": "columns"}
GATE, CALIBRATION, SCORES = {"gate": f"{A}/gates/g0.json"}, {"calibration": f"{A}/r1/calibration.json"}, {"scores": f"{A}/r1/scores"}
DECISION, FILTER, CAPTIONER = {"after": f"{A}/decisions/g0.json"}, {"filter": f"{A}/r1/filter"}, {"captioner": f"{A}/r1/captioner"}


@dataclass(frozen=True)
class Step:
    """A stage of the project, as it is run here."""

    stage: str
    flags: dict[str, str]
    of: str = ""  # the model or generation that it makes
    values: str = "params"  # which file of values

    @property
    def label(self) -> str:
        return f"{self.stage} {self.of}".strip()

    def command(self) -> list[str]:
        flags = [part for flag, value in self.flags.items() for part in (f"--{flag}", value)]
        return [sys.executable, "-m", "blip_core", "stage", self.stage, "--params", f"{self.values}.yaml", "--work", "work", *flags]


def _training(name: str) -> dict[str, str]:
    return {"out-history": f"{A}/history/{name}.csv", "out-metrics": f"{A}/metrics/{name}.json"}


def base_steps() -> list[Step]:
    made = {
        "out-shards": SHARDS["shards"],
        "out-generation": G0["generation"],
        "out-heldout": HELDOUT["heldout"],
        "out-metadata": f"{A}/metadata",
    }
    told = {"out-vocab": f"{A}/tokenizer.json", "out-quarantine": f"{A}/quarantine.parquet", "out-metrics": f"{A}/metrics/ingest.json"}
    passed = {"out-gate": GATE["gate"], "out-decision": DECISION["after"], "out-metrics": f"{A}/metrics/validate.json"}
    return [
        Step("ingest", {"data": "data", **made, **told}),
        Step("validate", {**G0, **HELDOUT, **SHARDS, **passed, "out-docs": f"{A}/docs/validate"}),
    ]


def model_steps(model: str, generation: str, sources: str, values: str = "params") -> list[Step]:
    """A model from scratch, and what it is worth."""
    data = {"generation": f"{A}/generations/{generation}", "gate": f"{A}/gates/{generation}.json", "sources": sources}
    out, shown = {"out": f"{A}/models/{model}"}, {"out": f"{A}/evaluations/{model}", "out-metrics": f"{A}/metrics/evaluate-{model}.json"}
    return [
        Step("pretrain", {**data, **SHARDS, "vocab": f"{A}/tokenizer.json", **out, **_training(f"pretrain-{model}")}, model, values),
        Step("evaluate", {"model": out["out"], **HELDOUT, **SHARDS, **COLUMNS, **shown}, model),
    ]


def filter_steps() -> list[Step]:
    tuned = {"out": FILTER["filter"], **_training("filter")}
    calibrated = {"labels": "labels", **COLUMNS, "out": CALIBRATION["calibration"], "out-metrics": f"{A}/metrics/calibration.json"}
    return [
        Step("tune_filter", {**DECISION, "base": f"{A}/models/none", **G0, **SHARDS, **GATE, **tuned}),
        Step("calibrate", {**FILTER, **SHARDS, **HELDOUT, **calibrated}),
    ]


def captioner_steps() -> list[Step]:
    tuned = {"out": CAPTIONER["captioner"], **_training("captioner")}
    return [
        Step("tune_captioner", {**DECISION, "base": f"{A}/models/none", **G0, **SHARDS, **GATE, **tuned}),
        Step("caption", {"round": "r1", **CAPTIONER, **G0, **SHARDS, **GATE, "out": f"{A}/r1/captions"}),
        Step("score", {**FILTER, **G0, "captions": f"{A}/r1/captions", **SHARDS, **HELDOUT, "out": SCORES["scores"]}),
    ]


def choice_steps(generation: str) -> list[Step]:
    """F or CF: what stays of the texts, and what the gate says of it."""
    made, summary = {"generation": f"{A}/generations/{generation}"}, f"{A}/gate-{generation}"
    drawn = {"out-docs": f"{summary}/docs", "out-summary": f"{summary}/summary.json", "out-curve": f"{summary}/curve.csv"}
    told = {"out-gate": f"{A}/gates/{generation}.json", "out-metrics": f"{A}/metrics/gate-{generation}.json", **drawn}
    chosen = {"out": made["generation"], "out-metrics": f"{A}/metrics/assemble-{generation}.json"}
    judged = {**made, **SCORES, **CALIBRATION, **SHARDS, **COLUMNS, "labels": "labels", **told, "out-histogram": f"{summary}/histogram.csv"}
    return [
        Step("assemble", {**G0, **SCORES, **CALIBRATION, **chosen}, generation, f"params-{generation}"),
        Step("gate", judged, generation, f"params-{generation}"),
    ]


def steps_of(arm: str) -> list[Step]:
    """All that an arm's model takes, what other arms have done already among it."""
    base = base_steps()
    if arm == "human":
        return [*base, *model_steps("human", "g0", "human")]
    if arm == "long":
        return [*base, *model_steps("long", "g0", "human,web", "params-long")]
    none = [*base, *model_steps("none", "g0", "human,web")]
    if arm == "none":
        return none
    sources = {"F": "human,web", "CF": "human,web,synthetic"}[arm]
    return [*none, *filter_steps(), *captioner_steps(), *choice_steps(arm), *model_steps(arm, arm, sources)]


def paid_for(arm: str) -> list[str]:
    """The steps that an arm costs: not what its model is worth, and of F not the captioner, whose texts are scored with the crawl's."""
    free = ("evaluate", "tune_captioner", "caption") if arm == "F" else ("evaluate",)
    return [step.label for step in steps_of(arm) if step.stage not in free]


def nested(dotted: dict[str, Any]) -> dict[str, Any]:
    """`--set` gives a.b=1; params.yaml has {a: {b: 1}}."""
    found: dict[str, Any] = {}
    for key, value in dotted.items():
        for name in reversed(key.split(".")):
            value = {name: value}
        found = laid_over(found, value)
    return found


def write_values(folder: Path, config: Path, settings: dict[str, Any]) -> None:
    """params.yaml and what the arms have of their own. ValueError where the folder holds a run with other values."""
    values = laid_over(laid_over(read_values(ROOT / "params.yaml"), read_values(config)), settings)
    files = {"params": {}, "params-F": {"assemble": {"sources": ["web"]}, "gate": OPEN}, "params-CF": {"gate": OPEN}}
    files["params-long"] = {"pretrain": {"optim": {"steps": 2 * values["pretrain"]["optim"]["steps"]}}}
    for name, own in files.items():
        path = folder / f"{name}.yaml"
        note(path, laid_over(values, own))
        load_params(path)


def note(path: Path, values: dict[str, Any]) -> None:
    """What the run below this folder is of. ValueError where it began with other values."""
    if path.exists() and yaml.safe_load(path.read_text()) != values:
        raise ValueError(f"{path}: a run with other values lies here; name another --out, or remove {path.parent}")
    with new_file(path) as temporary:
        temporary.write_text(yaml.safe_dump(values, sort_keys=False))


def run(folder: Path, step: Step) -> None:
    """Unless it has ended before. CPU seconds are those of the call that ended it: what a killed one took is not among them."""
    path = folder / "costs.json"
    costs = json.loads(path.read_text()) if path.exists() else {}
    if step.label in costs:
        return
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(step.command(), cwd=folder, env=environment, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    costs[step.label] = {"cpu_seconds": round(cpu, 1), "seconds": round(time.monotonic() - start, 1)}
    write_json(costs, path)


def main(args: argparse.Namespace) -> None:
    if not (args.photos / "captions.csv").exists():
        print(f"{args.photos}: no captions.csv there, so there is nothing to measure; name a folder as the one that --help tells of")
        return
    folder, config = args.out, ROOT / "configs" / ("photos-gpu.yaml" if args.gpu else "photos-small.yaml")
    for name in ("columns", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_values(folder, config, nested(args.params or {}))
    layout = {"num_clean": args.clean, "num_val": args.val, "seed": args.seed}
    note(folder / "layout.yaml", layout)
    if not (folder / "truth.csv").exists():
        lay_out(args.photos, folder, **layout)
    for arm in args.arms:
        try:
            for step in steps_of(arm):
                run(folder, step)
        except subprocess.CalledProcessError as e:
            print(f"arm {arm}: ended with code {e.returncode} in {step.label}, which says why above; the other arms go on", flush=True)
        print(report(folder, {a: paid_for(a) for a in ARMS}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / ".work/photos", help="default: %(default)s")
    parser.add_argument("--gpu", action="store_true", help="the values for one large GPU")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="in this order; default: all")
    parser.add_argument("--clean", type=int, default=1500, help="pictures of the clean set; default: %(default)s")
    parser.add_argument("--val", type=int, default=500, help="pictures of val, where the folder has no split of that name beside test")
    parser.add_argument("--seed", type=int, default=0, help="of the layout; that of the trainings is `--set seed=N`")
    add_set(parser, "values laid over those of the file in configs/")
    main(parser.parse_args())

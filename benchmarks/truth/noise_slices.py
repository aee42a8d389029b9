"""Does the bound on the noise that is left cover the truth in each slice of the crawl?

    make demo && python benchmarks/truth/noise_slices.py

Takes the demo's generation g1, told by the background of its pictures, and prints a table in Markdown. Half a minute.
"""

import argparse
import csv
import tempfile
from collections.abc import Iterable
from pathlib import Path

from blip_core.config.params import load_params
from blip_core.config.selection import SliceLimits
from blip_core.sample.truth import ImageTruth, Truth, load_truth, web_noise
from blip_core.selection.calibration import read_calibrations
from blip_core.selection.choice import Rule
from blip_core.selection.evidence import crawl_texts, planted_pairs
from blip_core.selection.noise import residual_noise
from blip_core.selection.sliced import by_slices
from blip_core.tables.captions import CONTROLS, read_table, read_tables
from blip_core.tables.slices import Columns

COLUMN = "background"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    args = parser.parse_args()
    truth = load_truth(args.data)
    if truth is None:
        raise ValueError(f"{args.data}: holds no truth.parquet; this is measured on the sample world: run `make demo`")
    facts, kept = measure(args.artifacts, truth), read_tables(args.artifacts / "generations/g1", ["key", "text", "source", "reason"])
    print("| background | web texts | kept | truth | estimate | bound |\n|---|---|---|---|---|---|")
    for value in sorted({t.scene.background for t in truth.values()}):
        noise = web_noise(kept, {key: t for key, t in truth.items() if t.scene.background == value})
        told = [noise.after, *(facts[f"residual_noise_web{end}[{COLUMN}={value}]"] for end in ("", "_upper"))]
        print(f"| {value} | {facts[f'texts_web[{COLUMN}={value}]']:,} | {noise.kept:,} |" + "".join(f" {n:.1%} |" for n in told))


def measure(artifacts: Path, truth: Truth) -> dict[str, float]:
    params, round_ = load_params(artifacts.resolve().parent / "params.yaml"), artifacts / "rounds/r1"
    rule = Rule(params.assemble, read_calibrations(round_ / "calibration.json"))
    cfg = params.gate.model_copy(update={"slices": (SliceLimits(column=COLUMN),)})
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "web.csv"), (item for item in truth.items() if item[0].startswith("web-")))
        write(Path(folder, "clean.csv"), (item for item in truth.items() if not item[0].startswith("web-")))
        columns = Columns(Path(folder), [COLUMN])
    crawl = crawl_texts(artifacts / "generations/g1", rule, columns)
    controls = round_ / "scores" / CONTROLS
    kind, planted = planted_pairs(read_table(controls), rule, columns, where=str(controls))
    whole = residual_noise(kind, planted.judged, crawl["web"].judged, confidence=cfg.confidence)
    return by_slices(crawl, kind, planted, whole, cfg).facts


def write(path: Path, pictures: Iterable[tuple[str, ImageTruth]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("key", COLUMN), *((key, truth.scene.background) for key, truth in pictures)])


if __name__ == "__main__":
    main()

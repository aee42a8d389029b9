"""Does bootstrapping help on other worlds? The whole chain on fresh samples, one clone for each seed.

    python benchmarks/truth/seeds.py 0 1 2

Each clone of HEAD lies in .work/seeds/<seed>; sample and training take that seed, nothing else changes. Running again goes on
where it stopped. Prints a table in Markdown and writes benchmarks/results/seeds.json. About six minutes a seed on two cores.
"""

import argparse
import json
import platform
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
METRICS = {"tr_r1": "text R@1", "ir_r1": "image R@1", "cider": "CIDEr"}


def main(seeds: list[int]) -> None:
    results = {seed: run(seed) for seed in seeds}
    out = ROOT / "benchmarks" / "results" / "seeds.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"machine": f"{platform.machine()}, python {platform.python_version()}", "seeds": results}, indent=1) + "\n")
    print(table(results))


def run(seed: int) -> dict:
    """The chain in a clone of its own; what its files say."""
    folder = ROOT / ".work" / "seeds" / str(seed)
    if not folder.exists():
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        params = folder / "params.yaml"
        params.write_text(re.sub(r"(?m)^(\s*)seed: \d+$", rf"\g<1>seed: {seed}", params.read_text()))
    if not (folder / "data").exists():
        subprocess.run([sys.executable, "-m", "blip_core", "sample", "--out", "data"], cwd=folder, check=True)
        subprocess.run([str(Path(sys.executable).parent / "dvc"), "add", "--quiet", "data"], cwd=folder, check=True)
    subprocess.run([sys.executable, "-m", "flows.bootstrap"], cwd=folder, check=True)
    artifacts = folder / "artifacts"
    models = {p.parent.name: json.loads(p.read_text()) for p in sorted(artifacts.glob("evaluations/*/metrics.json"))}
    return {
        "models": models,
        "comparison": json.loads((artifacts / "compare.json").read_text()),
        "gate": json.loads((artifacts / "metrics/gate-r1.json").read_text()),
        "noise": true_noise(folder),
    }


def true_noise(folder: Path) -> list[float]:
    """Noise of the web texts before and after, by the sample world's truth."""
    sys.path.insert(0, str(ROOT))
    from blip_core.sample.truth import load_truth, web_noise
    from blip_core.tables.captions import read_tables

    noise = web_noise(read_tables(folder / "artifacts/generations/g1"), load_truth(folder / "data"))
    return [noise.before, noise.after]


def table(results: dict[int, dict]) -> str:
    lines = ["| seed | metric | noisy g0 | human only | g1 | g1 - g0 | g1 - human |", "|---|---|---|---|---|---|---|"]
    for seed, result in results.items():
        for metric, name in METRICS.items():
            values = [f"{result['models'][m][metric]:.3f}" for m in ("g0", "human", "g1")]
            gains = [result["comparison"]["baselines"][b][metric] for b in ("g0", "human")]
            shown = [f"{g['difference']:+.3f} [{g['low']:+.3f}, {g['high']:+.3f}]" for g in gains]
            lines.append(f"| {seed} | {name} | " + " | ".join(values + shown) + " |")
    lines += ["", "| seed | web noise before | after | gate's estimate | its upper bound |", "|---|---|---|---|---|"]
    for seed, result in results.items():
        gate = result["gate"]
        numbers = [*result["noise"], gate["residual_noise_web"], gate["residual_noise_web_upper"]]
        lines.append(f"| {seed} | " + " | ".join(f"{n:.1%}" for n in numbers) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", type=int, nargs="*", default=[0, 1, 2])
    main(parser.parse_args().seeds)

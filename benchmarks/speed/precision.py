"""Does bf16 autocast train as well as fp32? The sample's pretraining in both, the same seeds and batches, one after the other.

    make demo && python benchmarks/speed/precision.py [STEPS] [SEED ...]

Reads the demo's artifacts (g0, shards, vocabulary). Prints the losses at the end (mean of the last tenth), R@1 by ITC on the test
images, and the time of each; writes benchmarks/results/precision.json. With 300 steps and two seeds about six minutes on one core.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from blip_core.config.params import Params, load_params  # noqa: E402
from blip_core.stages.evaluate import evaluate  # noqa: E402
from blip_core.stages.pretrain import pretrain  # noqa: E402

SHOWN = ("itc", "itm", "lm")


def run(params: Params, precision: str, steps: int, seed: int) -> dict[str, float]:
    """Losses, recall and seconds of one training."""
    a = ROOT / "artifacts"
    cfg = params.pretrain.model_copy(update={"optim": params.pretrain.optim.model_copy(update={"precision": precision, "steps": steps})})
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        began = time.perf_counter()
        files = (out / "model", out / "history.csv", out / "metrics.json")
        inputs = (a / "generations/g0", "human,web", a / "shards", a / "gates/g0.json", a / "tokenizer.json")
        pretrain(*inputs, *files, cfg=cfg, model_cfg=params.model, seed=seed, work=out / "work")
        seconds = time.perf_counter() - began
        evaluate(files[0], a / "heldout", a / "shards", out / "evaluation", out / "evaluation.json", cfg=params.evaluate, seed=seed)
        measured, losses = (json.loads(p.read_text()) for p in (out / "evaluation.json", files[2]))
    return {**{k: losses[k] for k in SHOWN}, "tr_r1": measured["tr_r1"], "ir_r1": measured["ir_r1"], "seconds": seconds}


def main(steps: int, seeds: list[int]) -> None:
    params = load_params(ROOT / "params.yaml")
    results = {seed: {p: run(params, p, steps, seed) for p in ("fp32", "bf16")} for seed in seeds}
    out = ROOT / "benchmarks/results/precision.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"steps": steps, "seeds": results}, indent=1) + "\n")
    print("| seed | precision | ITC | ITM | LM | text R@1 | image R@1 | seconds |\n|---|---|---|---|---|---|---|---|")
    for seed, both in results.items():
        for precision, r in both.items():
            losses = " | ".join(f"{r[k]:.3f}" for k in SHOWN)
            print(f"| {seed} | {precision} | {losses} | {r['tr_r1']:.3f} | {r['ir_r1']:.3f} | {r['seconds']:.0f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", type=int, nargs="?", default=300)
    parser.add_argument("seeds", type=int, nargs="*", default=[0, 1])
    args = parser.parse_args()
    main(args.steps, args.seeds)

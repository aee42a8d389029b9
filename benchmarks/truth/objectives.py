"""What do the optional objectives bring? The sample world, one pre-training for each arm and seed, measured on held-out pictures.

    OMP_NUM_THREADS=1 python benchmarks/truth/objectives.py [0 1 2] [--steps N]

plain      ITC + ITM + LM, the network of params.yaml
masked     the same, 15 % of the tokens masked where ITC and ITM read them
ncd        the same with noise-contrastive decoding: weight 1, one copy, 30 % of its words replaced
small      a network of half the width, ITC + ITM + LM
distilled  the same, taught by the seed's `plain` (weights 1, 1, 1)

All arms of a seed see the same batches in the same order. `masked` and `ncd` are compared with `plain`, `distilled` with `small`. Running
again goes on where it stopped, in .work/objectives/; what has finished stands in the table and in benchmarks/results/objectives.json. About
four CPU minutes a seed.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from blip_core.config.model import ModelConfig
from blip_core.config.params import Params, load_params
from blip_core.config.training import OptionalConfig
from blip_core.sample.write import write_sample
from blip_core.stages.evaluate import evaluate
from blip_core.stages.ingest import ingest
from blip_core.stages.pretrain import pretrain
from blip_core.stages.validate import validate

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks/speed"))

from side_by_side import write  # noqa: E402

SIZES = {"num_web": 800, "num_train": 250, "num_val": 60, "num_test": 200}
METRICS = {"tr_r1": "text R@1", "ir_r1": "image R@1", "itm_tr_r1": "text R@1 by ITM", "cider": "CIDEr"}
NCD = {"weight": 1.0, "copies": 1, "replaced": 0.3}
BASES = {"masked": "plain", "ncd": "plain", "distilled": "small"}  # what an arm is compared with
ARMS = ("plain", "masked", "ncd", "small", "distilled")


def optional(arm: str, artifacts: Path) -> OptionalConfig | None:
    values: dict[str, Any] = {
        "masked": {"masked_tokens": 0.15},
        "ncd": {"contrastive_decoding": NCD},
        "distilled": {"distillation": {"teacher": artifacts / "models/plain", "itc": 1.0, "itm": 1.0, "lm": 1.0}},
    }
    return OptionalConfig(**values[arm]) if arm in values else None


def model_config(arm: str, params: Params) -> ModelConfig:
    """Of the arm's network."""
    values = params.model.model_dump()
    if arm in ("small", "distilled"):
        values["vision"] |= {"width": 64}
        values["text"] |= {"width": 64, "mlp_width": 256}
        values["embed_dim"] = 32
    return ModelConfig(**values)


def make_artifacts(root: Path, params: Params, seed: int) -> Path:
    """The sample world as the stages before pre-training leave it."""
    a = root / "artifacts"
    if (a / "gates/g0.json").exists():
        return a
    write_sample(root / "data", params.sample.model_copy(update={**SIZES, "seed": seed}))
    outs = ("shards", "generations/g0", "heldout", "metadata", "tokenizer.json", "quarantine.parquet", "metrics/ingest.json")
    ingest(root / "data", *(a / out for out in outs), cfg=params.ingest, work=root / "work")
    checked = (a / "generations/g0", a / "heldout", a / "shards", a / "gates/g0.json", a / "decisions/g0.json")
    limits = {"cfg": params.section("validate"), "gate_cfg": params.gate, "score_cfg": params.score}
    validate(*checked, a / "metrics/validate.json", a / "docs/validate", **limits)
    return a


def run(arm: str, seed: int, steps: int, params: Params) -> dict[str, float]:
    """The metrics of an arm, trained and measured if nobody has yet."""
    a = make_artifacts(ROOT / f".work/objectives/{steps}-{seed}", params, seed)
    metrics = a / f"metrics/{arm}.json"
    if not metrics.exists():
        optim = params.pretrain.optim.model_copy(update={"steps": steps})
        cfg = params.pretrain.model_copy(update={"optim": optim, "optional": optional(arm, a)})
        outs = (a / "models" / arm, a / f"history/{arm}.csv", a / f"metrics/pretrain-{arm}.json")
        inputs = (a / "generations/g0", "human,web", a / "shards", a / "gates/g0.json", a / "tokenizer.json")
        if not outs[0].exists():
            pretrain(*inputs, *outs, cfg=cfg, model_cfg=model_config(arm, params), seed=seed, work=a.parent / "work")
        quick = params.evaluate.model_copy(update={"bootstrap": 50})  # its intervals are not looked at
        evaluate(outs[0], a / "heldout", a / "shards", a / "evaluations" / arm, metrics, cfg=quick, seed=seed)
    found = json.loads(metrics.read_text())
    return {name: found[name] for name in METRICS}


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Means over the seeds that both an arm and its base have, and the differences of each seed."""
    lines = ["| arm | against | metric | " + "base | arm | difference of each seed |", "|---|---|---|---|---|---|"]
    for arm, base in BASES.items():
        seeds = [s for s, by_arm in results.items() if arm in by_arm and base in by_arm]
        for metric, name in METRICS.items() if seeds else ():
            pairs = [(results[s][base][metric], results[s][arm][metric]) for s in seeds]
            means = [sum(column) / len(pairs) for column in zip(*pairs, strict=True)]
            differences = ", ".join(f"{after - before:+.3f}" for before, after in pairs)
            lines.append(f"| {arm} | {base} | {name} | {means[0]:.3f} | {means[1]:.3f} | {differences} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150)
    args = parser.parse_args()
    params = load_params(ROOT / "params.yaml")
    results: dict[str, dict[str, dict[str, float]]] = {}
    for seed in args.seeds:
        for arm in ARMS:
            results.setdefault(str(seed), {})[arm] = run(arm, seed, args.steps, params)
            write("objectives", {"steps": args.steps, "sample": SIZES, "seeds": results})
    print(table(results))


if __name__ == "__main__":
    main()

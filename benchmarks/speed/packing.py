"""What does leaving out the padding of texts save? A pre-training step of the sample world, with padding and without it.

    make demo && OMP_NUM_THREADS=1 python benchmarks/speed/packing.py [--runs N] [--precision fp32|bf16]

Reads the demo's artifacts (g0, shards, vocabulary): its texts, its batches, its model. The losses of a step must agree to 1e-4 (0.05 in
bf16) before anything is timed. A step is forward, backward, AdamW and the momentum update; no data loading. Sides alternate in one
process. Writes benchmarks/results/packing-<precision>.json.
"""

import argparse
from contextlib import nullcontext
from functools import partial
from itertools import count
from pathlib import Path
from unittest import mock

import torch
from side_by_side import ROOT, alternate, compared, show, write

from blip_core.config.params import load_params
from blip_core.model import med
from blip_core.model.packing import Packing
from blip_core.tables.shards import ShardImages
from blip_core.tokenizer.folders import load_tokenizer
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.training.batches import Batches, Rows, batch_shares
from blip_core.training.loop import _train_step, make_optimizer, parallel
from blip_core.training.objectives import PretrainObjective
from blip_core.training.step import Batch
from blip_core.weights.checkpoint import new_model

WITH, WITHOUT = "with padding", "without"


class Side:
    """A model of its own, stepped as `blip_core.training.loop` does it."""

    def __init__(self, batches: list[Batch], tokenizer: Tokenizer, precision: str, *, padded: bool):
        params = load_params(ROOT / "params.yaml")
        self.batches, self.places = batches, count()
        self.cfg = params.pretrain.optim.model_copy(update={"precision": precision})
        model = new_model(params.model, tokenizer, seed=0)
        objective = PretrainObjective(model, params.pretrain.contrast, params.pretrain.language)
        self.stepper, self.optimizer = parallel(model, objective), make_optimizer(model, objective, self.cfg)
        # as on other devices than a CPU
        self.how = partial(mock.patch.object, med, "Packing", partial(Packing, keep_padding=True)) if padded else nullcontext

    def __call__(self) -> dict[str, float]:
        batch = self.batches[next(self.places) % len(self.batches)]
        with self.how():
            row = _train_step(self.stepper, self.optimizer, [batch], self.cfg, batch.seed)
        return {name: float(row[name]) for name in ("itc", "itm", "lm")}


def demo_batches(num: int, artifacts: Path = ROOT / "artifacts") -> tuple[list[Batch], Tokenizer]:
    """The first batches that the demo's g0 learns from."""
    params = load_params(ROOT / "params.yaml")
    cfg, tokenizer = params.pretrain, load_tokenizer(artifacts / "tokenizer.json")
    rows = Rows.of(artifacts / "generations/g0", ["human", "web"])
    shares = batch_shares(rows, human=cfg.human_share, synthetic=cfg.synthetic_share)
    options = {"image_size": params.model.vision.image_size, "prompt": cfg.language.prompt, "seed": params.seed}
    batches = Batches(rows, ShardImages(artifacts / "shards"), tokenizer, shares=shares, cfg=cfg.optim, **options)
    return [batches[i] for i in range(num)], tokenizer


def check(sides: dict[str, Side], bound: float) -> float:
    """The greatest difference of the first step's losses; ValueError when it is above the bound."""
    padded, packed = (sides[name]() for name in (WITH, WITHOUT))
    worst = max(abs(padded[name] - packed[name]) for name in padded)
    if worst > bound:
        raise ValueError(f"losses differ by {worst:.2e}: {padded} with padding, {packed} without")
    return worst


def main(runs: int, precision: str) -> None:
    batches, tokenizer = demo_batches(8)
    filled = float(torch.cat([b.mask.flatten() for b in batches]).float().mean())
    sides = {WITH: Side(batches, tokenizer, precision, padded=True), WITHOUT: Side(batches, tokenizer, precision, padded=False)}
    difference = check(sides, 1e-4 if precision == "fp32" else 0.05)
    print(f"tokens fill {filled:.0%} of the places; losses of a step differ by at most {difference:.1e}")
    rows = compared(alternate(sides, runs=runs), theirs=WITH)
    show(f"One pre-training step of the demo, {precision}", rows, items=len(batches[0].keys), unit="images")
    print(write(f"packing-{precision}", {"filled": filled, "greatest_loss_difference": difference, "rows": rows}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=16)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    main(**vars(parser.parse_args()))

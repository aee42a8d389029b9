"""LM's loss over the vocabulary: by chunks of tokens (blip_core/model/vocabulary.py) against all logits at once.

    OMP_NUM_THREADS=1 python benchmarks/speed/vocabulary.py [700 2800]

Width 768 and 30,524 tokens of vocabulary, as ViT-B/16 has them; label smoothing 0.1; forward and backward. The numbers are how many tokens
LM learns in a step: 64 COCO captions have about 700. Losses and gradients must agree before anything is measured. Each side runs in a
process of its own: peak resident memory above that of weights, states and their gradients, and CPU seconds. Writes
benchmarks/results/vocabulary.json.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from side_by_side import cpu_seconds, write
from torch import Tensor

from blip_core.model.vocabulary import Smoothed, chunked_cross_entropy

WIDTH, VOCABULARY, SMOOTHING = 768, 30524, 0.1
SIDES = ("all at once", "in chunks")


def leaves(num_tokens: int) -> tuple[list[Tensor], Tensor]:
    """Hidden states, weight and bias with room for their gradients, and ids."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((num_tokens, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,))
    made = [torch.empty(shape).normal_(0, 0.05, generator=generator).requires_grad_() for shape in shapes]
    return made, torch.randint(0, VOCABULARY, (num_tokens,), generator=generator)


def step(side: str, made: list[Tensor], ids: Tensor, precision: str) -> float:
    """The loss; its gradients are added."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        if side == SIDES[1]:
            losses = chunked_cross_entropy(*made, Smoothed(ids, SMOOTHING))
        else:
            losses = F.cross_entropy(F.linear(*made).float(), ids, label_smoothing=SMOOTHING, reduction="none")
        loss = losses.mean()
    loss.backward()
    return float(loss.detach())


def check() -> float:
    """The greatest difference of a loss or gradient of 600 tokens in fp32, gradients by their largest number; ValueError above 1e-6."""
    (ours, ids), (plain, _) = leaves(600), leaves(600)
    worst = abs(step(SIDES[1], ours, ids, "fp32") - step(SIDES[0], plain, ids, "fp32"))
    for a, b in zip(ours, plain, strict=True):
        assert a.grad is not None and b.grad is not None
        worst = max(worst, float((a.grad - b.grad).abs().max() / b.grad.abs().max()))
    if worst > 1e-6:
        raise ValueError(f"losses or gradients differ by {worst:.1e}")
    return worst


def measure(side: str, num_tokens: int, precision: str) -> None:
    """In a process of its own: prints MiB above the start, and CPU seconds."""
    made, ids = leaves(num_tokens)
    room = [torch.ones_like(t) for t in made]  # a gradient is there at the end whatever the side
    before, began = peak_kib(), cpu_seconds()
    del room
    step(side, made, ids, precision)
    took = cpu_seconds() - began
    print(json.dumps([(peak_kib() - before) / 1024, took]))


def peak_kib() -> int:
    """Peak resident memory of this program; `ru_maxrss` would begin with what its parent had."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens", type=int, nargs="*", default=[700, 2800])
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.side:
        measure(args.side, args.tokens[0], args.precision)
        return
    difference, rows = check(), []
    print(f"greatest difference {difference:.1e}\n\n| tokens | precision | side | MiB | CPU s |\n|---|---|---|---|---|")
    for num_tokens in args.tokens:
        for precision in ("fp32", "bf16"):
            for side in SIDES:
                command = [sys.executable, __file__, str(num_tokens), "--side", side, "--precision", precision]
                mib, took = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                rows.append({"tokens": num_tokens, "precision": precision, "side": side, "mib": round(mib), "cpu_seconds": round(took, 2)})
                print(f"| {num_tokens} | {precision} | {side} | {mib:.0f} | {took:.1f} |", flush=True)
    print(write("vocabulary", {"greatest_difference": difference, "rows": rows}))


if __name__ == "__main__":
    main()

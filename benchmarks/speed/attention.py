"""Why model/attention.py lifts attention to fp32 on a CPU: forward and backward of both precisions, side by side.

    python benchmarks/speed/attention.py

One thread; shapes of the demo's image encoder and of ViT-B/16. Prints the medians of alternating runs, and their ratio.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

SHAPES = {"demo: 64 x 4 x 17 x 32": (64, 4, 17, 32), "ViT-B/16: 4 x 12 x 197 x 64": (4, 12, 197, 64)}
RUNS = 15


def seconds(shape: tuple[int, ...], dtype: torch.dtype) -> float:
    q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
    began = time.perf_counter()
    F.scaled_dot_product_attention(q, k, v).sum().backward()
    return time.perf_counter() - began


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    print(f"{'shape':30} {'bf16 ms':>9} {'fp32 ms':>9} {'ratio':>6}")
    for name, shape in SHAPES.items():
        pairs = [(seconds(shape, torch.bfloat16), seconds(shape, torch.float32)) for _ in range(RUNS + 3)][3:]
        slow, fast = (1000 * statistics.median(times) for times in zip(*pairs, strict=True))
        print(f"{name:30} {slow:9.2f} {fast:9.2f} {slow / fast:6.1f}")


if __name__ == "__main__":
    main()

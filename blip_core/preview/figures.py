"""How a plan speaks: numbers with a prefix, durations, and the speed of this machine's matrix products."""

import functools

import torch

from blip_core.compute.distributed import device

ROWS = 4096  # tokens in the product that is timed
LONGEST_TIMED = 5.0  # seconds of matrix products in the steps that are timed


def scaled(number: float, base: int = 1000) -> str:
    """With three digits and the prefix that fits: 5.31 M, 868 K; base 1024 for bytes."""
    prefixes = ["", "K", "M", "G", "T", "P", "E"]
    while abs(number) >= base * (1 - 0.5e-3) and len(prefixes) > 1:
        number, prefixes = number / base, prefixes[1:]
    return f"{number:.{0 if number >= 99.95 else 1 if number >= 9.995 else 2}f} {prefixes[0]}"


def duration(seconds: float) -> str:
    """In the largest unit of which it has two at least."""
    units = {"days": 86400, "hours": 3600, "minutes": 60, "s": 1, "ms": 1e-3}
    unit, size = next((unit, size) for unit, size in units.items() if seconds >= 2 * size or unit == "ms")
    return f"{seconds / size:,.{0 if seconds >= 10 * size else 1}f} {unit}"


@functools.cache
def product_speed(width: int, precision: str, threads: int) -> float:
    """FLOP/s of one matrix product of a transformer of this width, timed for a fifth of a second on this process's device.

    `threads`: of the CPU; 0 takes those that PyTorch takes."""
    from torch.utils.benchmark import Timer

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    tensors = {
        "a": torch.randn(ROWS, width, dtype=dtype, device=device()),
        "b": torch.randn(width, 4 * width, dtype=dtype, device=device()),
    }
    timed = Timer("a @ b", globals=tensors, num_threads=threads or torch.get_num_threads()).blocked_autorange(min_run_time=0.2)
    return 2 * ROWS * width * 4 * width / timed.median

"""What the benchmarks of a training's step share: steps by their number, losses that must agree, peak memory, the options."""

import argparse
import functools
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import NamedTuple

import torch
from side_by_side import write

Step = Callable[[int], dict[str, float]]  # number of the step to losses


def greatest_difference(theirs: Step, ours: Step, *, steps: int) -> float:
    """Of the losses of the first steps; ValueError when it is above 1e-4."""
    worst = 0.0
    for step in range(steps):
        their_losses, our_losses = theirs(step), ours(step)
        for name, loss in their_losses.items():
            worst = max(worst, abs(loss - our_losses[name]))
            if worst > 1e-4:
                raise ValueError(f"step {step}: {name} is {our_losses[name]:.6f} by ours and {loss:.6f} by the other side")
    return worst


def following(sides: dict[str, Step], *, start: int) -> dict[str, Callable[[], object]]:
    """The next step of each side; each counts for itself, so that all have the same batch in a round."""
    return {name: functools.partial(_next, side, count(start)) for name, side in sides.items()}


def _next(side: Step, numbers: Iterator[int]) -> object:
    return side(next(numbers))


class Benchmark(NamedTuple):
    """`one`: the step of a side, by size, side and batch. `time`: measure all sides, by size, runs and batch. `memory`: what the file of
    peaks is called."""

    script: str
    sizes: Sequence[str]
    sides: Sequence[str]  # the other's first
    weighed: Sequence[str]  # of which the memory is measured
    memory: str
    one: Callable[[str, str, int], Step]
    time: Callable[[str, int, int], None]

    def run(self) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("--size", choices=self.sizes, default="tiny")
        parser.add_argument("--batch", type=int, default=4)
        parser.add_argument("--runs", type=int, default=5)
        parser.add_argument("--threads", type=int, default=1)
        parser.add_argument("--memory", action="store_true")
        parser.add_argument("--peak-of", choices=self.sides, help="run two steps of one side and print its peak resident KiB")
        args = parser.parse_args()
        torch.set_num_threads(args.threads)
        if args.peak_of:
            side = self.one(args.size, args.peak_of, args.batch)
            for step in range(2):
                side(step)
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        elif args.memory:
            self._weigh(args.size, args.threads, args.batch)
        else:
            self.time(args.size, args.runs, args.batch)

    def _weigh(self, size: str, threads: int, batch_size: int) -> None:
        """Peak resident memory of two steps, each side in a process of its own."""
        peaks = {}
        for name in self.weighed:
            command = [sys.executable, self.script, "--size", size, "--batch", batch_size, "--threads", threads, "--peak-of", name]
            done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
            peaks[name] = int(done.stdout.split()[-1]) / 2**20
        print(f"| side | peak GiB | of {self.sides[0]} |\n|---|---|---|")
        for name, peak in peaks.items():
            print(f"| {name} | {peak:.2f} | {peak / peaks[self.sides[0]]:.2f} |")
        about = {"size": size, "batch": batch_size, "steps": 2, "peak_gib": {k: round(v, 3) for k, v in peaks.items()}}
        print(write(f"{self.memory}-{size}-{batch_size}", about))

"""The clock and the trace over a few steps: what each part took, and which operators were dearest."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.profiler import ProfilerActivity

from blip_core.training.loop import Source
from blip_core.training.step import MicroBatch, Objective

WARM, TRACED = 2, 2  # steps
SHOWN = 15  # operators


class Watch:
    """Counts the seconds of each part of a step. Warm-up, timing and tracing follow each other by the number of the step."""

    def __init__(self, timed: int):
        self.timed, self.step = timed, 0
        self.seconds: dict[str, list[float]] = {}  # part -> by the clock, of CPU; of all timed steps together
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self.trace = torch.profiler.profile(activities=activities)
        self._part, self._began = "", (0.0, 0.0)
        self._range: torch.profiler.record_function | None = None

    def enter(self, part: str) -> None:
        """The part that begins now; "" for none. Waits for the GPU, so that what a part has started counts as its own."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter(), time.process_time()
        if self._part and WARM <= self.step < WARM + self.timed:
            sums = self.seconds.setdefault(self._part, [0.0, 0.0])
            sums[:] = (s + n - b for s, n, b in zip(sums, now, self._began, strict=True))
        if self._range is not None:
            self._range.__exit__(None, None, None)
        self._range = torch.profiler.record_function(part) if part else None
        if self._range is not None:
            self._range.__enter__()
        self._part, self._began = part, now

    def end_step(self) -> None:
        self.enter("")
        self.step += 1
        if self.step == WARM + self.timed:
            self.trace.start()


@contextmanager
def watching(watch: Watch, objective: Objective) -> Iterator[None]:
    """Hooks that tell the watch when the objective and the optimizer begin and end."""

    def tell(part: str) -> Callable[..., None]:
        return lambda *_: watch.enter(part)

    handles = [
        objective.register_forward_pre_hook(tell("forward")),
        objective.register_forward_hook(tell("backward, clipping")),
        register_optimizer_step_pre_hook(tell("optimizer")),
        register_optimizer_step_post_hook(tell("rest")),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Watched:
    """Batches that tell the watch how long the training waits for them, and when a step has ended."""

    def __init__(self, batches: Source, watch: Watch):
        self.batches, self.watch = batches, watch

    def loader(self, start: int) -> Iterator[MicroBatch]:
        self.watch.enter("data")
        for batch in self.batches.loader(start):
            self.watch.enter("momentum, zero_grad")
            yield batch
            if batch.part == batch.parts - 1:
                self.watch.end_step()
            self.watch.enter("data")
        self.watch.enter("")


def part_lines(watch: Watch, images: int) -> list[str]:
    """Mean of the timed steps."""
    total = [sum(s[i] for s in watch.seconds.values()) for i in (0, 1)]
    lines = [f"{'part':20} {'ms a step':>10} {'share':>7} {'CPU ms':>10}"]
    for name, (clock, cpu) in [*watch.seconds.items(), ("sum", total)]:
        lines.append(f"{name:20} {1000 * clock / watch.timed:10.1f} {clock / total[0]:7.1%} {1000 * cpu / watch.timed:10.1f}")
    return [*lines, f"{images * watch.timed / total[0]:.4g} images/s by the clock, {images * watch.timed / total[1]:.4g} per CPU second"]


def operator_lines(watch: Watch) -> list[str]:
    """The operators that took most by themselves, of the traced steps: on the GPU where there is one."""
    gpu = torch.cuda.is_available()
    own: Callable[[Any], float] = (lambda e: e.self_device_time_total) if gpu else (lambda e: e.self_cpu_time_total)
    events = [e for e in watch.trace.key_averages() if e.key not in watch.seconds]
    total = max(1e-9, sum(map(own, events)))
    lines = [f"{'operator (own time)':60} {'GPU ms' if gpu else 'CPU ms':>10} {'share':>7} {'calls':>8}"]
    for e in sorted(events, key=own, reverse=True)[:SHOWN]:
        lines.append(f"{e.key.removeprefix('aten::')[:60]:60} {own(e) / 1000 / TRACED:10.2f} {own(e) / total:7.1%} {e.count / TRACED:8.0f}")
    return [*lines, "a step; the trace itself takes time, most where operators are small"]

"""Batches of a task's examples. The examples of a step are a pure function of (examples, seed, step), as in training/batches.py."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from blip_core.compute.distributed import rank, world_size
from blip_core.config.training import OptimConfig
from blip_core.runtime.cores import loading_workers
from blip_core.tasks.pictures import read_pixels
from blip_core.tasks.task import E, TunedTask
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.training.augment import augment, draw_numbers
from blip_core.training.batches import finished
from blip_core.training.step import TaskBatch


class TaskBatches:
    """Training batches of this process, cfg.optim.accumulate micro-batches for each step; rows fall to processes as in `Batches`."""

    def __init__(self, task: TunedTask[E], examples: list[E], tokenizer: Tokenizer, cfg: Any, *, image_size: int, seed: int):
        self.task, self.examples, self.tokenizer, self.cfg = task, examples, tokenizer, cfg
        self.optim: OptimConfig = cfg.optim
        self.image_size, self.seed, self.rank, self.world_size = image_size, seed, rank(), world_size()
        if self.optim.batch_size % (self.world_size * self.optim.accumulate):
            raise ValueError(
                f"batch_size {self.optim.batch_size} does not divide into {self.optim.accumulate} micro-batches, each shared out among "
                f"{self.world_size} processes; take a multiple of {self.optim.accumulate * self.world_size}"
            )

    def read(self, place: int) -> TaskBatch:
        """Micro-batch `place`; what a loading process hands over."""
        optim = self.optim
        step, part = divmod(place, optim.accumulate)
        size = optim.batch_size // (self.world_size * optim.accumulate)
        own = slice((part * self.world_size + self.rank) * size, (part * self.world_size + self.rank + 1) * size)
        examples = [self.examples[i] for i in self._picked(step)[own]]
        draws = draw_numbers(optim.augment, count=optim.batch_size, seed=self.seed, step=step)[own]
        pixels = torch.stack(
            [
                augment(read_pixels(path), self.image_size, optim.augment, draw).float()
                for example, draw in zip(examples, draws, strict=True)
                for path in example.pictures
            ]
        )
        return TaskBatch(
            pixels=pixels,
            tensors=self.task.tensors(examples, self.tokenizer, self.cfg),
            step=step,
            progress=step / optim.steps,
            seed=self.seed,
            keys=tuple(e.id for e in examples),
            part=part,
            parts=optim.accumulate,
        )

    def loader(self, start: int) -> Iterator[TaskBatch]:
        optim = self.optim
        places = range(start * optim.accumulate, optim.steps * optim.accumulate)
        workers = loading_workers(threads=optim.threads) if optim.workers is None else optim.workers
        # any sequence will do for the places
        loader: DataLoader[TaskBatch] = DataLoader(places, batch_size=None, collate_fn=self.read, num_workers=workers)  # type: ignore[arg-type]
        yield from map(finished, loader)

    def _picked(self, step: int) -> np.ndarray:
        """Places of the step's examples: passes through all of them, each shuffled anew."""
        count, size = len(self.examples), self.optim.batch_size
        places = np.arange(step * size, (step + 1) * size)
        orders = {e: np.random.default_rng([self.seed, int(e)]).permutation(count) for e in np.unique(places // count)}
        return np.array([orders[p // count][p % count] for p in places])

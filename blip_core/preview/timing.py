"""What a step takes on this machine: two real ones by the clock, on made-up pictures and texts."""

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blip_core.config.params import Params
from blip_core.config.training import OptimConfig
from blip_core.preview.made_up import NEVER, Training, made_up_tokenizer, made_up_training
from blip_core.tokenizer.tokenizer import ROLE_TOKENS
from blip_core.training.loop import fit
from blip_core.training.step import MicroBatch

TIMED = 2


@contextmanager
def _without_a_word() -> Iterator[None]:
    """Of checkpoints that a training did not find."""
    log = logging.getLogger(fit.__module__)
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(before)


class _Clocked:
    """Batches that are ready, and when each was asked for."""

    def __init__(self, batches: list[MicroBatch]):
        self.batches, self.asked = batches, list[float]()

    def loader(self, start: int) -> Iterator[MicroBatch]:
        for batch in self.batches:
            self.asked.append(time.perf_counter())
            yield batch
        self.asked.append(time.perf_counter())


def step_seconds(params: Params, stage: str, *, images: int, vocabulary: int) -> float:
    """Mean of two steps of so many images behind one that warms up. Reading pictures is not among it."""
    cfg = params.section(stage).optim.model_copy(update={"accumulate": 1, "batch_size": images, "steps": TIMED + 1})
    training = made_up_training(stage, params, made_up_tokenizer(vocabulary - len(ROLE_TOKENS)), cfg)
    return clocked_seconds(training, cfg, images)


def clocked_seconds(training: Training, optim: OptimConfig, images: int) -> float:
    """The same of a training whose batches have so many images and are TIMED + 1."""
    quiet = {"checkpoint_every": NEVER, "log_every": NEVER, "health": "off", "accumulate": 1, "batch_size": images, "steps": TIMED + 1}
    cfg, clocked = optim.model_copy(update=quiet), _Clocked(list(training.batches.loader(0)))
    with tempfile.TemporaryDirectory() as folder, _without_a_word():
        fit(training.model, training.objective, clocked, cfg, name="two steps", folder=Path(folder), seed=0, report=None)
    return (clocked.asked[-1] - clocked.asked[1]) / TIMED

"""What a step takes on this machine: two real ones by the clock, on made-up pictures and texts."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from blip_core.config.params import Params
from blip_core.preview.made_up import NEVER, MadeUp, made_up_tokenizer, objective_of
from blip_core.tokenizer.tokenizer import ROLE_TOKENS
from blip_core.training.loop import fit
from blip_core.training.step import Batch
from blip_core.weights.checkpoint import new_model

TIMED = 2


class _Clocked:
    """Batches that are ready, and when each was asked for."""

    def __init__(self, batches: list[Batch]):
        self.batches, self.asked = batches, list[float]()

    def loader(self, start: int) -> Iterator[Batch]:
        for batch in self.batches:
            self.asked.append(time.perf_counter())
            yield batch
        self.asked.append(time.perf_counter())


def step_seconds(params: Params, stage: str, *, images: int, vocabulary: int) -> float:
    """Mean of two steps of so many images behind one that warms up. Reading pictures is not among it."""
    quiet = {"checkpoint_every": NEVER, "log_every": NEVER, "health": "off", "accumulate": 1, "batch_size": images, "steps": TIMED + 1}
    cfg = params.section(stage).optim.model_copy(update=quiet)
    tokenizer = made_up_tokenizer(vocabulary - len(ROLE_TOKENS))
    model = new_model(params.med("plan"), tokenizer, seed=params.seed)
    clocked = _Clocked(list(MadeUp(params, tokenizer, cfg).loader(0)))
    objective = objective_of(stage, params, model, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        fit(model, objective, clocked, cfg, name="two steps", folder=Path(folder), seed=params.seed, report=None)
    return (clocked.asked[-1] - clocked.asked[1]) / TIMED

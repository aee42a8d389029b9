"""A training on the clean set, from its parts to the files that it leaves."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from blip_core.compute.distributed import rank
from blip_core.compute.work import discard, run_folder
from blip_core.files.content import write_json
from blip_core.training.loop import Log, Source, fit, summarize, write_history
from blip_core.training.step import Objective


@dataclass(frozen=True)
class Tuning:
    """What is tuned. `base` is the content hash of what it starts from; `save` writes what became of it."""

    model: nn.Module
    objective: Objective
    batches: Source
    base: str
    save: Callable[[Path], None]


def tune(
    tuning: Tuning,
    out: Path,
    out_history: Path,
    out_metrics: Path,
    *,
    cfg: Any,
    name: str,
    data: str,
    seed: int,
    work: Path,
    log: Log | None,
) -> None:
    """Train and write the outputs; a rerun goes on from the newest checkpoint. `cfg` has `optim`; `data` is the content hash of what is
    learned from."""
    folder = run_folder(work, name, cfg=cfg.model_dump(), seed=seed, base=tuning.base, data=data)
    history = fit(tuning.model, tuning.objective, tuning.batches, cfg.optim, name=name, folder=folder, seed=seed, report=log)
    if rank() > 0:
        return
    tuning.save(out)
    write_history(history, out_history)
    write_json(summarize(history), out_metrics)
    discard(folder)

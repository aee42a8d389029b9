"""A training of a model, from its parts to the files that it leaves; and those on the clean set."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from blip_core.compute.distributed import rank
from blip_core.compute.precision import resolved
from blip_core.compute.work import discard, run_folder
from blip_core.config.training import OptimConfig
from blip_core.files.content import write_json
from blip_core.training.loop import Log, Source, fit, summarize, write_history
from blip_core.training.step import Objective


@dataclass(frozen=True)
class Tuning:
    """What is trained. `base` is the content hash of what it starts from, empty where it starts from nothing; `save` writes what became
    of it. Or a second stage does, which `then` makes of the trained model, with settings of its own."""

    model: nn.Module
    objective: Objective
    batches: Source
    base: str
    save: Callable[[Path], None]
    then: "Callable[[], tuple[Tuning, OptimConfig]] | None" = None


def text_facts(optim: OptimConfig, prompt: str) -> dict[str, Any]:
    """What whoever uses the model must know, as every model folder says it."""
    return {"prompt": prompt, "max_tokens": optim.max_tokens, "precision": resolved(optim.precision)}


def train(
    tuning: Tuning,
    out: Path,
    out_history: Path,
    out_metrics: Path,
    *,
    optim: OptimConfig,
    name: str,
    folder: Path,
    seed: int,
    log: Log | None,
    **counts: int,
) -> None:
    """Train and write the outputs; a rerun goes on from the newest checkpoint in `folder`. `counts` stand in the metrics besides."""
    history = fit(tuning.model, tuning.objective, tuning.batches, optim, name=name, folder=folder, seed=seed, report=log)
    facts = {**counts, **summarize(history)}
    if tuning.then is not None:
        tuning, later = tuning.then()
        where, behind = folder / "stage_2", log and _Behind(log, optim.steps).report
        more = fit(tuning.model, tuning.objective, tuning.batches, later, name=f"{name}, stage 2", folder=where, seed=seed, report=behind)
        history = history + [{**row, "step": row["step"] + optim.steps} for row in more]
        facts |= _of_stage_2(summarize(more))
    if rank() > 0:
        return
    tuning.save(out)
    write_history(history, out_history)
    write_json(facts, out_metrics)
    discard(folder)


@dataclass(frozen=True)
class _Behind:
    """A log of stage 2: its steps follow those of stage 1."""

    log: Log
    steps: int

    def report(self, values: dict[str, float], *, step: int) -> None:
        self.log(_of_stage_2(values), step=step + self.steps)

    @property
    def tag(self) -> Any:
        """Of the run that the log belongs to (health.py)."""
        return getattr(getattr(self.log, "__self__", None), "tag", None)


def _of_stage_2(values: dict[str, float]) -> dict[str, float]:
    return {f"stage_2_{name}": value for name, value in values.items()}


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
    """`train` on the clean set. `cfg` has `optim`; `data` is the content hash of what is learned from."""
    folder = run_folder(work, name, cfg=cfg.model_dump(), seed=seed, base=tuning.base, data=data)
    train(tuning, out, out_history, out_metrics, optim=cfg.optim, name=name, folder=folder, seed=seed, log=log)

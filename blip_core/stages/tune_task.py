"""Tune a model of the chain for a downstream task (blip_core/tasks), from the same loop as pretraining."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from blip_core.compute.distributed import on_every_process, rank
from blip_core.compute.work import discard, run_folder
from blip_core.config.tasks import CaptioningConfig, TaskConfig, TunedConfig
from blip_core.files.content import write_json
from blip_core.model.blip import Blip
from blip_core.tasks.batches import TaskBatches
from blip_core.tasks.kinds import KINDS
from blip_core.tasks.network import folder_hash, save_tuned
from blip_core.tasks.task import KeepingTask, TunedTask, counted
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.training.loop import Log, fit, summarize, write_history
from blip_core.training.tuning import text_facts
from blip_core.weights.checkpoint import load_model, model_hash, save_model
from blip_core.weights.load import resize_images

logger = logging.getLogger(__name__)


@on_every_process
def tune_task(
    task: str,
    model: Path,
    data: Path,
    out: Path,
    out_history: Path,
    out_metrics: Path,
    *,
    cfg: TaskConfig,
    seed: int,
    work: Path,
    log: Log | None = None,
) -> None:
    """`task`: a name in the section `tasks`. `data`: the folder of its files and pictures, of which `train` is learned.

    A kind that tunes nothing gets the model as it is, and a history without a step.
    """
    kind = KINDS[cfg.kind]
    base, tokenizer = load_model(model)
    if not isinstance(cfg, TunedConfig) or not isinstance(kind, TunedTask):
        kind.network(base, cfg)  # says here, not after the training of others, what the model lacks
        _keep(base, tokenizer, out, out_history, out_metrics)
        return
    examples, aside = kind.read(data, "train", cfg)
    if not examples:
        raise ValueError(f"{data}: no usable example of train; set aside: {counted(aside)}")
    if cfg.image_size:
        resize_images(base, cfg.image_size, source=str(model))
    network = kind.network(base, cfg)
    batches = TaskBatches(kind, examples, tokenizer, cfg, image_size=network.cfg.vision.image_size, seed=seed)
    identity = {"base": model_hash(model), "data": folder_hash(data)}
    name = f"tune_task {task}-{model.name}"
    folder = run_folder(work, name.replace(" ", "-"), cfg=cfg.model_dump(exclude={"measure"}), seed=seed, **identity)
    history = fit(network, kind.objective(network, cfg), batches, cfg.optim, name=name, folder=folder, seed=seed, report=log)
    if rank() > 0:
        return
    facts = {"kind": cfg.kind, "set_aside": [asdict(a) for a in aside], **_facts(cfg)}
    if isinstance(kind, KeepingTask):
        facts["kept"] = kind.kept(data, examples)
    save_tuned(network, tokenizer, out, **facts)
    write_history(history, out_history)
    write_json({"examples": len(examples), "set_aside": len(aside), **summarize(history)}, out_metrics)
    discard(folder)


def _facts(cfg: TunedConfig) -> dict[str, Any]:
    return text_facts(cfg.optim, cfg.prompt if isinstance(cfg, CaptioningConfig) else "")


def _keep(base: Blip, tokenizer: Tokenizer, out: Path, out_history: Path, out_metrics: Path) -> None:
    """The outputs of a training of no steps."""
    if rank() > 0:
        return
    save_model(base, tokenizer, out)
    write_history([{"step": 0}], out_history)
    write_json({"examples": 0}, out_metrics)

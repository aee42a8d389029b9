"""Tune a model of the chain for a downstream task (blip_core/tasks), from the same loop as pretraining."""

from dataclasses import asdict
from pathlib import Path

from blip_core.compute.distributed import on_every_process, rank
from blip_core.compute.work import run_folder
from blip_core.config.tasks import CaptioningConfig, TaskConfig, TunedConfig
from blip_core.files.content import write_json
from blip_core.model.blip import Blip
from blip_core.tasks.batches import TaskBatches
from blip_core.tasks.kinds import KINDS
from blip_core.tasks.network import folder_hash, save_tuned
from blip_core.tasks.task import KeepingTask, TunedTask, counted, require_slices
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.training.loop import Log, write_history
from blip_core.training.tuning import Tuning, text_facts, train
from blip_core.weights.checkpoint import load_model, model_hash, save_model
from blip_core.weights.load import resize_images


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
    if cfg.measure.slices:  # a name that is misspelt would cost this training: its values decide when it runs anew
        require_slices(kind.read(data, "test", cfg)[0], cfg.measure.slices)
    if cfg.image_size:
        resize_images(base, cfg.image_size, source=str(model))
    network = kind.network(base, cfg)
    batches = TaskBatches(kind, examples, tokenizer, cfg, image_size=network.cfg.vision.image_size, seed=seed)
    about = {"kind": cfg.kind, "set_aside": [asdict(a) for a in aside]}
    about |= text_facts(cfg.optim, cfg.prompt if isinstance(cfg, CaptioningConfig) else "")

    def save(folder: Path) -> None:
        kept = {"kept": kind.kept(data, examples)} if isinstance(kind, KeepingTask) else {}
        save_tuned(network, tokenizer, folder, **about, **kept)

    tuning = Tuning(network, kind.objective(network, cfg), batches, model_hash(model), save)
    name = f"tune_task {task}-{model.name}"
    identity = {"base": tuning.base, "data": folder_hash(data)}
    folder = run_folder(work, name.replace(" ", "-"), cfg=cfg.model_dump(exclude={"measure"}), seed=seed, **identity)
    outs = (out, out_history, out_metrics)
    train(tuning, *outs, optim=cfg.optim, name=name, folder=folder, seed=seed, log=log, examples=len(examples), set_aside=len(aside))


def _keep(base: Blip, tokenizer: Tokenizer, out: Path, out_history: Path, out_metrics: Path) -> None:
    """The outputs of a training of no steps."""
    if rank() > 0:
        return
    save_model(base, tokenizer, out)
    write_history([{"step": 0}], out_history)
    write_json({"examples": 0}, out_metrics)

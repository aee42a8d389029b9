"""Fine-tune a filter: ITC and ITM on the clean set, from a pretrained MED (paper section 3.3), or an adapter upon a model of others by true
and false pairs. `calibrate` says what its scores mean."""

from functools import partial
from pathlib import Path

from blip_core.compute.distributed import on_every_process
from blip_core.config.training import FilterConfig
from blip_core.lora.tuning import judge_tuning
from blip_core.tables.gates import require_gate
from blip_core.tables.manifest import content_hash
from blip_core.tables.shards import ShardImages
from blip_core.training import qformers
from blip_core.training.batches import Batches, Rows
from blip_core.training.loop import Log
from blip_core.training.objectives import PretrainObjective
from blip_core.training.tuning import Tuning, text_facts, tune
from blip_core.weights.checkpoint import is_blip2, load_model, model_hash, save_model


@on_every_process
def tune_filter(
    base: Path,
    generation: Path,
    shards: Path,
    gate: Path,
    out: Path,
    out_history: Path,
    out_metrics: Path,
    *,
    cfg: FilterConfig,
    seed: int,
    work: Path,
    log: Log | None = None,
) -> None:
    """`generation` gives the human captions; `base` is not read where `cfg.lora` names another."""
    require_gate(gate, generation)
    rows, images = Rows.of(generation, ["human"]), ShardImages(shards)
    if cfg.lora:
        tuning = judge_tuning(cfg, cfg.lora, rows, images, seed=seed)
    else:
        make = qformers.filter_tuning if is_blip2(base) else _of_med
        tuning = make(base, cfg, rows, images, seed=seed)
    outs = (out, out_history, out_metrics)
    tune(tuning, *outs, cfg=cfg, name="tune_filter", data=content_hash(generation), seed=seed, work=work, log=log)


def _of_med(base: Path, cfg: FilterConfig, rows: Rows, images: ShardImages, *, seed: int) -> Tuning:
    model, tokenizer = load_model(base)
    batches = Batches(rows, images, tokenizer, image_size=model.image_size, prompt="", shares={"human": 1.0}, cfg=cfg.optim, seed=seed)
    save = partial(save_model, model, tokenizer, **text_facts(cfg.optim, ""))
    return Tuning(model, PretrainObjective(model, cfg.contrast, language=None), batches, model_hash(base), save)

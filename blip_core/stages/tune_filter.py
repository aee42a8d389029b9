"""Fine-tune a filter: ITC and ITM on the clean set, from a pretrained MED (paper section 3.3). `calibrate` says what its scores mean."""

from pathlib import Path

from blip_core.compute.distributed import on_every_process, rank
from blip_core.compute.precision import resolved
from blip_core.compute.work import discard, run_folder
from blip_core.config.training import FilterConfig
from blip_core.files.content import write_json
from blip_core.tables.gates import require_gate
from blip_core.tables.manifest import content_hash
from blip_core.tables.shards import ShardImages
from blip_core.training.batches import Batches, Rows
from blip_core.training.loop import Log, fit, summarize, write_history
from blip_core.training.objectives import PretrainObjective
from blip_core.weights.checkpoint import load_model, model_hash, save_model


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
    """`generation` gives the human captions."""
    require_gate(gate, generation)
    model, tokenizer = load_model(base)
    rows, images = Rows.of(generation, ["human"]), ShardImages(shards)
    batches = Batches(
        rows, images, tokenizer, shares={"human": 1.0}, cfg=cfg.optim, image_size=model.cfg.vision.image_size, prompt="", seed=seed
    )
    folder = run_folder(work, "tune_filter", cfg=cfg.model_dump(), seed=seed, base=model_hash(base), data=content_hash(generation))
    objective = PretrainObjective(model, cfg.contrast, language=None)
    history = fit(model, objective, batches, cfg.optim, name="tune_filter", folder=folder, seed=seed, report=log)
    if rank() > 0:
        return
    save_model(model, tokenizer, out, prompt="", max_tokens=cfg.optim.max_tokens, precision=resolved(cfg.optim.precision))
    write_history(history, out_history)
    write_json(summarize(history), out_metrics)
    discard(folder)

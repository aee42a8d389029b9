"""Fine-tune a captioner: LM on the clean set, from a pretrained MED (paper section 3.3)."""

from pathlib import Path

from blip_core.compute.distributed import on_every_process, rank
from blip_core.compute.precision import resolved
from blip_core.compute.work import discard, run_folder
from blip_core.config.training import CaptionerConfig
from blip_core.files.content import write_json
from blip_core.tables.gates import require_gate
from blip_core.tables.manifest import content_hash
from blip_core.tables.shards import ShardImages
from blip_core.training.batches import Batches, Rows
from blip_core.training.loop import Log, fit, summarize, write_history
from blip_core.training.objectives import CaptionObjective
from blip_core.weights.checkpoint import load_model, model_hash, save_model


@on_every_process
def tune_captioner(
    base: Path,
    generation: Path,
    shards: Path,
    gate: Path,
    out: Path,
    out_history: Path,
    out_metrics: Path,
    *,
    cfg: CaptionerConfig,
    seed: int,
    work: Path,
    log: Log | None = None,
) -> None:
    """`generation` gives the human captions."""
    require_gate(gate, generation)
    model, tokenizer = load_model(base)
    rows = Rows.of(generation, ["human"])
    batches = Batches(
        rows,
        ShardImages(shards),
        tokenizer,
        shares={"human": 1.0},
        cfg=cfg.optim,
        image_size=model.cfg.vision.image_size,
        prompt=cfg.language.prompt,
        seed=seed,
    )
    folder = run_folder(work, "tune_captioner", cfg=cfg.model_dump(), seed=seed, base=model_hash(base), data=content_hash(generation))
    history = fit(model, CaptionObjective(cfg.language), batches, cfg.optim, name="tune_captioner", folder=folder, seed=seed, report=log)
    if rank() > 0:
        return
    save_model(model, tokenizer, out, prompt=cfg.language.prompt, max_tokens=cfg.optim.max_tokens, precision=resolved(cfg.optim.precision))
    write_history(history, out_history)
    write_json(summarize(history), out_metrics)
    discard(folder)

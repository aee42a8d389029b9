"""Train BLIP from scratch on one generation (paper sections 3.2 and 3.3: a new model on the bootstrapped data), or a BLIP-2 its stage 1."""

from functools import partial
from pathlib import Path

from blip_core.compute.distributed import on_every_process
from blip_core.compute.work import run_folder
from blip_core.config.model import Blip2Config, ModelConfig
from blip_core.config.training import PretrainConfig
from blip_core.files.content import sha256_file
from blip_core.tables.gates import require_gate
from blip_core.tables.manifest import content_hash
from blip_core.tables.shards import ShardImages
from blip_core.tokenizer.folders import load_tokenizer
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.training.batches import Batches, Rows, batch_shares
from blip_core.training.loop import Log
from blip_core.training.optional import pretrain_objective
from blip_core.training.qformers import pretraining
from blip_core.training.tuning import Tuning, text_facts, train
from blip_core.training.words import begin_with_words
from blip_core.weights.checkpoint import new_model, save_model
from blip_core.weights.load import initialize


@on_every_process
def pretrain(
    generation: Path,
    sources: str,
    shards: Path,
    gate: Path,
    vocab: Path,
    out: Path,
    out_history: Path,
    out_metrics: Path,
    *,
    cfg: PretrainConfig,
    model_cfg: ModelConfig | Blip2Config,
    seed: int,
    work: Path,
    log: Log | None = None,
) -> None:
    """`sources`: those of web, human, synthetic and fused that the model may see, comma-separated."""
    require_gate(gate, generation)
    rows, images, tokenizer = Rows.of(generation, sources.split(",")), ShardImages(shards), load_tokenizer(vocab)
    if isinstance(model_cfg, Blip2Config):
        training = pretraining(cfg, model_cfg, rows, images, tokenizer, seed=seed)
    else:
        training = _of_med(cfg, model_cfg, rows, images, tokenizer, seed)
    inputs = {"sources": sources, "data": content_hash(generation), "vocab": sha256_file(vocab), **_teacher(cfg)}
    inputs |= {"base": training.base} if training.base else {}
    folder = run_folder(work, f"pretrain-{out.name}", cfg=cfg.model_dump(), model=model_cfg.model_dump(), seed=seed, **inputs)
    outs, name = (out, out_history, out_metrics), f"pretrain {out.name}"
    train(training, *outs, optim=cfg.optim, name=name, folder=folder, seed=seed, log=log, texts=len(rows.text))


def _of_med(cfg: PretrainConfig, model_cfg: ModelConfig, rows: Rows, images: ShardImages, tokenizer: Tokenizer, seed: int) -> Tuning:
    """It has no base."""
    model = new_model(model_cfg, tokenizer, seed=seed)
    if cfg.init_from.vit or cfg.init_from.bert:
        initialize(model, vit=cfg.init_from.vit, bert=cfg.init_from.bert)
    if cfg.init_from.words:
        begin_with_words(model, rows.text.to_pylist(), tokenizer, max_tokens=cfg.optim.max_tokens)
    objective = pretrain_objective(model, tokenizer, cfg)
    batches = Batches(
        rows,
        images,
        tokenizer,
        shares=batch_shares(rows, human=cfg.human_share, synthetic=cfg.synthetic_share),
        cfg=cfg.optim,
        image_size=model_cfg.vision.image_size,
        prompt=cfg.language.prompt,
        seed=seed,
    )
    save = partial(save_model, model, tokenizer, **text_facts(cfg.optim, cfg.language.prompt))
    return Tuning(model, objective, batches, "", save)


def _teacher(cfg: PretrainConfig) -> dict[str, str]:
    """The content of the teacher, if there is one: another in its place makes another training."""
    if cfg.optional is None or cfg.optional.distillation is None:
        return {}
    path = cfg.optional.distillation.teacher
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    return {f"teacher {p.name}": sha256_file(p) for p in files}

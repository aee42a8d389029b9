"""The trainings of a BLIP-2 that the chain's stages have: stage 1 from the start, and its tunings. Only the Q-Former learns."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from blip_core.config.model import Blip2Config, FeatureConfig
from blip_core.config.training import CaptionerConfig, FilterConfig, OptimConfig, PretrainConfig, query_contrast
from blip_core.files.content import read_json
from blip_core.model.blip2 import Blip2
from blip_core.model.qformer import QFormer
from blip_core.tables.shards import ShardImages
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.training.batches import Rows, batch_shares
from blip_core.training.features import Frozen, QueryBatches
from blip_core.training.query_objective import QueryCaptionObjective, QueryObjective
from blip_core.training.tuning import Tuning, text_facts
from blip_core.weights.checkpoint import model_hash, special_tokens
from blip_core.weights.encoders import Encoder, load_encoder
from blip_core.weights.load import initialize_qformer
from blip_core.weights.models import encoder_of, load_any, save_blip2

NO_CACHE = FeatureConfig(cache=None, max_gib=1)  # a tuning is short


def pretraining(cfg: PretrainConfig, model_cfg: Blip2Config, rows: Rows, images: ShardImages, tokenizer: Tokenizer, *, seed: int) -> Tuning:
    """ITC + ITM + ITG (Li et al. 2023, section 3.1). Its base is the image encoder."""
    if cfg.init_from.vit:
        raise ValueError(
            f"pretrain.init_from.vit is {cfg.init_from.vit}, but a BLIP-2 has its image encoder from model.encoder: leave it empty"
        )
    if cfg.init_from.words:
        raise ValueError(
            "pretrain.init_from.words: BLIP alone begins with vectors of the texts' own words; leave it out with model.kind blip2"
        )
    if cfg.optional is not None:
        raise ValueError("pretrain.optional: BLIP alone has further objectives; leave it empty with model.kind blip2")
    encoder = load_encoder(model_cfg.encoder)
    torch.manual_seed(seed)
    qformer = new_qformer(model_cfg, encoder, tokenizer)
    if cfg.init_from.bert:
        initialize_qformer(qformer, cfg.init_from.bert)
    shares = batch_shares(rows, human=cfg.human_share, synthetic=cfg.synthetic_share)
    options: dict[str, Any] = {"tokenizer": tokenizer, "prompt": cfg.language.prompt, "shares": shares, "cfg": cfg.optim, "seed": seed}
    batches = QueryBatches(rows, images, Frozen(encoder, cfg.optim.precision), model_cfg.features, **options)
    smoothing = model_cfg.label_smoothing
    objective = QueryObjective(query_contrast(cfg.contrast, label_smoothing=smoothing), cfg.language)
    model = Blip2(encoder.module, qformer, image_size=encoder.image_size)
    save = partial(save_blip2, model, tokenizer, label_smoothing=smoothing, **text_facts(cfg.optim, cfg.language.prompt))
    return Tuning(qformer, objective, batches, encoder.identity, save)


def new_qformer(cfg: Blip2Config, encoder: Encoder, tokenizer: Tokenizer) -> QFormer:
    """With random weights, but that its norm of the image begins as the encoder's last."""
    eps = encoder.norm.eps if encoder.norm else 1e-5
    qformer = QFormer(cfg.qformer, cfg.init, special_tokens(tokenizer), image_width=encoder.width, image_eps=eps)
    if encoder.norm:
        qformer.image_norm.load_state_dict(encoder.norm.state_dict())
    return qformer


def captioner_tuning(base: Path, cfg: CaptionerConfig, rows: Rows, images: ShardImages, *, seed: int) -> Tuning:
    """ITG alone."""
    return _tuning(base, QueryCaptionObjective(cfg.language), cfg.optim, cfg.language.prompt, rows, images, seed=seed)


def filter_tuning(base: Path, cfg: FilterConfig, rows: Rows, images: ShardImages, *, seed: int) -> Tuning:
    """ITC + ITM."""
    contrast = query_contrast(cfg.contrast, label_smoothing=_smoothing(base))
    return _tuning(base, QueryObjective(contrast, None), cfg.optim, "", rows, images, seed=seed)


def _tuning(
    base: Path,
    objective: QueryObjective | QueryCaptionObjective,
    optim: OptimConfig,
    prompt: str,
    rows: Rows,
    images: ShardImages,
    *,
    seed: int,
) -> Tuning:
    model, tokenizer = load_any(base)
    assert isinstance(model, Blip2)  # the stage has looked
    frozen = Frozen(encoder_of(model, base), optim.precision)
    options: dict[str, Any] = {"tokenizer": tokenizer, "prompt": prompt, "shares": {"human": 1.0}, "cfg": optim, "seed": seed}
    batches = QueryBatches(rows, images, frozen, NO_CACHE, **options)
    save = partial(save_blip2, model, tokenizer, label_smoothing=_smoothing(base), **text_facts(optim, prompt))
    return Tuning(model.qformer, objective, batches, model_hash(base), save)


def _smoothing(base: Path) -> float:
    return float(read_json(base / "config.json")["model"]["label_smoothing"])

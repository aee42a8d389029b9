"""The trainings of a BLIP-2 that the chain's stages have: stages 1 and 2 from the start, and their tunings. Only Q-Formers learn, and what
projects their queries."""

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from blip_core.compute.precision import resolved
from blip_core.config.contrast import query_contrast
from blip_core.config.model import Blip2Config, FeatureConfig
from blip_core.config.training import CaptionerConfig, FilterConfig, OptimConfig, PretrainConfig
from blip_core.files.content import read_json
from blip_core.model.blip2 import Blip2, Prompter
from blip_core.model.qformer import QFormer
from blip_core.tables.shards import ShardImages
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.training.batches import Rows, batch_shares
from blip_core.training.features import FeatureBatches, Frozen, QueryBatches
from blip_core.training.prompt_objective import PromptBatches, PromptObjective
from blip_core.training.query_objective import QueryCaptionObjective, QueryObjective
from blip_core.training.tuning import Tuning, text_facts
from blip_core.weights.checkpoint import model_hash, special_tokens
from blip_core.weights.encoders import Encoder, load_encoder
from blip_core.weights.language import Language, load_language
from blip_core.weights.load import initialize_qformer
from blip_core.weights.models import BothStages, encoder_of, load_any, save_blip2

NO_CACHE = FeatureConfig(cache=None, max_gib=1)  # a tuning is short


def pretraining(cfg: PretrainConfig, model_cfg: Blip2Config, rows: Rows, images: ShardImages, tokenizer: Tokenizer, *, seed: int) -> Tuning:
    """ITC + ITM + ITG (Li et al. 2023, section 3.1), and where there is a language model, stage 2 behind it. Its base are the frozen
    models."""
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
    encoder, language = load_encoder(model_cfg.encoder), frozen_language(cfg, model_cfg)
    qformer, objective = stage_1(cfg, model_cfg, encoder, tokenizer, seed=seed)
    shares = batch_shares(rows, human=cfg.human_share, synthetic=cfg.synthetic_share)
    picked: dict[str, Any] = {"shares": shares, "seed": seed}
    inputs = (rows, images, Frozen(encoder, cfg.optim.precision), model_cfg.features)
    batches = QueryBatches(*inputs, tokenizer=tokenizer, prompt=cfg.language.prompt, cfg=cfg.optim, **picked)
    facts = {"label_smoothing": model_cfg.label_smoothing, **text_facts(cfg.optim, cfg.language.prompt)}
    model = Blip2(encoder.module, qformer, image_size=encoder.image_size)
    tuning = Tuning(qformer, objective, batches, encoder.identity, partial(save_blip2, model, tokenizer, **facts))
    if language is None or cfg.stage_2 is None:
        return tuning
    later = cfg.stage_2

    def then() -> tuple[Tuning, OptimConfig]:
        prompter = stage_2(qformer, language, seed=seed)
        model = BothStages(encoder.module, qformer, prompter, language, image_size=encoder.image_size)
        inputs = (rows, images, Frozen(encoder, later.precision), model_cfg.features)
        batches = PromptBatches(*inputs, language=language, prompt=cfg.language.prompt, split=language.reads, cfg=later, **picked)
        save = partial(save_blip2, model, tokenizer, **{**facts, "precision": resolved(later.precision)})
        return Tuning(prompter, PromptObjective(language, cfg.language), batches, "", save), later

    return replace(tuning, base=f"{encoder.identity} {language.identity}", then=then)


def stage_1(
    cfg: PretrainConfig, model_cfg: Blip2Config, encoder: Encoder, tokenizer: Tokenizer, *, seed: int
) -> tuple[QFormer, QueryObjective]:
    """What learns, from random weights or BERT's, and by what."""
    torch.manual_seed(seed)
    qformer = new_qformer(model_cfg, encoder, tokenizer)
    if cfg.init_from.bert:
        initialize_qformer(qformer, cfg.init_from.bert)
    return qformer, QueryObjective(query_contrast(cfg.contrast, label_smoothing=model_cfg.label_smoothing), cfg.language)


def stage_2(qformer: QFormer, language: Language, *, seed: int) -> Prompter:
    """What learns then: a copy of the queries' half, and a new projection."""
    torch.manual_seed(seed)
    return Prompter(copy.deepcopy(qformer), language.width)


def frozen_language(cfg: PretrainConfig, model_cfg: Blip2Config) -> Language | None:
    if model_cfg.language is None or cfg.stage_2 is None:
        return None
    return load_language(model_cfg.language.folder, precision=cfg.stage_2.precision, end=model_cfg.language.end)


def new_qformer(cfg: Blip2Config, encoder: Encoder, tokenizer: Tokenizer) -> QFormer:
    """With random weights, but that its norm of the image begins as the encoder's last."""
    eps = encoder.norm.eps if encoder.norm else 1e-5
    qformer = QFormer(cfg.qformer, cfg.init, special_tokens(tokenizer), image_width=encoder.width, image_eps=eps)
    if encoder.norm:
        qformer.image_norm.load_state_dict(encoder.norm.state_dict())
    return qformer


def captioner_tuning(base: Path, cfg: CaptionerConfig, rows: Rows, images: ShardImages, *, seed: int) -> Tuning:
    """Stage 2's LM, where the model has a language model; else ITG alone."""
    model, tokenizer = _opened(base)
    frozen, options = Frozen(encoder_of(model, base), cfg.optim.precision), _human(cfg.optim, seed)
    save = partial(save_blip2, model, tokenizer, label_smoothing=_smoothing(base), **text_facts(cfg.optim, cfg.language.prompt))
    if isinstance(model, BothStages):
        said: dict[str, Any] = {"language": model.language, "prompt": cfg.language.prompt, "split": False}
        batches: FeatureBatches = PromptBatches(rows, images, frozen, NO_CACHE, **said, **options)
        return Tuning(model.prompter, PromptObjective(model.language, cfg.language), batches, model_hash(base), save)
    batches = QueryBatches(rows, images, frozen, NO_CACHE, tokenizer=tokenizer, prompt=cfg.language.prompt, **options)
    return Tuning(model.qformer, QueryCaptionObjective(cfg.language), batches, model_hash(base), save)


def filter_tuning(base: Path, cfg: FilterConfig, rows: Rows, images: ShardImages, *, seed: int) -> Tuning:
    """ITC + ITM. What it leaves is of stage 1, for a filter writes nothing."""
    opened, tokenizer = _opened(base)
    model = Blip2(opened.encoder, opened.qformer, image_size=opened.image_size)
    objective = QueryObjective(query_contrast(cfg.contrast, label_smoothing=_smoothing(base)), None)
    frozen = Frozen(encoder_of(model, base), cfg.optim.precision)
    batches = QueryBatches(rows, images, frozen, NO_CACHE, tokenizer=tokenizer, prompt="", **_human(cfg.optim, seed))
    save = partial(save_blip2, model, tokenizer, label_smoothing=_smoothing(base), **text_facts(cfg.optim, ""))
    return Tuning(model.qformer, objective, batches, model_hash(base), save)


def _opened(base: Path) -> tuple[Blip2, Tokenizer]:
    model, tokenizer = load_any(base)
    assert isinstance(model, Blip2)  # the stage has looked
    return model, tokenizer


def _human(optim: OptimConfig, seed: int) -> dict[str, Any]:
    return {"shares": {"human": 1.0}, "cfg": optim, "seed": seed}


def _smoothing(base: Path) -> float:
    return float(read_json(base / "config.json")["model"]["label_smoothing"])

"""Trainings, batches, texts and a tokenizer that are made up, where nothing of the data is needed to know what work costs."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from blip_core.compute.distributed import device
from blip_core.compute.padding import tokenize
from blip_core.config.model import Blip2Config
from blip_core.config.params import Params
from blip_core.config.training import OptimConfig
from blip_core.model.blip import Blip
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.tokenizer.wordpiece import BERT_TOKENS, bert_tokenizer
from blip_core.training.loop import Source
from blip_core.training.objectives import CaptionObjective, PretrainObjective
from blip_core.training.optional import pretrain_objective
from blip_core.training.step import Batch, Objective
from blip_core.weights.checkpoint import new_model

WORDS = (6, 14)  # in a made-up text, as in COCO
NEVER = 10**9  # steps between two checkpoints, or two lines of a log
STAGE_2 = "stage_2"  # of pretrain


class Training(NamedTuple):
    """What a stage trains, on pictures and texts that are made up."""

    model: nn.Module
    objective: Objective
    batches: Source


def made_up_training(stage: str, params: Params, tokenizer: Tokenizer, cfg: OptimConfig) -> Training:
    """`cfg` in place of the stage's own, as with fewer steps."""
    if isinstance(params.model, Blip2Config):
        from blip_core.preview.frozens import Frozens  # benchmarks/speed/gpu.py runs where torch alone is

        return Frozens.of(params).training(stage, params, tokenizer, cfg)
    model = new_model(params.model, tokenizer, seed=params.seed)
    pairs = MadeUp(tokenizer, cfg, image_size=params.model.vision.image_size, seed=params.seed)
    return Training(model, objective_of(stage, params, model, tokenizer), pairs)


def optim_of(stage: str, params: Params) -> OptimConfig:
    """ValueError where there is no stage 2."""
    if stage != STAGE_2:
        return params.section(stage).optim
    if params.pretrain.stage_2 is None:
        raise ValueError(
            "pretrain.stage_2 is not set, so pretrain has one stage; expected model.language and it, as docs/blip2.md has them"
        )
    return params.pretrain.stage_2


def objective_of(stage: str, params: Params, model: Blip, tokenizer: Tokenizer) -> Objective:
    cfg = params.section(stage)
    if stage == "tune_captioner":
        return CaptionObjective(cfg.language)
    objective = pretrain_objective(model, tokenizer, cfg) if stage == "pretrain" else PretrainObjective(model, cfg.contrast, None)
    contrast = objective.contrast
    for name in ("image", "text"):  # a full queue of other pairs, as behind the first hundred steps
        queue = getattr(contrast, f"{name}_queue")
        queue.copy_(nn.functional.normalize(torch.randn(queue.shape), dim=-1))
        getattr(contrast, f"{name}_id_queue").copy_(-1 - torch.arange(len(queue)))
    contrast.queue_filled = contrast.cfg.queue_size
    return objective


class MadeUp:
    """Batches of random pixels and texts as long as those of COCO."""

    def __init__(self, tokenizer: Tokenizer, cfg: OptimConfig, *, image_size: int, seed: int):
        self.tokenizer, self.cfg, self.image_size, self.seed = tokenizer, cfg, image_size, seed

    def loader(self, start: int) -> Iterator[Any]:
        cfg = self.cfg
        size = cfg.batch_size // cfg.accumulate
        for place in range(start * cfg.accumulate, cfg.steps * cfg.accumulate):
            step, part = divmod(place, cfg.accumulate)
            about = {"step": step, "progress": step / cfg.steps, "seed": self.seed, "part": part, "parts": cfg.accumulate}
            pixels = torch.randn(size, 3, self.image_size, self.image_size)
            yield self.batch(pixels, made_up_texts(self.tokenizer, size, seed=place), torch.arange(size) + place * size, about)

    def batch(self, pixels: torch.Tensor, texts: list[str], own: torch.Tensor, about: dict[str, Any]) -> Any:
        """`own`: the identities of the pictures and of the texts."""
        return Batch(pixels=pixels, **self.fields(texts, own), **about).to(device())

    def fields(self, texts: list[str], own: torch.Tensor) -> dict[str, Any]:
        """Those of a TextBatch."""
        ids, mask = tokenize(self.tokenizer, texts, max_tokens=self.cfg.max_tokens)
        return {"ids": ids, "mask": mask, "prompt_tokens": 0, "image_ids": own, "text_ids": own}


def made_up_tokenizer(size: int) -> Tokenizer:
    """`size`: entries, without those of the roles."""
    return bert_tokenizer([*BERT_TOKENS, *(f"w{i}" for i in range(size - len(BERT_TOKENS)))])


def made_up_texts(tokenizer: Tokenizer, count: int, *, seed: int) -> list[str]:
    rng, words = np.random.default_rng(seed), tokenizer.vocab[len(BERT_TOKENS) :]
    return [" ".join(words[i] for i in rng.integers(0, len(words), rng.integers(*WORDS))) for _ in range(count)]

"""Batches, texts and a tokenizer that are made up, where nothing of the data is needed to know what work costs."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from blip_core.compute.distributed import device
from blip_core.compute.padding import tokenize
from blip_core.config.params import Params
from blip_core.config.training import OptimConfig
from blip_core.model.blip import Blip
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.tokenizer.wordpiece import BERT_TOKENS, bert_tokenizer
from blip_core.training.objectives import CaptionObjective, PretrainObjective
from blip_core.training.optional import pretrain_objective
from blip_core.training.step import Batch, Objective

WORDS = (6, 14)  # in a made-up text, as in COCO
NEVER = 10**9  # steps between two checkpoints, or two lines of a log


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

    def __init__(self, params: Params, tokenizer: Tokenizer, cfg: OptimConfig):
        self.params, self.tokenizer, self.cfg = params, tokenizer, cfg

    def loader(self, start: int) -> Iterator[Batch]:
        cfg, side = self.cfg, self.params.med("profile").vision.image_size
        size = cfg.batch_size // cfg.accumulate
        for place in range(start * cfg.accumulate, cfg.steps * cfg.accumulate):
            step, part = divmod(place, cfg.accumulate)
            ids, mask = tokenize(self.tokenizer, made_up_texts(self.tokenizer, size, seed=place), max_tokens=cfg.max_tokens)
            own, pixels = torch.arange(size) + place * size, torch.randn(size, 3, side, side)
            made = Batch(
                pixels=pixels,
                ids=ids,
                mask=mask,
                prompt_tokens=0,
                image_ids=own,
                text_ids=own,
                step=step,
                progress=step / cfg.steps,
                seed=self.params.seed,
                part=part,
                parts=cfg.accumulate,
            )
            yield made.to(device())


def made_up_tokenizer(size: int) -> Tokenizer:
    """`size`: entries, without those of the roles."""
    return bert_tokenizer([*BERT_TOKENS, *(f"w{i}" for i in range(size - len(BERT_TOKENS)))])


def made_up_texts(tokenizer: Tokenizer, count: int, *, seed: int) -> list[str]:
    rng, words = np.random.default_rng(seed), tokenizer.vocab[len(BERT_TOKENS) :]
    return [" ".join(words[i] for i in rng.integers(0, len(words), rng.integers(*WORDS))) for _ in range(count)]

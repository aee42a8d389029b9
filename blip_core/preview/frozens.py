"""A BLIP-2 upon its frozen models: what each training teaches, on made-up pictures and texts or real ones; and a random one that reads."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from blip_core.compute.distributed import device
from blip_core.config.contrast import query_contrast
from blip_core.config.model import Blip2Config, FeatureConfig
from blip_core.config.params import Params
from blip_core.config.training import OptimConfig
from blip_core.model.blip2 import Blip2
from blip_core.model.qformer import QFormer
from blip_core.preview.made_up import STAGE_2, MadeUp, Training
from blip_core.tables.shards import ShardImages
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.training.batches import Rows
from blip_core.training.features import Frozen, QueryBatches
from blip_core.training.loop import Source
from blip_core.training.prompt_objective import PromptBatch, PromptBatches, PromptObjective
from blip_core.training.qformers import NO_CACHE, frozen_language, stage_1, stage_2
from blip_core.training.query_objective import QueryCaptionObjective, QueryObjective
from blip_core.training.step import FeatureBatch, Objective
from blip_core.weights.encoders import Encoder, load_encoder
from blip_core.weights.language import Language
from blip_core.weights.models import BothStages


@dataclass(frozen=True)
class Frozens:
    """What a BLIP-2 is made upon."""

    encoder: Encoder
    language: Language | None

    @staticmethod
    def of(params: Params) -> "Frozens":
        """ValueError where a folder is not there."""
        assert isinstance(params.model, Blip2Config)
        return Frozens(load_encoder(params.model.encoder), frozen_language(params.pretrain, params.model))

    def training(
        self, stage: str, params: Params, tokenizer: Tokenizer, cfg: OptimConfig, see: Callable[[Tensor], Tensor] | None = None
    ) -> Training:
        """`see`: what makes features of pixels, in place of the encoder."""
        model, objective = self.trained(stage, params, tokenizer)
        language = self.language if isinstance(objective, PromptObjective) else None
        batches = MadeUpFeatures(tokenizer, cfg, image_size=self.encoder.image_size, seed=params.seed)
        batches.encoder, batches.see, batches.language = self.encoder.module, see or Frozen(self.encoder, cfg.precision), language
        return Training(model, objective, batches)

    def reader(self, params: Params, tokenizer: Tokenizer) -> Blip2:
        """A random one: it ends no caption before its limit."""
        qformer, _ = self.trained("tune_filter", params, tokenizer)
        assert isinstance(qformer, QFormer)
        encoder, size = self.encoder.module, {"image_size": self.encoder.image_size}
        if self.language is None:
            return Blip2(encoder, qformer, **size)
        return BothStages(encoder, qformer, stage_2(qformer, self.language, seed=params.seed), self.language, **size)

    def trained(self, stage: str, params: Params, tokenizer: Tokenizer) -> tuple[nn.Module, Objective]:
        """What learns in a stage, and by what."""
        assert isinstance(params.model, Blip2Config)
        qformer, objective = stage_1(params.pretrain, params.model, self.encoder, tokenizer, seed=params.seed)
        if stage == "tune_filter":
            contrast = query_contrast(params.tune_filter.contrast, label_smoothing=params.model.label_smoothing)
            return qformer, QueryObjective(contrast, None)
        words = params.tune_captioner.language if stage == "tune_captioner" else params.pretrain.language
        if self.language is not None and stage in (STAGE_2, "tune_captioner"):
            return stage_2(qformer, self.language, seed=params.seed), PromptObjective(self.language, words)
        return qformer, QueryCaptionObjective(words) if stage == "tune_captioner" else objective


def real_batches(stage: str, features: FeatureConfig, made: Training, rows: Rows, images: ShardImages, **options: Any) -> Source:
    """Those of the data, in place of made-up ones; `options` of RowBatches. A cache of features is filled as the training would."""
    assert isinstance(made.batches, MadeUpFeatures) and isinstance(made.batches.see, Frozen)
    inputs = (rows, images, made.batches.see, NO_CACHE if stage.startswith("tune") else features)
    if (language := made.batches.language) is not None:
        return PromptBatches(*inputs, language=language, prompt="", split=stage == STAGE_2 and language.reads, **options)
    return QueryBatches(*inputs, tokenizer=made.batches.tokenizer, prompt="", **options)


class MadeUpFeatures(MadeUp):
    """Batches of features of random pixels."""

    encoder: nn.Module
    see: Callable[[Tensor], Tensor]
    language: Language | None

    def batch(self, pixels: Tensor, texts: list[str], own: Tensor, about: dict[str, Any]) -> Any:
        features = self.see(pixels.to(device()))
        if self.language is None:
            return FeatureBatch(features=features, **self.fields(texts, own), **about).to(device())
        words = self.language.words([""] * len(texts), texts, max_tokens=self.cfg.max_tokens)
        return PromptBatch(features=features, **vars(words), **about).to(device())


def no_features(encoder: Encoder) -> Callable[[Tensor], Tensor]:
    """In place of an encoder: random numbers, as many as it gives, at no cost."""
    with torch.no_grad():
        shape = encoder(torch.zeros(1, 3, encoder.image_size, encoder.image_size, device=device())).shape[1:]
    return lambda pixels: torch.randn(len(pixels), *shape, device=device())

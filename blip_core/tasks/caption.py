"""Captioning: LM behind a prompt, and captions by beam search (paper section 5.2, Table 14).

Measured is what `evaluate` measures of captions. The references are as people wrote them; what is learned is cut and cleaned as the
authors' code does it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blip_core.compute.precision import autocast
from blip_core.config.tasks import CaptioningConfig
from blip_core.config.training import LanguageConfig
from blip_core.evaluation.metrics import bleu, caption_scores
from blip_core.model.blip import CAPTIONING, Blip
from blip_core.model.generate import Limits, beam_search, check_length
from blip_core.model.network import Network
from blip_core.tasks.captioned import Captioned, pair_tensors, pairs, read_captioned
from blip_core.tasks.task import Measured, Result, SetAside, Statistic
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.training.objectives import CaptionObjective
from blip_core.training.step import Losses, Objective, TaskBatch


@dataclass(frozen=True)
class Written(Result):
    """`counts`: of which corpus BLEU is made (evaluation/metrics.py)."""

    counts: np.ndarray


class CaptionTask:
    def read(self, folder: Path, split: str, cfg: CaptioningConfig) -> tuple[list[Captioned], list[SetAside]]:
        return read_captioned(folder, split)

    def network(self, base: Blip, cfg: CaptioningConfig) -> Blip:
        base.require("image", "text", *CAPTIONING)
        return base

    def untuned(self, cfg: CaptioningConfig, about: dict[str, Any]) -> CaptioningConfig:
        """With the prompt that the model was trained with."""
        return cfg.model_copy(update={"prompt": about["prompt"]})

    def objective(self, network: Blip, cfg: CaptioningConfig) -> Objective:
        return WritingObjective(LanguageConfig(label_smoothing=cfg.label_smoothing, prompt=cfg.prompt))

    def tensors(self, examples: Sequence[Captioned], tokenizer: Tokenizer, cfg: CaptioningConfig) -> dict[str, Tensor]:
        return pair_tensors(examples, tokenizer, max_tokens=cfg.optim.max_tokens, prompt=cfg.prompt)

    def measure(
        self, network: Network, tokenizer: Tokenizer, folder: Path, batches: Measured[Captioned], cfg: CaptioningConfig
    ) -> list[Result]:
        assert isinstance(network, Blip)
        start, limits = tokenizer.encode_prompt(cfg.prompt), Limits(cfg.min_tokens, cfg.max_tokens, cfg.repetition_penalty)
        check_length(network, start, cfg.max_tokens)
        captions: dict[str, str] = {}
        for examples, pixels in batches:
            with torch.inference_mode(), autocast(cfg.measure.precision):
                ids = beam_search(network, network.keys_values(network.image_tokens(pixels)), start, limits, beams=cfg.beams)[:, 0]
            captions |= {e.id: tokenizer.decode(own) for e, own in zip(examples, ids.tolist(), strict=True)}
        scores = caption_scores({e.id: e.texts for e in batches.examples}, captions)
        results: list[Result] = []
        for i, e in enumerate(batches.examples):
            values = {metric: float(scores.per_image[metric][i]) for metric in ("cider", "rouge_l")}
            facts = e.told | {"references": " | ".join(e.texts)}
            results.append(Written(e.id, e.id, values, captions[e.id], facts, scores.bleu_counts[i]))
        return results

    def overall(self, results: Sequence[Written]) -> dict[str, Statistic]:
        """Corpus BLEU-4."""
        counts_by_image = np.stack([r.counts for r in results])
        return {"bleu4": lambda drawn: float(bleu(drawn @ counts_by_image)[3])}


class WritingObjective(CaptionObjective):
    """That of the captioner, on examples of a task."""

    def forward(self, model: Blip, batch: TaskBatch) -> Losses:
        return super().forward(model, pairs(batch))

    def shares(self, batches: list[TaskBatch]) -> dict[str, Tensor]:  # type: ignore[override]  # its own kind of batch
        return super().shares([pairs(batch) for batch in batches])

    def vitals(self, batch: TaskBatch) -> dict[str, float]:  # type: ignore[override]
        return super().vitals(pairs(batch))

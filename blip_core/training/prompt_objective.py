"""Stage 2 of BLIP-2 (Li et al. 2023, arXiv 2301.12597, section 3.2): a Q-Former and the projection of its queries learn to be a soft
prompt of a frozen language model. A decoder goes on from it with the text; for an encoder with a decoder the text is cut at a random word,
the first part is read and the second written (prefix LM).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from blip_core.compute.distributed import global_mean
from blip_core.config.training import LanguageConfig
from blip_core.model.blip2 import Prompter
from blip_core.training.batches import Picked
from blip_core.training.features import FeatureBatches
from blip_core.training.objectives import entropy, shares_of
from blip_core.training.step import Losses, MicroBatch, Objective
from blip_core.weights.language import IGNORED, Language, Words


@dataclass(frozen=True, kw_only=True)
class PromptBatch(MicroBatch):
    """What a frozen encoder made of the pictures, and the texts as `Words` has them."""

    features: Tensor
    ids: Tensor
    mask: Tensor
    targets: Tensor


class PromptBatches(FeatureBatches):
    """Of stage 2. `prompt` stands before each text and is not learned. `split`, of a language model with an encoder alone: it reads the
    first part of a text as well."""

    def __init__(self, *args: Any, language: Language, prompt: str, split: bool, **options: Any):
        super().__init__(*args, **options)
        self.language, self.prompt, self.split = language, prompt, split

    def batch(self, seen: Tensor, picked: Picked, keys: list[str], texts: list[str]) -> PromptBatch:
        starts = [self.prompt] * len(texts)
        if self.split:
            cuts = [np.random.default_rng([self.seed, picked.about["step"], 2, int(place)]).random() for place in picked.places]
            parts = [cut_words(text, cut) for text, cut in zip(texts, cuts, strict=True)]
            starts = [f"{self.prompt} {first}".strip() for first, _ in parts]
            texts = [rest for _, rest in parts]
        words = self.language.words(starts, texts, max_tokens=self.cfg.max_tokens)
        return PromptBatch(features=seen, keys=tuple(keys), **vars(words), **picked.about)


def cut_words(text: str, draw: float) -> tuple[str, str]:
    """A text in two at a word; the second part has one at least. `draw` is uniform in [0, 1)."""
    words = text.split()
    place = int(draw * max(1, len(words)))
    return " ".join(words[:place]), " ".join(words[place:])


class PromptObjective(Objective):
    """LM by the frozen language model. It holds that model outside of its own state: no training saves it."""

    uses_all_parameters = True

    def __init__(self, language: Language, cfg: LanguageConfig):
        super().__init__()
        self.language, self.cfg = language, cfg

    def forward(self, model: Prompter, batch: PromptBatch) -> Losses:
        logits = self.language.logits(model(batch.features), Words(batch.ids, batch.mask, batch.targets))
        rows, targets = logits.flatten(0, 1).float(), batch.targets.flatten()
        summed = F.cross_entropy(rows, targets, label_smoothing=self.cfg.label_smoothing, ignore_index=IGNORED, reduction="sum")
        return {"lm": global_mean(summed, _counted(batch))}

    def shares(self, batches: list[PromptBatch]) -> dict[str, Tensor]:
        return {"lm": shares_of([_counted(b) for b in batches])}

    def vitals(self, batch: PromptBatch) -> dict[str, float]:
        return {"lm_chance": entropy(batch.targets[batch.targets != IGNORED])}


def _counted(batch: PromptBatch) -> Tensor:
    """How many tokens LM learns."""
    return (batch.targets != IGNORED).sum()

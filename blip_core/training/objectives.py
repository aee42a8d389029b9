"""Objectives: each turns a batch into a dict of losses. ITC and ITM as in ALBEF (Li et al. 2021) and BLIP section 3.2; LM as BLIP.

B pairs of this process, G pairs over all processes, M tokens that LM counts.

A step may come in micro-batches (OptimConfig.accumulate). Against the same pairs in one batch:
LM   equal: each micro-batch weighs as many tokens as it has in the step.
ITM  a mean over as many pairs, but a pair's negatives are drawn from its own micro-batch.
ITC  a mean over as many pairs; the candidates of a pair are its own micro-batch and the queue, which the micro-batches enter one
     after the other: the last sees the whole batch, and the queue behind the step is the same. The twin moves once per step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_core.compute.distributed import gather, global_mean, rank, total, world_size
from blip_core.config.contrast import ContrastConfig
from blip_core.config.training import LanguageConfig
from blip_core.model.blip import Blip, SpecialTokens
from blip_core.model.med import KeysValues
from blip_core.training.contrast import Contrast, LearnedTemperature, Similarities
from blip_core.training.step import Batch, Losses, MicroBatch, Objective, TextBatch


class Grounded(Protocol):
    """What ITM and LM ask of a network: a Blip, or a Q-Former (model/qformer.py)."""

    special: SpecialTokens

    @property
    def med(self) -> Any: ...

    def keys_values(self, image: Tensor, /) -> list[KeysValues]: ...

    def match_logits(self, ids_BT: Tensor, mask_BT: Tensor, *groups: list[KeysValues]) -> Tensor: ...

    def caption_hidden(self, ids_BT: Tensor, images: list[KeysValues], mask_BT: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Pairs:
    """What ITM reads: the B own pairs, then the own images with hard negative texts, then hard negative images with the own texts."""

    ids: Tensor  # 3B x T
    mask: Tensor  # 3B x T
    images: Tensor  # B: the images of the last third, as places in the global batch
    labels: Tensor  # 3B: 1 for a pair, 0 for a negative
    valid: Tensor  # 3B: False where a row has no negative


@dataclass(frozen=True)
class Passes:
    """What the passes for ITC, ITM and LM leave for further losses (optional.py)."""

    image_tokens: Tensor
    keys_values: list[KeysValues]
    similarities: Similarities
    pairs: Pairs
    match_logits: Tensor  # 3B x 2
    hidden: Tensor | None  # M x D: decoder states before the tokens that LM counts


def hard_pairs(batch: TextBatch, similarities: Similarities, hardness: float | Tensor, *, pad: int) -> Pairs:
    """Each pair with one hard negative text and one hard negative image of the global batch."""
    own = slice(rank() * len(batch.ids), (rank() + 1) * len(batch.ids))
    text, has_text = draw_negatives(similarities.image_to_text_BG, similarities.related_BG, batch.draws[0], hardness)
    image, has_image = draw_negatives(similarities.text_to_image_BG, similarities.related_BG, batch.draws[1], hardness)
    ids, mask = (torch.cat([t[own], t[text], t[own]]) for t in gather_texts(batch.ids, batch.mask, pad=pad))
    labels = torch.cat([torch.ones_like(text), torch.zeros_like(text), torch.zeros_like(text)])
    return Pairs(ids, mask, image, labels, torch.cat([torch.ones_like(has_text), has_text, has_image]))


def pair_logits(model: Grounded, pairs: Pairs, image_tokens: Tensor, keys_values: list[KeysValues]) -> Tensor:
    """ITM logits of all of them in one pass: 3B x 2."""
    if world_size() == 1:
        negatives: list[KeysValues] = [(k[pairs.images], v[pairs.images]) for k, v in keys_values]
    else:
        negatives = model.keys_values(gather(image_tokens)[pairs.images])
    return model.match_logits(pairs.ids, pairs.mask, keys_values, keys_values, negatives)


def matching_loss(logits: Tensor, pairs: Pairs) -> Tensor:
    """ITM: cross-entropy of pair or no pair."""
    losses = F.cross_entropy(logits, pairs.labels, reduction="none")
    return global_mean((losses * pairs.valid).sum(), pairs.valid.sum())


@torch.no_grad()
def draw_negatives(similarity_BG: Tensor, related_BG: Tensor, draw_B: Tensor, hardness: float | Tensor) -> tuple[Tensor, Tensor]:
    """One index of G per row, in proportion to softmax(hardness * similarity) over the unrelated ones, and whether there was any.

    `draw_B` are uniform numbers in [0, 1): drawn outside, so that every process and device draws the same.
    """
    logits = (similarity_BG.float() * hardness).masked_fill(related_BG, -math.inf)
    exists = ~related_BG.all(dim=1)
    weights = torch.where(exists[:, None], logits, torch.zeros_like(logits)).softmax(dim=1)
    cumulative = weights.cumsum(dim=1)
    index = torch.searchsorted(cumulative, (draw_B[:, None] * cumulative[:, -1:]), right=True).squeeze(1)
    return index.clamp(max=similarity_BG.shape[1] - 1), exists


def gather_texts(ids_BT: Tensor, mask_BT: Tensor, *, pad: int) -> tuple[Tensor, Tensor]:
    """The texts of all processes, padded to the longest of them."""
    if world_size() == 1:
        return ids_BT, mask_BT
    extra = 0 if torch.compiler.is_compiling() else longest_of_all(ids_BT) - ids_BT.shape[1]  # a captured step has equal lengths
    return gather(F.pad(ids_BT, (0, extra), value=pad)), gather(F.pad(mask_BT, (0, extra), value=False).to(torch.uint8)).bool()


def longest_of_all(ids_BT: Tensor) -> int:
    """The length of the texts of that process which has the longest."""
    length = torch.tensor(ids_BT.shape[1], device=ids_BT.device)
    torch.distributed.all_reduce(length, op=torch.distributed.ReduceOp.MAX)
    return int(length)


def language_loss(model: Grounded, batch: TextBatch, keys_values: list[KeysValues], label_smoothing: float) -> Tensor:
    """LM: cross-entropy of each next token, the prompt and the padding masked."""
    return language_loss_of(model, batch, counted_hidden(model, batch, keys_values), label_smoothing)


def language_loss_of(model: Grounded, batch: TextBatch, hidden_MD: Tensor, label_smoothing: float) -> Tensor:
    """The same, of decoder states that `counted_hidden` made."""
    losses_M, count = model.med.token_losses(hidden_MD, learned_ids(batch), smoothing=label_smoothing), batch.counted.sum()
    learned_M = torch.arange(len(losses_M), device=losses_M.device) < count  # all but what `fixed` put behind
    return global_mean((losses_M * learned_M).sum(), count)


def counted_hidden(model: Grounded, batch: TextBatch, keys_values: list[KeysValues]) -> Tensor:
    """Decoder states before each token that LM counts, all others left out: M x D."""
    return model.caption_hidden(batch.ids, keys_values, batch.mask).flatten(0, 1).index_select(0, batch.learned)


def learned_ids(batch: TextBatch) -> Tensor:
    """The tokens that LM counts: M."""
    return batch.ids.flatten().index_select(0, batch.learned + 1)


def language_shares(batches: Sequence[TextBatch]) -> Tensor:
    """Share of each micro-batch of a step in the tokens that LM learns, over all processes."""
    return shares_of([b.counted.sum() for b in batches])


def shares_of(counts: list[Tensor]) -> Tensor:
    """Share of each micro-batch of a step in what is counted, over all processes."""
    sums = total(torch.stack(counts))
    return sums / sums.sum()


def word_entropy(batch: TextBatch) -> float:
    """Of the tokens that LM learns."""
    return entropy(learned_ids(batch))


def entropy(tokens: Tensor) -> float:
    """In nats, by their frequency in the batch: what knowing frequencies alone would cost."""
    _, counts = tokens.unique(return_counts=True)
    return float(torch.distributions.Categorical(counts.float()).entropy())


class ThreeObjectives(Objective):
    """What ITC + ITM + LM have in common, whatever network they train; without `language` ITC + ITM alone."""

    def __init__(self, contrast: LearnedTemperature, language: LanguageConfig | None):
        super().__init__()
        self.contrast, self.language = contrast, language
        self.uses_all_parameters = language is not None
        self.bounds = {"temperature": contrast.cfg.temperature_range}

    def hardness(self, batch: TextBatch) -> float | Tensor:
        """Of the negatives of ITM, in [0, 1]."""
        return batch.risen(self.contrast.cfg.hardness_ramp)

    def shares(self, batches: Sequence[TextBatch]) -> dict[str, Tensor]:
        return {} if self.language is None else {"lm": language_shares(batches)}

    def after_step(self) -> dict[str, Tensor]:
        """Bounds the temperature."""
        self.contrast.clamp_temperature()
        return {"temperature": self.contrast.temperature.detach()}

    def vitals(self, batch: TextBatch) -> dict[str, float]:
        return self.contrast.vitals() | ({} if self.language is None else {"lm_chance": word_entropy(batch)})


class PretrainObjective(ThreeObjectives):
    """ITC + ITM + LM, one image pass for all three (paper Figure 2)."""

    contrast: Contrast

    def __init__(self, model: Blip, contrast: ContrastConfig, language: LanguageConfig | None):
        super().__init__(Contrast(model, contrast), language)

    def before_step(self, model: Blip, batch: MicroBatch) -> None:
        self.contrast.update_twin(model, seed=batch.seed * 1_000_003 + batch.step)

    def forward(self, model: Blip, batch: Batch) -> Losses:
        return self.passes(model, batch, batch)[0]

    def passes(self, model: Blip, batch: Batch, read: Batch) -> tuple[Losses, Passes]:
        """`read`: the batch with the texts as the encoder reads them; the decoder reads `batch`."""
        image_tokens = model.image_tokens(batch.pixels)
        keys_values = model.keys_values(image_tokens)
        itc, similarities = self.contrast(model, read, image_tokens)
        pairs = hard_pairs(read, similarities, self.hardness(batch), pad=model.special.pad)
        logits = pair_logits(model, pairs, image_tokens, keys_values)
        losses, hidden = {"itc": itc, "itm": matching_loss(logits, pairs)}, None
        if self.language is not None:
            hidden = counted_hidden(model, batch, keys_values)
            losses["lm"] = language_loss_of(model, batch, hidden, self.language.label_smoothing)
        return losses, Passes(image_tokens, keys_values, similarities, pairs, logits, hidden)


class CaptionObjective(Objective):
    """LM alone: fine-tunes the captioner."""

    def __init__(self, language: LanguageConfig):
        super().__init__()
        self.language = language

    def forward(self, model: Any, batch: Any) -> Losses:
        return {"lm": language_loss(model, batch, self.seen(model, batch), self.language.label_smoothing)}

    def seen(self, model: Any, batch: Any) -> list[KeysValues]:
        """What the decoder attends to in the pictures."""
        return model.keys_values(model.image_tokens(batch.pixels))

    def shares(self, batches: Sequence[TextBatch]) -> dict[str, Tensor]:
        return {"lm": language_shares(batches)}

    def vitals(self, batch: TextBatch) -> dict[str, float]:
        return {"lm_chance": word_entropy(batch)}

"""Objectives: each turns a batch into a dict of losses. ITC and ITM as in ALBEF (Li et al. 2021) and BLIP section 3.2; LM as BLIP.

B pairs of this process, G pairs over all processes, Q queued features, C = G + Q candidates, E width of the ITC space.

A step may come in micro-batches (OptimConfig.accumulate). Against the same pairs in one batch:
LM   equal: each micro-batch weighs as many tokens as it has in the step.
ITM  a mean over as many pairs, but a pair's negatives are drawn from its own micro-batch.
ITC  a mean over as many pairs; the candidates of a pair are its own micro-batch and the queue, which the micro-batches enter one
     after the other: the last sees the whole batch, and the queue behind the step is the same. The twin moves once per step.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip_core.compute.distributed import gather, global_mean, rank, total, world_size
from blip_core.config.training import ContrastConfig, LanguageConfig
from blip_core.model.blip import Blip, SpecialTokens
from blip_core.model.med import KeysValues
from blip_core.training.step import Batch, Losses, Objective, TextBatch


class Grounded(Protocol):
    """What ITM and LM ask of a network: a Blip, or a Q-Former (model/qformer.py)."""

    special: SpecialTokens

    @property
    def med(self) -> Any: ...

    def keys_values(self, image: Tensor, /) -> list[KeysValues]: ...

    def match_logits(self, ids_BT: Tensor, mask_BT: Tensor, *groups: list[KeysValues]) -> Tensor: ...

    def caption_hidden(self, ids_BT: Tensor, images: list[KeysValues], mask_BT: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Similarities:
    """What ITC leaves for ITM: cosine over temperature of own rows to the global batch, and who may not be a negative."""

    image_to_text_BG: Tensor
    text_to_image_BG: Tensor
    related_BG: Tensor  # True for the same picture or the same text


class Contrast(nn.Module):
    """ITC with a momentum encoder, soft targets and a queue. Holds their state; the losses' gradients reach the online model."""

    def __init__(self, model: Blip, cfg: ContrastConfig):
        super().__init__()
        self.cfg = cfg
        self.twin = momentum_twin(model)
        self.temperature = nn.Parameter(torch.tensor(cfg.temperature))
        for name in ("image", "text"):
            self.register_buffer(f"{name}_queue", torch.zeros(cfg.queue_size, model.cfg.embed_dim))
            self.register_buffer(f"{name}_id_queue", torch.zeros(cfg.queue_size, dtype=torch.long))
        self.queue_filled = self.queue_next = 0

    def forward(self, model: Blip, batch: Batch, image_tokens: Tensor) -> tuple[Tensor, Similarities]:
        """The ITC loss, and the similarities for hard negatives."""
        image_BE, text_BE = model.image_features(image_tokens), model.text_features(batch.ids, batch.mask)
        twin_image, twin_text = self._twin_features(batch)
        fresh = {"image": twin_image, "text": twin_text, "image_id": batch.image_ids, "text_id": batch.text_ids}
        fresh = {name: gather(rows) for name, rows in fresh.items()}
        images_CE, texts_CE, image_ids_C, text_ids_C = (torch.cat([rows, self._filled(name)]) for name, rows in fresh.items())
        same_image = batch.image_ids[:, None] == image_ids_C
        # a text that another picture has too is neither a positive nor a negative
        hidden = (batch.text_ids[:, None] == text_ids_C) & ~same_image
        alpha = self.cfg.alpha * min(1.0, batch.progress / self.cfg.alpha_ramp) if self.cfg.alpha_ramp else self.cfg.alpha
        losses, logits = [], []
        for online, twin, candidates in ((image_BE, twin_image, texts_CE), (text_BE, twin_text, images_CE)):
            logits_BC = (online @ candidates.T / self.temperature).masked_fill(hidden, -math.inf)
            with torch.no_grad():
                soft = (twin @ candidates.T / self.temperature).masked_fill(hidden, -math.inf).softmax(-1)
                hard = same_image / same_image.sum(-1, keepdim=True)
                target_BC = alpha * soft + (1 - alpha) * hard
            losses.append(-(target_BC * logits_BC.log_softmax(-1).masked_fill(hidden, 0)).sum(-1).mean())
            logits.append(logits_BC.detach())
        self._enqueue(**fresh)
        self._seen = (image_BE.detach(), text_BE.detach(), len(texts_CE))
        num_global = len(batch.image_ids) * world_size()
        related = (same_image | hidden)[:, :num_global]
        return (losses[0] + losses[1]) / 2, Similarities(logits[0][:, :num_global], logits[1][:, :num_global], related)

    @torch.no_grad()
    def _twin_features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.twin.image_features(self.twin.image_tokens(batch.pixels)), self.twin.text_features(batch.ids, batch.mask)

    @torch.no_grad()
    def update_twin(self, model: Blip) -> None:
        """twin = momentum * twin + (1 - momentum) * model, before the step's features, as ALBEF."""
        online = dict(model.named_parameters())
        twins = dict(self.twin.named_parameters())
        torch._foreach_lerp_(list(twins.values()), [online[n] for n in twins], 1 - self.cfg.momentum)

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        self.temperature.clamp_(*self.cfg.temperature_range)

    def vitals(self) -> dict[str, float]:
        """Of the last batch: how alike the features of different pairs are, and the loss of equal similarities to all candidates."""
        image_BE, text_BE, num_candidates = self._seen
        return {"image_cosine": mean_cosine(image_BE), "text_cosine": mean_cosine(text_BE), "itc_chance": math.log(num_candidates)}

    def get_extra_state(self) -> dict[str, int]:
        return {"queue_filled": self.queue_filled, "queue_next": self.queue_next}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.queue_filled, self.queue_next = state["queue_filled"], state["queue_next"]

    def _filled(self, name: str) -> Tensor:
        return getattr(self, f"{name}_queue")[: self.queue_filled]

    @torch.no_grad()
    def _enqueue(self, **rows: Tensor) -> None:
        """G rows for each of the queues, by name. A ring buffer: any batch size, any queue size."""
        size = self.cfg.queue_size
        if size == 0:
            return
        newest = min(len(rows["image"]), size)
        slots = (torch.arange(newest, device=rows["image"].device) + self.queue_next) % size
        for name, values in rows.items():
            queue = getattr(self, f"{name}_queue")
            queue[slots] = values[-newest:].to(queue.dtype)
        self.queue_next = (self.queue_next + newest) % size
        self.queue_filled = min(size, self.queue_filled + newest)


def mean_cosine(unit_BE: Tensor) -> float:
    """Mean cosine of all pairs of different rows, which have unit length: near 1 when features have collapsed."""
    count = len(unit_BE)
    return float((unit_BE.sum(0).square().sum() - count) / max(1, count * (count - 1)))


def momentum_twin(model: Blip) -> Blip:
    """A copy of the two ITC towers of the model, without gradient. What only grounding and decoding use is left out."""
    twin = copy.deepcopy(model)
    for block in twin.med.blocks:
        del block.decoder_attention, block.cross_attention
    del twin.med.head, twin.med.head_bias, twin.match_head
    return twin.eval().requires_grad_(False)


def matching_loss(
    model: Grounded, batch: TextBatch, image_tokens: Tensor, keys_values: list[KeysValues], similarities: Similarities, hardness: float
) -> Tensor:
    """ITM: each pair against one hard negative text and one hard negative image of the global batch, in one pass of 3B."""
    own = slice(rank() * len(batch.ids), (rank() + 1) * len(batch.ids))
    draws = _draws(batch)[:, own].to(batch.ids.device)
    text, has_text = draw_negatives(similarities.image_to_text_BG, similarities.related_BG, draws[0], hardness)
    image, has_image = draw_negatives(similarities.text_to_image_BG, similarities.related_BG, draws[1], hardness)
    all_ids, all_masks = gather_texts(batch.ids, batch.mask, pad=model.special.pad)
    if world_size() == 1:
        negative_images: list[KeysValues] = [(k[image], v[image]) for k, v in keys_values]
    else:
        negative_images = model.keys_values(gather(image_tokens)[image])
    ids, mask = (torch.cat([t[own], t[text], t[own]]) for t in (all_ids, all_masks))
    logits = model.match_logits(ids, mask, keys_values, keys_values, negative_images)
    labels = torch.cat([torch.ones_like(text), torch.zeros_like(text), torch.zeros_like(text)])
    valid = torch.cat([torch.ones_like(has_text), has_text, has_image])
    losses = F.cross_entropy(logits, labels, reduction="none")
    return global_mean((losses * valid).sum(), valid.sum())


def _draws(batch: TextBatch) -> Tensor:
    """Uniform numbers for the two negatives of each of the G pairs, the same in every process: 2 x G."""
    num_global = len(batch.ids) * world_size()
    generator = torch.Generator().manual_seed(batch.seed * 1_000_003 + batch.step)
    return torch.rand(2, num_global * batch.parts, generator=generator)[:, batch.part * num_global :][:, :num_global]


def draw_negatives(similarity_BG: Tensor, related_BG: Tensor, draw_B: Tensor, hardness: float) -> tuple[Tensor, Tensor]:
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
    length = torch.tensor(ids_BT.shape[1], device=ids_BT.device)
    torch.distributed.all_reduce(length, op=torch.distributed.ReduceOp.MAX)
    extra = int(length) - ids_BT.shape[1]
    return gather(F.pad(ids_BT, (0, extra), value=pad)), gather(F.pad(mask_BT, (0, extra), value=False).to(torch.uint8)).bool()


def language_loss(model: Grounded, batch: TextBatch, keys_values: list[KeysValues], label_smoothing: float) -> Tensor:
    """LM: cross-entropy of each next token, the prompt and the padding masked. Logits are made only where they count."""
    hidden_BTD = model.caption_hidden(batch.ids, keys_values, batch.mask)[:, :-1]
    counted = counted_tokens(batch)
    logits = model.med.vocabulary_logits(hidden_BTD[counted]).float()
    summed = F.cross_entropy(logits, batch.ids[:, 1:][counted], label_smoothing=label_smoothing, reduction="sum")
    return global_mean(summed, counted.sum())


def counted_tokens(batch: TextBatch) -> Tensor:
    """True where the next token counts for LM: not in the prompt, not in the padding. B x (T - 1)."""
    counted = batch.mask[:, 1:].clone()
    counted[:, : batch.prompt_tokens] = False
    return counted


def language_shares(batches: Sequence[TextBatch]) -> Tensor:
    """Share of each micro-batch of a step in the tokens that LM learns, over all processes."""
    return shares_of([counted_tokens(b).sum() for b in batches])


def shares_of(counts: list[Tensor]) -> Tensor:
    """Share of each micro-batch of a step in what is counted, over all processes."""
    sums = total(torch.stack(counts))
    return sums / sums.sum()


def word_entropy(batch: TextBatch) -> float:
    """Of the tokens that LM learns."""
    return entropy(batch.ids[:, 1:][counted_tokens(batch)])


def entropy(tokens: Tensor) -> float:
    """In nats, by their frequency in the batch: what knowing frequencies alone would cost."""
    _, counts = tokens.unique(return_counts=True)
    return float(torch.distributions.Categorical(counts.float()).entropy())


class PretrainObjective(Objective):
    """ITC + ITM + LM, one image pass for all three (paper Figure 2)."""

    def __init__(self, model: Blip, contrast: ContrastConfig, language: LanguageConfig | None):
        super().__init__()
        self.contrast, self.language = Contrast(model, contrast), language
        self.uses_all_parameters = language is not None
        self.bounds = {"temperature": contrast.temperature_range}

    def before_step(self, model: Blip) -> None:
        self.contrast.update_twin(model)

    def forward(self, model: Blip, batch: Batch) -> Losses:
        image_tokens = model.image_tokens(batch.pixels)
        keys_values = model.keys_values(image_tokens)
        itc, similarities = self.contrast(model, batch, image_tokens)
        ramp = self.contrast.cfg.hardness_ramp
        hardness = min(1.0, batch.progress / ramp) if ramp else 1.0
        losses = {"itc": itc, "itm": matching_loss(model, batch, image_tokens, keys_values, similarities, hardness)}
        if self.language is not None:
            losses["lm"] = language_loss(model, batch, keys_values, self.language.label_smoothing)
        return losses

    def shares(self, batches: list[Batch]) -> dict[str, Tensor]:
        return {} if self.language is None else {"lm": language_shares(batches)}

    def after_step(self) -> dict[str, Tensor]:
        """Bounds the temperature."""
        self.contrast.clamp_temperature()
        return {"temperature": self.contrast.temperature.detach()}

    def vitals(self, batch: Batch) -> dict[str, float]:
        return self.contrast.vitals() | ({} if self.language is None else {"lm_chance": word_entropy(batch)})


class CaptionObjective(Objective):
    """LM alone: fine-tunes the captioner."""

    def __init__(self, language: LanguageConfig):
        super().__init__()
        self.language = language

    def forward(self, model: Blip, batch: Batch) -> Losses:
        keys_values = model.keys_values(model.image_tokens(batch.pixels))
        return {"lm": language_loss(model, batch, keys_values, self.language.label_smoothing)}

    def shares(self, batches: list[Batch]) -> dict[str, Tensor]:
        return {"lm": language_shares(batches)}

    def vitals(self, batch: Batch) -> dict[str, float]:
        return {"lm_chance": word_entropy(batch)}

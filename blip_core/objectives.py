"""Objectives: each turns a batch into a dict of losses. ITC and ITM as in ALBEF (Li et al. 2021) and BLIP section 3.2; LM as BLIP.

B pairs of this process, G pairs over all processes, Q queued features, C = G + Q candidates, E width of the ITC space.
"""

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip_core.config import ContrastConfig, LanguageConfig
from blip_core.distributed import gather, mean_over_ranks, rank, world_size
from blip_core.model.blip import Blip
from blip_core.model.med import KeysValues

Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """Pairs of image and text. Identities are hashes: equal numbers mean the same picture, or the same text."""

    pixels: Tensor  # B x 3 x H x W, normalised
    ids: Tensor  # B x T: [CLS] text [SEP], padding behind
    mask: Tensor  # B x T, True where a token stands
    prompt_tokens: int  # leading tokens of each text that LM does not learn, [CLS] not counted
    image_ids: Tensor  # B
    text_ids: Tensor  # B
    step: int
    progress: float  # share of the steps done, in [0, 1)
    seed: int

    def to(self, device: torch.device) -> "Batch":
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return Batch(**{**vars(self), **moved})


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
        images_CE, texts_CE = (torch.cat([gather(twin), queue]) for twin, queue in ((twin_image, self._filled("image")), (twin_text, self._filled("text"))))
        image_ids_C = torch.cat([gather(batch.image_ids), self._filled("image_id")])
        text_ids_C = torch.cat([gather(batch.text_ids), self._filled("text_id")])
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
        self._enqueue(gather(twin_image), gather(twin_text), gather(batch.image_ids), gather(batch.text_ids))
        num_global = len(batch.image_ids) * world_size()
        related = (same_image | hidden)[:, :num_global]
        return sum(losses) / 2, Similarities(logits[0][:, :num_global], logits[1][:, :num_global], related)

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

    def get_extra_state(self) -> dict[str, int]:
        return {"queue_filled": self.queue_filled, "queue_next": self.queue_next}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.queue_filled, self.queue_next = state["queue_filled"], state["queue_next"]

    def _filled(self, name: str) -> Tensor:
        return getattr(self, f"{name}_queue")[: self.queue_filled]

    @torch.no_grad()
    def _enqueue(self, image_GE: Tensor, text_GE: Tensor, image_ids_G: Tensor, text_ids_G: Tensor) -> None:
        """Ring buffer: any batch size, any queue size."""
        size = self.cfg.queue_size
        if size == 0:
            return
        newest = min(len(image_GE), size)
        slots = (torch.arange(newest, device=image_GE.device) + self.queue_next) % size
        for queue, values in ((self.image_queue, image_GE), (self.text_queue, text_GE), (self.image_id_queue, image_ids_G), (self.text_id_queue, text_ids_G)):
            queue[slots] = values[-newest:].to(queue.dtype)
        self.queue_next = (self.queue_next + newest) % size
        self.queue_filled = min(size, self.queue_filled + newest)


def momentum_twin(model: Blip) -> Blip:
    """A copy of the two ITC towers of the model, without gradient. What only grounding and decoding use is left out."""
    twin = copy.deepcopy(model)
    for block in twin.med.blocks:
        del block.decoder_attention, block.cross_attention
    del twin.med.head, twin.med.head_bias, twin.match_head
    return twin.eval().requires_grad_(False)


def matching_loss(model: Blip, batch: Batch, image_tokens: Tensor, keys_values: list[KeysValues], similarities: Similarities, hardness: float) -> Tensor:
    """ITM: each pair against one hard negative text and one hard negative image of the global batch, in one pass of 3B."""
    draws = torch.rand(2, len(batch.ids) * world_size(), generator=torch.Generator().manual_seed(batch.seed * 1_000_003 + batch.step))
    own = slice(rank() * len(batch.ids), (rank() + 1) * len(batch.ids))
    draws = draws[:, own].to(batch.ids.device)
    text, has_text = draw_negatives(similarities.image_to_text_BG, similarities.related_BG, draws[0], hardness)
    image, has_image = draw_negatives(similarities.text_to_image_BG, similarities.related_BG, draws[1], hardness)
    all_ids, all_masks = gather_texts(batch.ids, batch.mask, pad=model.special.pad)
    if world_size() == 1:
        negative_images = [(k[image], v[image]) for k, v in keys_values]
    else:
        negative_images = model.keys_values(gather(image_tokens)[image])
    images = [(torch.cat([k, k, nk]), torch.cat([v, v, nv])) for (k, v), (nk, nv) in zip(keys_values, negative_images, strict=True)]
    own_ids, own_mask = all_ids[own], all_masks[own]
    logits = model.match_logits(torch.cat([own_ids, all_ids[text], own_ids]), torch.cat([own_mask, all_masks[text], own_mask]), images)
    labels = torch.cat([torch.ones_like(text), torch.zeros_like(text), torch.zeros_like(text)])
    valid = torch.cat([torch.ones_like(has_text), has_text, has_image])
    losses = F.cross_entropy(logits, labels, reduction="none")
    return mean_over_ranks((losses * valid).sum(), valid.sum())


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


def language_loss(model: Blip, batch: Batch, keys_values: list[KeysValues], label_smoothing: float) -> Tensor:
    """LM: cross-entropy of each next token, the prompt and the padding masked. Logits are made only where they count."""
    hidden_BTD = model.caption_hidden(batch.ids, keys_values)[:, :-1]
    counted = batch.mask[:, 1:].clone()
    counted[:, : batch.prompt_tokens] = False
    logits = model.med.vocabulary_logits(hidden_BTD[counted]).float()
    targets = batch.ids[:, 1:][counted]
    total = F.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="sum")
    return mean_over_ranks(total, counted.sum())


class PretrainObjective(nn.Module):
    """ITC + ITM + LM, one image pass for all three (paper Figure 2)."""

    def __init__(self, model: Blip, contrast: ContrastConfig, language: LanguageConfig | None):
        super().__init__()
        self.contrast, self.language = Contrast(model, contrast), language

    def forward(self, model: Blip, batch: Batch) -> Losses:
        self.contrast.update_twin(model)
        image_tokens = model.image_tokens(batch.pixels)
        keys_values = model.keys_values(image_tokens)
        itc, similarities = self.contrast(model, batch, image_tokens)
        ramp = self.contrast.cfg.hardness_ramp
        hardness = min(1.0, batch.progress / ramp) if ramp else 1.0
        losses = {"itc": itc, "itm": matching_loss(model, batch, image_tokens, keys_values, similarities, hardness)}
        if self.language is not None:
            losses["lm"] = language_loss(model, batch, keys_values, self.language.label_smoothing)
        return losses

    def after_step(self) -> dict[str, Tensor]:
        """Called behind the optimizer: bounds the temperature; returns what is worth a line in the log."""
        self.contrast.clamp_temperature()
        return {"temperature": self.contrast.temperature.detach()}


class CaptionObjective(nn.Module):
    """LM alone: fine-tunes the captioner."""

    def __init__(self, language: LanguageConfig):
        super().__init__()
        self.language = language

    def forward(self, model: Blip, batch: Batch) -> Losses:
        keys_values = model.keys_values(model.image_tokens(batch.pixels))
        return {"lm": language_loss(model, batch, keys_values, self.language.label_smoothing)}

    def after_step(self) -> dict[str, Tensor]:
        return {}

"""ITC as in ALBEF (Li et al. 2021, sections 3.2 and 3.3) and BLIP section 3.2: momentum encoder, soft targets, queue.

B pairs of this process, G pairs over all processes, Q queued features, C = G + Q candidates, E width of the ITC space.
"""

import copy
import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip_core.compute.distributed import gather, world_size
from blip_core.config.contrast import ContrastConfig, QueryContrastConfig
from blip_core.model.blip import Blip
from blip_core.model.vqa import encoder_of
from blip_core.training.rounding import lerp_
from blip_core.training.step import Batch


@dataclass(frozen=True)
class Turn:
    """The queue's state as a graph of fixed shapes takes it: as tensors, since numbers of Python would be part of the graph."""

    filled_Q: Tensor  # True where a feature stands; the others are hidden
    slots: Tensor  # that the newest rows take


@dataclass(frozen=True)
class Similarities:
    """What ITC leaves for ITM: cosine over temperature of own rows to the global batch, and who may not be a negative."""

    image_to_text_BG: Tensor  # with gradient
    text_to_image_BG: Tensor  # with gradient
    related_BG: Tensor  # True for the same picture or the same text


class LearnedTemperature(nn.Module):
    """What every ITC has, whatever its features and its negatives."""

    def __init__(self, cfg: ContrastConfig | QueryContrastConfig):
        super().__init__()
        self.cfg = cfg
        self.temperature = nn.Parameter(torch.tensor(cfg.temperature))

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        self.temperature.clamp_(*self.cfg.temperature_range)

    def vitals(self) -> dict[str, float]:
        """Of the last batch: how alike the features of different pairs are, and the loss of equal similarities to all candidates."""
        raise NotImplementedError


class Contrast(LearnedTemperature):
    """ITC with a momentum encoder, soft targets and a queue. Holds their state; the losses' gradients reach the online model."""

    cfg: ContrastConfig

    def __init__(self, model: Blip, cfg: ContrastConfig):
        super().__init__(cfg)
        self.twin = momentum_twin(model, cfg.twin_precision)
        for name in ("image", "text"):
            self.register_buffer(f"{name}_queue", torch.zeros(cfg.queue_size, model.cfg.embed_dim))
            self.register_buffer(f"{name}_id_queue", torch.zeros(cfg.queue_size, dtype=torch.long))
        self.queue_filled = self.queue_next = 0
        self.turn: Turn | None = None

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
        if self.turn is not None:
            empty_C = F.pad(~self.turn.filled_Q, (len(fresh["image"]), 0))
            same_image, hidden = same_image & ~empty_C, hidden | empty_C
        alpha = self.cfg.alpha * batch.risen(self.cfg.alpha_ramp)
        losses, logits = [], []
        for online, twin, candidates in ((image_BE, twin_image, texts_CE), (text_BE, twin_text, images_CE)):
            logits_BC = (online @ candidates.T / self.temperature).masked_fill(hidden, -math.inf)
            with torch.no_grad():
                soft = (twin @ candidates.T / self.temperature).masked_fill(hidden, -math.inf).softmax(-1)
                hard = same_image / same_image.sum(-1, keepdim=True)
                target_BC = alpha * soft + (1 - alpha) * hard
            losses.append(-(target_BC * logits_BC.log_softmax(-1).masked_fill(hidden, 0)).sum(-1).mean())
            logits.append(logits_BC)
        self._enqueue(**fresh)
        self._seen = (image_BE.detach(), text_BE.detach(), len(texts_CE) if self.turn is None else (~empty_C).sum())
        num_global = len(batch.image_ids) * world_size()
        related = (same_image | hidden)[:, :num_global]
        return (losses[0] + losses[1]) / 2, Similarities(logits[0][:, :num_global], logits[1][:, :num_global], related)

    @torch.no_grad()
    def _twin_features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        pixels = batch.pixels.to(self.twin.image_projection.weight.dtype)
        return self.twin.image_features(self.twin.image_tokens(pixels)), self.twin.text_features(batch.ids, batch.mask)

    @torch.no_grad()
    def update_twin(self, model: Blip, *, seed: int = 0) -> None:
        """twin = momentum * twin + (1 - momentum) * model, before the step's features, as ALBEF. `seed`: of the rounding to bf16."""
        online: dict[str, Tensor] = dict(model.named_parameters())
        twins: dict[str, Tensor] = dict(self.twin.named_parameters())
        averages, towards = list(twins.values()), [online[n] for n in twins]
        if self.cfg.twin_precision == "bf16":
            lerp_(averages, towards, 1 - self.cfg.momentum, seed=seed)
        else:
            torch._foreach_lerp_(averages, towards, 1 - self.cfg.momentum)

    def vitals(self) -> dict[str, float]:
        image_BE, text_BE, num_candidates = self._seen
        return {"image_cosine": mean_cosine(image_BE), "text_cosine": mean_cosine(text_BE), "itc_chance": math.log(int(num_candidates))}

    def get_extra_state(self) -> dict[str, int]:
        return {"queue_filled": self.queue_filled, "queue_next": self.queue_next}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.queue_filled, self.queue_next = state["queue_filled"], state["queue_next"]

    def _filled(self, name: str) -> Tensor:
        queue: Tensor = getattr(self, f"{name}_queue")
        return queue[: self.queue_filled] if self.turn is None else queue

    @torch.no_grad()
    def _enqueue(self, **rows: Tensor) -> None:
        """G rows for each of the queues, by name."""
        if self.cfg.queue_size == 0:
            return
        slots = self._slots(len(rows["image"])) if self.turn is None else self.turn.slots
        for name, values in rows.items():
            queue = getattr(self, f"{name}_queue")
            queue[slots] = values[-len(slots) :].to(queue.dtype)

    def take_turn(self, count: int) -> None:
        """Before each forward pass of a graph (capture.py), which brings `count` rows for the queue: what of the queue's state hangs on
        the step."""
        filled_Q = torch.arange(self.cfg.queue_size, device=self.temperature.device) < self.queue_filled
        self.turn = Turn(filled_Q, self._slots(count))

    def _slots(self, count: int) -> Tensor:
        """Where the newest of `count` rows go, from now on counted as there. A ring buffer: any batch size, any queue size."""
        size = self.cfg.queue_size
        newest = min(count, size)
        slots = (torch.arange(newest, device=self.temperature.device) + self.queue_next) % max(1, size)
        self.queue_next = (self.queue_next + newest) % max(1, size)
        self.queue_filled = min(size, self.queue_filled + newest)
        return slots


def mean_cosine(unit_BE: Tensor) -> float:
    """Mean cosine of all pairs of different rows, which have unit length: near 1 when features have collapsed."""
    count = len(unit_BE)
    return float((unit_BE.sum(0).square().sum() - count) / max(1, count * (count - 1)))


def momentum_twin(model: Blip, precision: Literal["fp32", "bf16"] = "fp32") -> Blip:
    """A copy of the two ITC towers of the model, without gradient. What only grounding and decoding use is left out."""
    twin = copy.deepcopy(model)
    for block in encoder_of(twin.med).blocks:
        del block.cross_attention
    del twin.match_head
    return twin.to(torch.bfloat16 if precision == "bf16" else torch.float32).eval().requires_grad_(False)

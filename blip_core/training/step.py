"""What a step of a training takes and gives: its micro-batches, and the class of all objectives."""

from copy import copy
from dataclasses import dataclass, field
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip_core.compute.distributed import rank, world_size

Losses = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One micro-batch of a step."""

    step: int
    progress: float | Tensor  # share of the steps done, in [0, 1); a tensor where a graph serves every step
    seed: int
    keys: tuple[str, ...] = ()  # of what is in it, for messages
    part: int = 0  # which micro-batch of the step
    parts: int = 1

    def to(self, device: torch.device) -> Self:
        moved = copy(self)  # what was made of it when it was made stays
        vars(moved).update({name: _moved(value, device) for name, value in vars(self).items()})
        return moved

    def risen(self, ramp: float) -> float | Tensor:
        """What rises linearly from 0 to 1 over this share of the steps, and is 1 behind it."""
        if not ramp:
            return 1.0
        share = self.progress / ramp
        return share.clamp(max=1.0) if isinstance(share, Tensor) else min(1.0, share)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {k: _moved(v, device) for k, v in value.items()}
    if isinstance(value, list):
        return [_moved(v, device) for v in value]
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value


@dataclass(frozen=True, kw_only=True)
class PixelBatch(MicroBatch):
    """With the pictures as MED takes them."""

    pixels: Tensor  # B x 3 x H x W, normalised


@dataclass(frozen=True, kw_only=True)
class TextBatch(MicroBatch):
    """The texts of pairs of image and text; `keys` are those of the images. Identities are hashes: equal numbers mean the same picture, or
    the same text.

    What a step would have to count or draw on the host is made with the batch, so that a step never waits for the device.
    """

    ids: Tensor  # B x T: [CLS] text [SEP], padding behind
    mask: Tensor  # B x T, True where a token stands
    prompt_tokens: int  # leading tokens of each text that LM does not learn, [CLS] not counted
    image_ids: Tensor  # B
    text_ids: Tensor  # B

    learned: Tensor = field(init=False)  # M: the places before the tokens that LM counts, in B x T laid flat; `fixed` has more behind
    draws: Tensor = field(init=False)  # 2 x B: uniform numbers for the two negatives of each pair

    def __post_init__(self) -> None:
        vars(self).update(learned=F.pad(self.counted, (0, 1)).flatten().nonzero()[:, 0], draws=self._draws().to(self.ids.device))

    @property
    def counted(self) -> Tensor:
        """True where the next token counts for LM: not in the prompt, not in the padding. B x (T - 1)."""
        counted = self.mask[:, 1:].clone()
        counted[:, : self.prompt_tokens] = False
        return counted

    def _draws(self) -> Tensor:
        """The own part of what is the same in every process."""
        own, num_global = len(self.ids), len(self.ids) * world_size()
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        drawn = torch.rand(2, num_global * self.parts, generator=generator)
        return drawn[:, self.part * num_global + rank() * own :][:, :own]

    def with_texts(self, ids: Tensor, mask: Tensor, learned: Tensor) -> Self:
        """Other tokens; nothing is counted or drawn anew."""
        changed = copy(self)
        vars(changed).update(ids=ids, mask=mask, learned=learned)
        return changed

    def fixed(self, tokens: int) -> Self:
        """The same pairs in shapes that hang on `tokens` alone: texts are padded to so many, and behind the places that LM learns stand
        others, as many as a text could have, which count nowhere."""
        num_texts, length = self.ids.shape
        ids, mask = (F.pad(t, (0, tokens - length)) for t in (self.ids, self.mask))
        learned = self.learned // length * tokens + self.learned % length
        most = num_texts * max(0, tokens - 1 - self.prompt_tokens)
        changed = self.with_texts(ids, mask, F.pad(learned, (0, most - len(learned))))
        # not in fp64, of which torch.compile would ask the value at every step
        vars(changed).update(progress=torch.tensor(self.progress, dtype=torch.float32).to(ids.device, non_blocking=True))
        return changed


@dataclass(frozen=True, kw_only=True)
class Batch(PixelBatch, TextBatch):
    """With the pictures."""


@dataclass(frozen=True, kw_only=True)
class FeatureBatch(TextBatch):
    """With what a frozen image encoder made of the pictures."""

    features: Tensor  # B x N x W


@dataclass(frozen=True, kw_only=True)
class TaskBatch(PixelBatch):
    """Examples of a downstream task; its objective knows what the tensors mean."""

    tensors: dict[str, Tensor]


class Objective(nn.Module):
    """Turns a micro-batch into losses, and may hold state that is trained or kept with the model's."""

    uses_all_parameters = False  # of the model, in every step

    def __init__(self) -> None:
        super().__init__()
        self.bounds: dict[str, tuple[float, float]] = {}  # where a learned value is clamped, by its column in the history

    def before_step(self, model: Any, batch: Any) -> None:
        """Called before the losses of a step, with its first micro-batch."""

    def forward(self, model: Any, batch: Any) -> Losses:
        raise NotImplementedError

    def shares(self, batches: Any) -> dict[str, Tensor]:
        """Weights of the micro-batches of a step, by loss; one that is not named is a plain mean."""
        return {}

    def after_step(self) -> dict[str, Tensor]:
        """Called behind the optimizer; returns what is worth a line in the log."""
        return {}

    def vitals(self, batch: Any) -> dict[str, float]:
        """What tells whether anything is learned. Waits for the device: only for steps that are logged."""
        return {}

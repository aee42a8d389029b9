"""What a step of a training takes and gives: its micro-batches, and the class of all objectives."""

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

Losses = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One micro-batch of a step."""

    step: int
    progress: float  # share of the steps done, in [0, 1)
    seed: int
    keys: tuple[str, ...] = ()  # of what is in it, for messages
    part: int = 0  # which micro-batch of the step
    parts: int = 1

    def to(self, device: torch.device) -> Self:
        moved: dict[str, Any] = {k: _moved(v, device) for k, v in vars(self).items()}
        return replace(self, **moved)


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
    the same text."""

    ids: Tensor  # B x T: [CLS] text [SEP], padding behind
    mask: Tensor  # B x T, True where a token stands
    prompt_tokens: int  # leading tokens of each text that LM does not learn, [CLS] not counted
    image_ids: Tensor  # B
    text_ids: Tensor  # B


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

    def before_step(self, model: Any) -> None:
        """Called before the losses of a step."""

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

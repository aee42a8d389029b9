"""What every network here has, whatever stands on top of it."""

from typing import Any

from torch import Tensor, nn

from blip_core.config.model import ModelConfig
from blip_core.model.vit import Vit


class Network(nn.Module):
    """Sizes and an image encoder; `state_dict` and sizes make a network again.

    `frames`: so many pictures in a row are one image, those of a video (paper section 5.7).
    """

    cfg: ModelConfig
    vit: Vit
    frames: int = 1
    kept: dict[str, Any]  # what a task keeps of its training for its measurement (tasks/task.py)

    @property
    def image_size(self) -> int:
        """The side of the pictures that it takes, in pixels."""
        return self.cfg.vision.image_size

    def image_tokens(self, pixels_P3HW: Tensor) -> Tensor:
        """Normalised pixels to I x N x D, P = I * frames; the tokens of a video's frames stand one behind the other, without a time."""
        return self.vit(pixels_P3HW).unflatten(0, (-1, self.frames)).flatten(1, 2)

"""BLIP-2 (Li et al. 2023, arXiv 2301.12597): a frozen image encoder, a Q-Former, and from stage 2 on the projection of its queries into the
words of a frozen language model.

I images, N image tokens, Q queries, W width of the image encoder, L width of the language model.
"""

import torch
from torch import Tensor, nn

from blip_core.model.med import KeysValues
from blip_core.model.qformer import QFormer


class Prompter(nn.Module):
    """What stage 2 trains: the queries' half of a Q-Former, and what projects its queries."""

    def __init__(self, qformer: QFormer, language_width: int):
        super().__init__()
        self.qformer = qformer.drop_text()
        self.projection = nn.Linear(qformer.cfg.width, language_width)

    def forward(self, features_INW: Tensor) -> Tensor:
        """The image in the language model's space, a soft prompt: I x Q x L."""
        images = self.qformer.keys_values(self.qformer.image_tokens(features_INW))
        return self.projection(self.qformer.look(images)[0])


class Blip2(nn.Module):
    """`encoder` turns normalised pixels, `image_size` a side, into I x N x W: the states before its last norm, for the Q-Former learns a
    norm of its own. It takes no part in any training. `trained`: of stage 1 a QFormer, of stage 2 a Prompter."""

    def __init__(self, encoder: nn.Module, trained: QFormer | Prompter, *, image_size: int):
        super().__init__()
        self.encoder, self.trained, self.image_size = encoder.requires_grad_(False).eval(), trained, image_size

    @property
    def qformer(self) -> QFormer:
        return self.trained.qformer if isinstance(self.trained, Prompter) else self.trained

    @torch.no_grad()
    def features(self, pixels_I3HW: Tensor) -> Tensor:
        """What the frozen encoder sees: I x N x W."""
        return self.encoder(pixels_I3HW)

    def keys_values(self, pixels_I3HW: Tensor) -> list[KeysValues]:
        """What the queries attend to; compute once, use for ITM and `look`."""
        return self.qformer.keys_values(self.qformer.image_tokens(self.features(pixels_I3HW)))

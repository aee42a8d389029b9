"""BLIP-2 (Li et al. 2023, arXiv 2301.12597): a frozen image encoder, a Q-Former, and from stage 2 on the projection of its queries into the
words of a frozen language model.

I images, N image tokens, Q queries, W width of the image encoder, L width of the language model, B texts, T tokens, D width of the
Q-Former, E width of the ITC space, V vocabulary.
"""

from typing import Self

import torch
from torch import Tensor, nn

from blip_core.config.model import QFormerConfig
from blip_core.model.blip import Blip, SpecialTokens
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
    norm of its own. It takes no part in any training. `trained`: of stage 1 a QFormer, of stage 2 a Prompter.

    Of stage 1 it is asked as a Blip is, but that an image has ITC features of every query.
    """

    frames = 1  # as Network's; none of its tasks has videos

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

    @property
    def med(self) -> Self:
        """What decodes, as model/generate.py asks for it."""
        return self

    @property
    def cfg(self) -> QFormerConfig:
        return self.qformer.cfg

    @property
    def special(self) -> SpecialTokens:
        return self.qformer.special

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Of the ITC features of an image."""
        return (self.cfg.num_queries, self.cfg.embed_dim)

    def image_tokens(self, pixels_I3HW: Tensor) -> Tensor:
        """Normalised pixels to what the queries read: I x N x W."""
        return self.qformer.image_tokens(self.features(pixels_I3HW))

    def keys_values(self, image_INW: Tensor) -> list[KeysValues]:
        """What the queries attend to; compute once, use for ITM and every caption."""
        return self.qformer.keys_values(image_INW)

    def image_features(self, image_INW: Tensor) -> Tensor:
        """ITC features of images, unit length, fp32: I x Q x E. The best query's similarity to a text counts (`best_query`)."""
        return self.qformer.image_features(self.qformer.look(self.keys_values(image_INW))[0])

    def text_features(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """ITC features of texts, unit length, fp32: B x E."""
        return self.qformer.text_features(ids_BT, mask_BT)

    def match_logits(self, ids_BT: Tensor, mask_BT: Tensor, *groups: list[KeysValues]) -> Tensor:
        """ITM logits (mismatch, match), the mean over the queries, in fp32: B x 2. The groups of images have equal parts of the texts."""
        return self.qformer.match_logits(ids_BT, mask_BT, *groups)

    def step(self, ids_BT: Tensor, images: list[KeysValues], past: list[KeysValues] | None) -> tuple[Tensor, list[KeysValues]]:
        """As Med's. The queries look at the images once, before the first token; then all they saw is in `past`."""
        seen = self.qformer.look(images)[1] if past is None else []
        return self.qformer.step(ids_BT, seen, past)

    def vocabulary_logits(self, x: Tensor) -> Tensor:
        """Hidden states ... x D to logits ... x V."""
        return self.qformer.vocabulary_logits(x)

    def require(self, *parts: str) -> None:
        """ValueError when it has no weights for one of these parts."""
        self.qformer.require(*parts)

    def lacking(self, *parts: str) -> list[str]:
        """Those of these parts that it has no weights for, in words."""
        return self.qformer.lacking(*parts)


ImageText = Blip | Blip2  # what captions, scores and is evaluated


def require_blip(model: ImageText, what: str) -> Blip:
    """The model. ValueError when it is a BLIP-2, for `what` is of a BLIP."""
    if isinstance(model, Blip2):
        raise ValueError(f"{what} knows a BLIP alone, and this is a BLIP-2 (docs/blip2.md)")
    return model

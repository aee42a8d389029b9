"""BLIP for a sentence about two pictures (paper section 5.5, Figure 5b): each layer of the text encoder has a cross-attention for either
picture, both begun as the pretrained one. What they find is averaged in the lower half of the layers, and joined by a linear layer of
random start in the upper half.

P pairs, one sentence each, T tokens, M tokens without padding, N image tokens, D width.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip_core.config.model import ModelConfig, TextConfig
from blip_core.model.blip import Blip, SpecialTokens, init_linear, init_med, init_vit
from blip_core.model.med import CrossAttention, KeysValues, Med
from blip_core.model.network import Network
from blip_core.model.packing import Packing
from blip_core.model.vit import Vit
from blip_core.model.vqa import encoder_of


class TwinAttention(nn.Module):
    """Cross-attention to a left and a right picture, with one residual and norm. `merged`: by a linear layer, else by the mean."""

    def __init__(self, cfg: TextConfig, image_width: int, *, merged: bool):
        super().__init__()
        self.dropout = cfg.dropout
        self.left, self.right = CrossAttention(cfg, image_width), CrossAttention(cfg, image_width)
        del self.left.norm, self.right.norm
        self.merge = nn.Linear(2 * cfg.width, cfg.width) if merged else None
        self.norm = nn.LayerNorm(cfg.width, eps=cfg.norm_eps)

    def forward(self, x_MD: Tensor, texts: Packing, left: KeysValues, right: KeysValues) -> Tensor:
        """Each text has an image of its own on either side."""
        found = [a.out(a.attended(x_MD, texts, images)) for a, images in ((self.left, left), (self.right, right))]
        joined = (found[0] + found[1]) / 2 if self.merge is None else self.merge(torch.cat(found, dim=-1))
        return self.norm(x_MD + F.dropout(joined, self.dropout, self.training))


class Nlvr(Network):
    """Random weights; `nlvr_of` begins with those of a pretrained model."""

    def __init__(self, cfg: ModelConfig, special: SpecialTokens):
        super().__init__()
        self.cfg, self.special = cfg, special
        self.vit = Vit(cfg.vision)
        self.med = encoder_of(Med(cfg.text, vocab_size=special.vocab_size, image_width=cfg.vision.width))
        for i, block in enumerate(self.med.blocks):
            twin = TwinAttention(cfg.text, cfg.vision.width, merged=i >= cfg.text.depth // 2)
            block.cross_attention = twin  # type: ignore[assignment]  # what `ground` calls it with is the two pictures
        self.head = nn.Sequential(nn.Linear(cfg.text.width, cfg.text.width), nn.ReLU(), nn.Linear(cfg.text.width, 2))
        init_linear(self, cfg.init)
        init_vit(self.vit, cfg.init)
        init_med(self.med, cfg.init)

    def logits(self, pixels_P23HW: Tensor, ids_PT: Tensor, mask_PT: Tensor) -> Tensor:
        """Of (false, true), in fp32: P x 2."""
        ids_PT = ids_PT.clone()
        ids_PT[:, 0] = self.special.enc
        left, right = self.vit(pixels_P23HW.flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)
        twins = [block.cross_attention for block in self.med.blocks]
        seen = ([t.left.keys_values(left) for t in twins], [t.right.keys_values(right) for t in twins])  # type: ignore[operator, union-attr]
        return self.head(self.med.ground(ids_PT, mask_PT, *seen, first_only=True)[:, 0]).float()


def nlvr_of(model: Blip) -> Nlvr:
    """One whose parts begin as those of a pretrained model, both cross-attentions as its one; head and merging layers are random."""
    model.require("image", "text", "encoder", "cross")
    new = Nlvr(model.cfg, model.special)
    new.vit.load_state_dict(model.vit.state_dict())
    state = new.med.state_dict()
    for name, value in encoder_of(copy.deepcopy(model.med)).state_dict().items():
        block, cross, rest = name.partition(".cross_attention.")
        twice = cross and not rest.startswith("norm.")
        state |= {f"{block}{cross}{twin}.{rest}": value for twin in ("left", "right")} if twice else {name: value}
    new.med.load_state_dict(state)
    return new

"""BLIP (Li et al. 2022, arXiv 2201.12086): a ViT, the MED text transformer and the three heads. Tensors in, tensors out.

Texts come as [CLS] tokens [SEP] padding; each role puts its own first token in place of [CLS]: [ENC] for a pair, [DEC] for a
caption (the public ITM inference code forgets the former; training has it).

B texts, T tokens, I images, N image tokens, D width, E width of the ITC space, V vocabulary.
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from blip_core.config.model import InitConfig, ModelConfig
from blip_core.model.med import KeysValues, Med
from blip_core.model.network import Network
from blip_core.model.vit import Vit

# what a checkpoint may have or lack
PARTS = {
    "image": "the image encoder",
    "text": "embeddings and MLPs of the text transformer",
    "encoder": "its bidirectional self-attention",
    "decoder": "its causal self-attention",
    "cross": "its cross-attention",
    "language": "the language-modelling head",
    "contrast": "the projections of ITC",
    "match": "the head of ITM",
}
CAPTIONING = ("decoder", "cross", "language")
MATCHING = ("encoder", "cross", "match")
RETRIEVAL = ("encoder", "cross", "contrast", "match")


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that the roles need, and the size of the vocabulary."""

    vocab_size: int
    pad: int
    cls: int
    sep: int
    dec: int
    enc: int


class Blip(Network):
    """Random weights; loading others is a separate call (blip_core/weights/checkpoint.py, blip_core/weights/load.py).

    `missing` names the parts that a loaded checkpoint lacked. What needs one of them raises ValueError; whoever trains them empties it.
    `match_token` is the first token of a pair: [ENC] as in training, or [CLS] as the public inference code.
    """

    match_token: Literal["enc", "cls"] = "enc"
    missing: frozenset[str] = frozenset()

    def __init__(self, cfg: ModelConfig, special: SpecialTokens):
        super().__init__()
        self.cfg, self.special = cfg, special
        self.vit = Vit(cfg.vision)
        self.med = Med(cfg.text, vocab_size=special.vocab_size, image_width=cfg.vision.width, share=cfg.share)
        self.image_projection = nn.Linear(cfg.vision.width, cfg.embed_dim)
        self.text_projection = nn.Linear(cfg.text.width, cfg.embed_dim)
        self.match_head = nn.Linear(cfg.text.width, 2)
        init_weights(self, cfg.init)

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Of the ITC features of an image."""
        return (self.cfg.embed_dim,)

    def image_features(self, image_IND: Tensor) -> Tensor:
        """ITC features of images, unit length, fp32: I x E. Those of a video are the mean of its frames' projections."""
        self.require("contrast")
        first_PD = image_IND.unflatten(1, (self.frames, -1))[:, :, 0].flatten(0, 1)
        return F.normalize(self.image_projection(first_PD).float().unflatten(0, (-1, self.frames)).mean(1), dim=-1)

    def text_features(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """ITC features of texts, unit length, fp32: B x E."""
        self.require("encoder", "contrast")
        if self.cfg.pooling == "mean":
            pooled_BD = mean_token(self.med.encode(ids_BT, mask_BT), mask_BT)
        else:
            pooled_BD = self.med.encode(ids_BT, mask_BT, first_only=True)[:, 0]
        return F.normalize(self.text_projection(pooled_BD).float(), dim=-1)

    def keys_values(self, image_IND: Tensor) -> list[KeysValues]:
        """What grounding and decoding read of an image; compute once, use for every text of it."""
        return self.med.keys_values(image_IND)

    def match_logits(self, ids_BT: Tensor, mask_BT: Tensor, *groups: list[KeysValues]) -> Tensor:
        """ITM logits (mismatch, match) in fp32: B x 2. The groups of images have equal parts of the texts."""
        self.require(*MATCHING)
        hidden_B1D = self.med.ground(self.pair_ids(ids_BT), mask_BT, *groups, first_only=True)
        return self.match_head(hidden_B1D[:, 0]).float()

    def pair_ids(self, ids_BT: Tensor) -> Tensor:
        """The texts as the image-grounded encoder takes them: with the first token of a pair."""
        return self._begin(ids_BT, self.special.enc if self.match_token == "enc" else self.special.cls)

    def caption_hidden(self, ids_BT: Tensor, images: list[KeysValues], mask_BT: Tensor | None = None) -> Tensor:
        """Decoder states, of which `med.vocabulary_logits` makes the logits of each next token: B x T x D."""
        self.require(*CAPTIONING)
        return self.med.decode(self._begin(ids_BT, self.special.dec), images, mask_BT)

    def lacking(self, *parts: str) -> list[str]:
        """Those of these parts that the checkpoint which filled this model had no weights for, in words."""
        return [f"{p} ({PARTS[p]})" for p in parts if p in self.missing]

    def require(self, *parts: str) -> None:
        """ValueError when the checkpoint that filled this model had no weights for one of these parts."""
        if lacking := self.lacking(*parts):
            raise ValueError(
                f"{', '.join(lacking)}: not in the loaded checkpoint, so still random; load one that has it, "
                "or train it and then set model.missing = frozenset()"
            )

    def _begin(self, ids_BT: Tensor, first: int) -> Tensor:
        ids_BT = ids_BT.clone()
        ids_BT[:, 0] = first
        return ids_BT


def mean_token(x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Of each text, padding left out: B x D."""
    return (x_BTD * mask_BT[..., None]).sum(1) / mask_BT.sum(1, keepdim=True)


def init_weights(model: Blip, cfg: InitConfig) -> None:
    """Normal weights, zero biases, as BERT and ViT; the standard deviations are parameters because a tiny model needs others."""
    init_linear(model, cfg)
    init_vit(model.vit, cfg)
    init_med(model.med, cfg)


def init_linear(module: nn.Module, cfg: InitConfig) -> None:
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=cfg.weight)
            nn.init.zeros_(part.bias)


def init_vit(vit: Vit, cfg: InitConfig) -> None:
    """What is no linear layer."""
    if isinstance(vit.patches, nn.Conv2d):
        nn.init.normal_(vit.patches.weight, std=cfg.patch)
        nn.init.zeros_(vit.patches.bias)  # type: ignore[arg-type]  # a convolution may have none; this one has
    else:
        init_stem(vit.patches)
    nn.init.normal_(vit.cls, std=cfg.weight)
    nn.init.normal_(vit.positions, std=cfg.image_position)


def init_stem(stem: nn.Module) -> None:
    """So that each layer keeps the variance of what it is given, as SELU wants it."""
    for part in stem.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="linear")
            nn.init.zeros_(part.bias)  # type: ignore[arg-type]  # a convolution may have none; these have


def init_med(med: Med, cfg: InitConfig) -> None:
    """Likewise."""
    for tokens in (med.tokens, med.decoder_tokens):
        if tokens is not None:
            nn.init.normal_(tokens.weight, std=cfg.token)
    for positions in (med.positions, med.decoder_positions):
        if positions is not None:
            nn.init.normal_(positions.weight, std=cfg.text_position)

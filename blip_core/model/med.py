"""Multimodal mixture of Encoder-Decoder (paper section 3.1): one text transformer, three roles.

encode   unimodal encoder: bidirectional self-attention over the text
ground   image-grounded encoder: the same self-attention, then cross-attention to the image
decode   image-grounded decoder: causal self-attention, the same cross-attention

Each block owns two self-attentions and one of everything else, so the sharing of the paper ("all but SA", Table 3) holds by
construction. Cross-attention weights are the same for `ground` and `decode`, so the keys and values of an image are computed
once (`keys_values`) and given to both; several texts of one image attend to that one copy.

The other rows of that table are for ablations: what decoding has of its own is called decoder_…, and is None where it is shared.

ITC and ITM read a text's first token alone, so with `first_only` the last layer makes that one: the others serve as keys and values.
Between the layers the texts lie packed, without their padding (packing.py).

B texts, T tokens, M tokens of all texts without their padding, I images (B is a multiple of I: image i has the texts i*B/I ...), N image
tokens, D width, H heads, V vocabulary.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip_core.config.model import Sharing, TextConfig
from blip_core.model.attention import attend, join_heads, lift, split_heads
from blip_core.model.memory import keep_input
from blip_core.model.packing import Packing
from blip_core.model.vit import ACTIVATIONS
from blip_core.model.vocabulary import token_losses

# each I x H x N x d; behind them a mask I x 1 x 1 x N, True where a token stands, if what is attended to has padding
KeysValues = tuple[Tensor, ...]
OWN = "decoder_"  # what begins the names of what decoding has of its own


class _Attention(nn.Module):
    """What both attentions end with."""

    out: nn.Linear
    norm: nn.LayerNorm
    dropout: float

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        return self.norm(x + F.dropout(self.out(attended), self.dropout, self.training))


class SelfAttention(_Attention):
    """Self-attention with its residual and norm."""

    def __init__(self, cfg: TextConfig):
        super().__init__()
        self.num_heads, self.dropout = cfg.heads, cfg.dropout
        self.qkv = nn.Linear(cfg.width, 3 * cfg.width)
        self.out = nn.Linear(cfg.width, cfg.width)
        self.norm = nn.LayerNorm(cfg.width, eps=cfg.norm_eps)

    def forward(self, x_MD: Tensor, texts: Packing, *, causal: bool = False, first_only: bool = False) -> Tensor:
        """M x D, or B x D with `first_only`."""
        if first_only:  # a query of the first token, keys and values of all
            wide = x_MD.shape[-1]
            (wq, wkv), (bq, bkv) = (p.tensor_split([wide]) for p in (self.qkv.weight, self.qkv.bias))
            keys_values, x_MD = texts.spread(F.linear(x_MD, wkv, bkv)), texts.first(x_MD)
            q, k, v = F.linear(x_MD, wq, bq)[:, None], *keys_values.chunk(2, dim=-1)
        else:
            q, k, v = texts.spread(self.qkv(x_MD)).chunk(3, dim=-1)
        # padding stands at the end, where causal attention does not look
        mask = None if causal else texts.mask_BT[:, None, None, :]
        out_BTD = self._attend(*(split_heads(t, self.num_heads) for t in (q, k, v)), mask=mask, causal=causal)
        return self._finish(x_MD, texts.made(first_only).pack(out_BTD))

    def step(self, x_BTD: Tensor, past: KeysValues | None) -> tuple[Tensor, KeysValues]:
        """Causal attention of new tokens that follow those in `past`; returns the grown past. T > 1 only with no past."""
        q, k, v = (split_heads(t, self.num_heads) for t in self.qkv(x_BTD).chunk(3, dim=-1))
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        return self._finish(x_BTD, self._attend(q, k, v, mask=None, causal=past is None)), (k, v)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, causal: bool) -> Tensor:
        return join_heads(attend(q, k, v, mask=mask, causal=causal, dropout=self.dropout if self.training else 0.0))


class CrossAttention(_Attention):
    """Attention from text to image with its residual and norm."""

    def __init__(self, cfg: TextConfig, image_width: int):
        super().__init__()
        self.num_heads, self.dropout = cfg.heads, cfg.dropout
        self.query = nn.Linear(cfg.width, cfg.width)
        self.kv = nn.Linear(image_width, 2 * cfg.width)
        self.out = nn.Linear(cfg.width, cfg.width)
        self.norm = nn.LayerNorm(cfg.width, eps=cfg.norm_eps)

    def keys_values(self, image_IND: Tensor, mask_IN: Tensor | None = None) -> KeysValues:
        k, v = self._parted(self.kv(image_IND))
        return (k, v) if mask_IN is None else (k, v, mask_IN[:, None, None, :])

    def _parted(self, both: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, lifted once for all that will ask them."""
        k, v = (split_heads(lift(t), self.num_heads) for t in both.chunk(2, dim=-1))
        return k, v

    def forward(self, x_MD: Tensor, texts: Packing, *groups: KeysValues) -> Tensor:
        """The texts fall to the groups of images in equal parts, and within a group to its images in equal parts."""
        return self._finish(x_MD, self.attended(x_MD, texts, *groups))

    def attended(self, x_MD: Tensor, texts: Packing, *groups: KeysValues) -> Tensor:
        """What the texts found, before the last linear layer: M x D."""
        queries = texts.spread(self.query(x_MD)).chunk(len(groups))
        return texts.pack(torch.cat([self._attend(q, *images) for q, images in zip(queries, groups, strict=True)]))

    def step(self, x_BTD: Tensor, image: KeysValues) -> Tensor:
        """The same for texts of equal lengths, as captions have them while they are written."""
        return self._finish(x_BTD, self._attend(self.query(x_BTD), *image))

    def _attend(self, q_BTD: Tensor, k_IHNd: Tensor, v_IHNd: Tensor, mask_I11N: Tensor | None = None) -> Tensor:
        num_texts, num_images = len(q_BTD), len(k_IHNd)
        assert num_texts % num_images == 0, f"{num_texts} texts do not divide among {num_images} images"
        # the texts of one image become one long query, so that its keys and values are read once and never repeated
        q = split_heads(q_BTD.reshape(num_images, -1, q_BTD.shape[-1]), self.num_heads)
        out = attend(q, k_IHNd, v_IHNd, mask=mask_I11N, dropout=self.dropout if self.training else 0.0)
        return join_heads(out).reshape(q_BTD.shape)


class MedBlock(nn.Module):
    """One layer for every role: as the paper has it, only self-attention and its norm differ between encoding and decoding."""

    def __init__(self, cfg: TextConfig, image_width: int, share: Sharing = "all_but_self"):
        super().__init__()
        self.dropout = cfg.dropout
        self.encoder_attention = SelfAttention(cfg)
        self.decoder_attention = SelfAttention(cfg) if share in ("all_but_self", "none") else None
        self.cross_attention = CrossAttention(cfg, image_width)
        self.mlp, self.mlp_norm = _mlp(cfg), nn.LayerNorm(cfg.width, eps=cfg.norm_eps)
        self.decoder_cross_attention = CrossAttention(cfg, image_width) if share in ("all_but_cross", "none") else None
        self.decoder_mlp = _mlp(cfg) if share == "none" else None
        self.decoder_mlp_norm = nn.LayerNorm(cfg.width, eps=cfg.norm_eps) if share == "none" else None

    def attention(self, *, decoding: bool) -> SelfAttention:
        own = self.decoder_attention if decoding else None
        return self.encoder_attention if own is None else own

    def cross(self, *, decoding: bool) -> CrossAttention:
        own = self.decoder_cross_attention if decoding else None
        return self.cross_attention if own is None else own

    def encode(self, x_MD: Tensor, texts: Packing, *, first_only: bool = False) -> Tensor:
        """M x D, or B x D with `first_only`."""
        return self.finish(self.encoder_attention(x_MD, texts, first_only=first_only))

    def ground(self, x_MD: Tensor, texts: Packing, *groups: KeysValues, first_only: bool = False) -> Tensor:
        """As `encode`."""
        x_MD = self.encoder_attention(x_MD, texts, first_only=first_only)
        return self.finish(self.cross_attention(x_MD, texts.made(first_only), *groups))

    def decode(self, x_MD: Tensor, texts: Packing, image: KeysValues) -> Tensor:
        x_MD = self.attention(decoding=True)(x_MD, texts, causal=True)
        return self.finish(self.cross(decoding=True)(x_MD, texts, image), decoding=True)

    def step(self, x_BTD: Tensor, image: KeysValues, past: KeysValues | None) -> tuple[Tensor, KeysValues]:
        x_BTD, past = self.attention(decoding=True).step(x_BTD, past)
        return self.finish(self.cross(decoding=True).step(x_BTD, image), decoding=True), past

    def finish(self, x: Tensor, *, decoding: bool = False) -> Tensor:
        """The MLP, which ends the layer in every role."""
        mlp, norm = self.mlp, self.mlp_norm
        if decoding and self.decoder_mlp is not None and self.decoder_mlp_norm is not None:
            mlp, norm = self.decoder_mlp, self.decoder_mlp_norm
        return norm(x + F.dropout(keep_input(mlp[1:], mlp[0](x)), self.dropout, self.training))


def _mlp(cfg: TextConfig) -> nn.Sequential:
    return nn.Sequential(nn.Linear(cfg.width, cfg.mlp_width), ACTIVATIONS[cfg.activation](), nn.Linear(cfg.mlp_width, cfg.width))


class Med(nn.Module):
    """The text transformer with its embeddings and the language-modelling head (output weights tied to the token embedding)."""

    def __init__(self, cfg: TextConfig, *, vocab_size: int, image_width: int, share: Sharing = "all_but_self"):
        super().__init__()
        self.cfg = cfg
        self.tokens = nn.Embedding(vocab_size, cfg.width)
        self.positions = nn.Embedding(cfg.max_positions, cfg.width)
        self.embedding_norm = nn.LayerNorm(cfg.width, eps=cfg.norm_eps)
        blocks = nn.ModuleList(MedBlock(cfg, image_width, share) for _ in range(cfg.depth))
        self.blocks: Sequence[MedBlock] = blocks  # type: ignore[assignment]  # torch's list does not say of what
        self.head = nn.Sequential(nn.Linear(cfg.width, cfg.width), ACTIVATIONS[cfg.activation](), nn.LayerNorm(cfg.width, eps=cfg.norm_eps))
        self.head_bias = nn.Parameter(torch.zeros(vocab_size))
        self.decoder_tokens = nn.Embedding(vocab_size, cfg.width) if share == "none" else None
        self.decoder_positions = nn.Embedding(cfg.max_positions, cfg.width) if share == "none" else None
        self.decoder_embedding_norm = nn.LayerNorm(cfg.width, eps=cfg.norm_eps) if share == "none" else None

    @property
    def written(self) -> nn.Embedding:
        """The embeddings of the tokens that decoding reads, and to which the head's output weights are tied."""
        return self.tokens if self.decoder_tokens is None else self.decoder_tokens

    def embed(self, ids_BT: Tensor, start: int = 0, *, decoding: bool = False) -> Tensor:
        """Token and position embeddings; the first token stands at position `start`."""
        end = start + ids_BT.shape[1]
        assert end <= self.cfg.max_positions, f"a text of {end} tokens; the model has {self.cfg.max_positions} positions"
        tokens, positions, norm = self.tokens, self.positions, self.embedding_norm
        if decoding and self.decoder_positions is not None and self.decoder_embedding_norm is not None:
            tokens, positions, norm = self.written, self.decoder_positions, self.decoder_embedding_norm
        x_BTD = norm(tokens(ids_BT) + positions.weight[start:end])
        return F.dropout(x_BTD, self.cfg.dropout, self.training)

    def keys_values(self, image_IND: Tensor, mask_IN: Tensor | None = None) -> list[KeysValues]:
        """Cross-attention keys and values of the images, per layer; with a mask those of texts, whose padding nobody may see.

        Behind them stand those of decoding, where it has a cross-attention of its own; `seen` takes a role's part."""
        own = [block.decoder_cross_attention for block in self.blocks]
        attentions = [*(block.cross_attention for block in self.blocks), *(each for each in own if each is not None)]
        return [each.keys_values(image_IND, mask_IN) for each in attentions]

    def seen(self, images: list[KeysValues], *, decoding: bool) -> list[KeysValues]:
        return images[-len(self.blocks) :] if decoding else images[: len(self.blocks)]

    def encode(self, ids_BT: Tensor, mask_BT: Tensor, *, first_only: bool = False) -> Tensor:
        """B x T x D, or B x 1 x D with `first_only`. What stands at padding means nothing."""
        texts = Packing(mask_BT)
        x_MD, last = texts.pack(self.embed(ids_BT)), self.blocks[-1]
        for block in self.blocks:
            x_MD = block.encode(x_MD, texts, first_only=first_only and block is last)
        return texts.made(first_only).spread(x_MD)

    def ground(self, ids_BT: Tensor, mask_BT: Tensor, *groups: list[KeysValues], first_only: bool = False) -> Tensor:
        """As `encode`. Each group of images has an equal part of the texts: several groups in one pass need no copy of keys and values."""
        texts = Packing(mask_BT)
        x_MD, last = texts.pack(self.embed(ids_BT)), self.blocks[-1]
        for block, *images in zip(self.blocks, *(self.seen(group, decoding=False) for group in groups), strict=True):
            x_MD = block.ground(x_MD, texts, *images, first_only=first_only and block is last)
        return texts.made(first_only).spread(x_MD)

    def decode(self, ids_BT: Tensor, images: list[KeysValues], mask_BT: Tensor | None = None) -> Tensor:
        """B x T x D. With a mask, what stands at padding means nothing."""
        texts = Packing(torch.ones_like(ids_BT, dtype=torch.bool) if mask_BT is None else mask_BT)
        x_MD = texts.pack(self.embed(ids_BT, decoding=True))
        for block, image in zip(self.blocks, self.seen(images, decoding=True), strict=True):
            x_MD = block.decode(x_MD, texts, image)
        return texts.spread(x_MD)

    def step(self, ids_BT: Tensor, images: list[KeysValues], past: list[KeysValues] | None) -> tuple[Tensor, list[KeysValues]]:
        """Hidden states of new tokens behind `past` (None: at the start), and the grown past per layer."""
        x_BTD = self.embed(ids_BT, start=0 if past is None else past[0][0].shape[2], decoding=True)
        grown = []
        for i, (block, image) in enumerate(zip(self.blocks, self.seen(images, decoding=True), strict=True)):
            x_BTD, layer = block.step(x_BTD, image, None if past is None else past[i])
            grown.append(layer)
        return x_BTD, grown

    def vocabulary_logits(self, x: Tensor) -> Tensor:
        """Hidden states ... x D to logits ... x V."""
        return F.linear(self.head(x), self.written.weight, self.head_bias)

    def token_losses(self, x_MD: Tensor, ids_M: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """Cross-entropy of the tokens that should follow the hidden states, fp32: M. The logits of many tokens never exist at once."""
        return token_losses(self.head(x_MD), self.written.weight, self.head_bias, ids_M, smoothing=smoothing)

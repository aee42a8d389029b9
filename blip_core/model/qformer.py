"""Q-Former (Li et al. 2023, arXiv 2301.12597, section 3.1): learned queries that read a frozen image encoder and meet a text.

Queries and texts share self-attention; each has a feed-forward of its own, and the queries alone attend to the image, in every second
block. What may be seen decides what is learned (Figure 2 there):

| pass    | for | mask               | a query sees        | a token of the text sees         |
|---------|-----|--------------------|---------------------|----------------------------------|
| look    | ITC | unimodal           | all queries         |                                  |
| read    | ITC | unimodal           |                     | all of the text                  |
| tell    | ITG | multimodal causal  | all queries         | all queries, itself, what is before it |
| ground  | ITM | bidirectional      | all queries, all of the text | all queries, all of the text |

In `tell` no query sees the text, so its keys and values are those of `look`: they are computed once, and the text attends to them.

B texts, T tokens, M tokens of all texts without their padding, I images (B is a multiple of I: image i has the texts i*B/I ...), N image
tokens, Q queries, D width, H heads, E width of the ITC space, V vocabulary.
"""

from itertools import groupby
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip_core.config.model import InitConfig, QFormerConfig
from blip_core.model.attention import split_heads
from blip_core.model.blip import SpecialTokens, init_linear
from blip_core.model.med import CrossAttention, KeysValues, SelfAttention
from blip_core.model.memory import keep_input
from blip_core.model.packing import Packing
from blip_core.model.vit import ACTIVATIONS
from blip_core.model.vocabulary import token_losses

# what a checkpoint may lack
PARTS = {
    "text": "embeddings and feed-forwards of texts",
    "language": "the language-modelling head of ITG",
    "contrast": "the projections of ITC",
    "match": "the head of ITM",
}


class SharedAttention(SelfAttention):
    """Self-attention of queries and texts alike, by the three masks."""

    def among(self, queries_BQD: Tensor, num_images: int) -> tuple[Tensor, KeysValues]:
        """Of queries alone; their keys and values too. One row of queries stands for those of all images."""
        qkv = self.qkv(queries_BQD).expand(num_images, -1, -1)
        q, k, v = (split_heads(t, self.num_heads) for t in qkv.chunk(3, dim=-1))
        return self._finish(queries_BQD, self._attend(q, k, v, mask=None, causal=False)), (k, v)

    def behind(self, x_MD: Tensor, texts: Packing, past: KeysValues) -> tuple[Tensor, KeysValues]:
        """Causal, of new tokens that follow what is in `past` (B x H x S x d) and see all of it; returns the grown past."""
        q, k, v = (split_heads(t, self.num_heads) for t in texts.spread(self.qkv(x_MD)).chunk(3, dim=-1))
        k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        places = k.new_ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
        return self._finish(x_MD, texts.pack(self._attend(q, k, v, mask=places, causal=False))), (k, v)

    def together(self, queries_BQD: Tensor, x_MD: Tensor, texts: Packing, *, queries_only: bool) -> tuple[Tensor, Tensor]:
        """Of queries and texts at once; one row of queries stands for those of all texts. With `queries_only` the texts serve as keys and
        values, and come back as they were."""
        num, of_texts = queries_BQD.shape[1], texts.spread(self.qkv(x_MD))
        of_queries = self.qkv(queries_BQD).expand(len(of_texts), -1, -1)
        q, k, v = torch.cat([of_queries, of_texts], dim=1).chunk(3, dim=-1)
        if queries_only:
            q = q[:, :num]
        mask = F.pad(texts.mask_BT, (num, 0), value=True)[:, None, None, :]
        out = self._attend(*(split_heads(t, self.num_heads) for t in (q, k, v)), mask=mask, causal=False)
        queries_BQD = self._finish(queries_BQD, out[:, :num])
        return queries_BQD, x_MD if queries_only else self._finish(x_MD, texts.pack(out[:, num:]))


class ImageAttention(CrossAttention):
    """Attention from queries to an image."""

    def keys_values_of(self, normal_INW: Tensor, norm: nn.LayerNorm) -> KeysValues:
        """Of features of mean 0 and variance 1, weighed and shifted as `norm` does. That goes into the weights of this layer: the features
        are frozen, and so the backward pass never comes to the image's tokens."""
        weight, bias = self.kv.weight * norm.weight, F.linear(norm.bias, self.kv.weight, self.kv.bias)
        return self._parted(F.linear(normal_INW, weight, bias))

    def in_groups(self, queries_BQD: Tensor, groups: tuple[KeysValues, ...]) -> Tensor:
        """The queries fall to the groups of images in equal parts, and within a group to its images. Groups that stand side by side and are
        the same images are read once."""
        found: list[Tensor] = []
        for _, same in groupby(zip(queries_BQD.chunk(len(groups)), groups, strict=True), key=lambda part: id(part[1])):
            parts, images = zip(*same, strict=True)
            seen = self.step(torch.stack(parts, dim=1).flatten(0, 1), images[0])
            found += seen.unflatten(0, (-1, len(parts))).unbind(1)
        return torch.cat(found)


class FeedForward(nn.Module):
    """With its residual and norm."""

    def __init__(self, cfg: QFormerConfig):
        super().__init__()
        self.dropout = cfg.dropout
        self.mlp = nn.Sequential(nn.Linear(cfg.width, cfg.mlp_width), ACTIVATIONS[cfg.activation](), nn.Linear(cfg.mlp_width, cfg.width))
        self.norm = nn.LayerNorm(cfg.width, eps=cfg.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + F.dropout(keep_input(self.mlp[1:], self.mlp[0](x)), self.dropout, self.training))


class QFormerBlock(nn.Module):
    """One layer for every pass. `image_width` None: it does not attend to the image."""

    def __init__(self, cfg: QFormerConfig, image_width: int | None):
        super().__init__()
        self.attention = SharedAttention(cfg)
        self.cross_attention = ImageAttention(cfg, image_width) if image_width else None
        self.query_ffn, self.text_ffn = FeedForward(cfg), FeedForward(cfg)

    def look(self, queries_IQD: Tensor, num_images: int, *groups: KeysValues) -> tuple[Tensor, KeysValues]:
        queries_IQD, own = self.attention.among(queries_IQD, num_images)
        return self._see(queries_IQD, *groups), own

    def read(self, x_MD: Tensor, texts: Packing, *, first_only: bool) -> Tensor:
        """M x D, or B x D with `first_only`."""
        return self.text_ffn(self.attention(x_MD, texts, first_only=first_only))

    def tell(self, x_MD: Tensor, texts: Packing, past: KeysValues) -> tuple[Tensor, KeysValues]:
        x_MD, past = self.attention.behind(x_MD, texts, past)
        return self.text_ffn(x_MD), past

    def ground(self, queries_BQD: Tensor, x_MD: Tensor, texts: Packing, *groups: KeysValues, last: bool) -> tuple[Tensor, Tensor]:
        """Of the last block nobody reads the texts."""
        queries_BQD, x_MD = self.attention.together(queries_BQD, x_MD, texts, queries_only=last)
        return self._see(queries_BQD, *groups), x_MD if last else self.text_ffn(x_MD)

    def _see(self, queries_BQD: Tensor, *groups: KeysValues) -> Tensor:
        if self.cross_attention is not None:
            queries_BQD = self.cross_attention.in_groups(queries_BQD, groups)
        return self.query_ffn(queries_BQD)


def best_query(images_IQE: Tensor, texts_TE: Tensor) -> Tensor:
    """ITC's similarity of each image to each text, that of its best query: I x T."""
    return (images_IQE @ texts_TE.T).amax(1)


class QFormer(nn.Module):
    """Random weights. Reads what a frozen encoder made of an image (I x N x `image_width`), normed by `image_norm`, which is learned.

    `missing` names the parts that a loaded checkpoint lacked; what needs one of them raises ValueError. As in Blip, a text comes as [CLS]
    tokens [SEP] padding; ITG puts [DEC] in place of [CLS], ITM leaves it.
    """

    missing: frozenset[str] = frozenset()

    def __init__(self, cfg: QFormerConfig, init: InitConfig, special: SpecialTokens, *, image_width: int, image_eps: float = 1e-6):
        super().__init__()
        self.cfg, self.special, self.image_width = cfg, special, image_width
        self.image_norm = nn.LayerNorm(image_width, eps=image_eps)
        self.queries = nn.Parameter(torch.empty(1, cfg.num_queries, cfg.width))
        self.tokens = nn.Embedding(special.vocab_size, cfg.width)
        self.positions = nn.Embedding(cfg.max_positions, cfg.width)
        self.embedding_norm = nn.LayerNorm(cfg.width, eps=cfg.norm_eps)
        self.blocks = nn.ModuleList(QFormerBlock(cfg, None if i % cfg.cross_every else image_width) for i in range(cfg.depth))
        activation = ACTIVATIONS[cfg.activation]()
        self.head = nn.Sequential(nn.Linear(cfg.width, cfg.width), activation, nn.LayerNorm(cfg.width, eps=cfg.norm_eps))
        self.head_bias = nn.Parameter(torch.zeros(special.vocab_size))
        self.image_projection = nn.Linear(cfg.width, cfg.embed_dim)
        self.text_projection = nn.Linear(cfg.width, cfg.embed_dim)
        self.match_head = nn.Linear(cfg.width, 2)
        init_linear(self, init)
        for values, std in ((self.queries, init.token), (self.tokens.weight, init.token), (self.positions.weight, init.text_position)):
            nn.init.normal_(values, std=std)

    @property
    def med(self) -> Self:
        """What decodes, as model/generate.py asks for it."""
        return self

    def image_tokens(self, features_INW: Tensor) -> Tensor:
        """What the queries read of the encoder's features, before the weights of `image_norm`."""
        return F.layer_norm(features_INW, (self.image_width,), eps=self.image_norm.eps)

    def keys_values(self, image_INW: Tensor) -> list[KeysValues]:
        """What the queries attend to in an image, for each block that does; compute once, use for every pass."""
        attentions = [b.cross_attention for b in self.blocks if b.cross_attention is not None]
        return [each.keys_values_of(image_INW, self.image_norm) for each in attentions]  # type: ignore[union-attr, operator]

    def look(self, images: list[KeysValues]) -> tuple[Tensor, list[KeysValues]]:
        """The queries' states, I x Q x D, and what a text that is told attends to, for each block."""
        queries_IQD, seen = self._embedded(self.queries), []
        for block, groups in self._with_images([images]):
            queries_IQD, own = block.look(queries_IQD, len(images[0][0]), *groups)
            seen.append(own)
        return queries_IQD, seen

    def image_features(self, queries_IQD: Tensor) -> Tensor:
        """ITC features of images by the queries' states, unit length, fp32: I x Q x E. The best query's similarity to a text counts."""
        self.require("contrast")
        return F.normalize(self.image_projection(queries_IQD).float(), dim=-1)

    def text_features(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """ITC features of texts, unit length, fp32: B x E."""
        self.require("text", "contrast")
        texts = Packing(mask_BT)
        x_MD = texts.pack(self.embed(ids_BT))
        for i, block in enumerate(self.blocks):
            x_MD = block.read(x_MD, texts, first_only=i == len(self.blocks) - 1)  # type: ignore[operator]
        return F.normalize(self.text_projection(x_MD).float(), dim=-1)

    def match_logits(self, ids_BT: Tensor, mask_BT: Tensor, *groups: list[KeysValues]) -> Tensor:
        """ITM logits (mismatch, match), the mean over the queries, in fp32: B x 2. The groups of images have equal parts of the texts."""
        self.require("text", "match")
        texts = Packing(mask_BT)
        x_MD, queries_BQD = texts.pack(self.embed(ids_BT)), self._embedded(self.queries)
        for i, (block, images) in enumerate(self._with_images(list(groups))):
            queries_BQD, x_MD = block.ground(queries_BQD, x_MD, texts, *images, last=i == len(self.blocks) - 1)
        return self.match_head(queries_BQD).float().mean(1)

    def caption_hidden(self, ids_BT: Tensor, seen: list[KeysValues], mask_BT: Tensor) -> Tensor:
        """States of which `vocabulary_logits` makes the logits of each next token: B x T x D. `seen` comes of `look`."""
        self.require("text", "language")
        ids_BT = ids_BT.clone()
        ids_BT[:, 0] = self.special.dec
        texts = Packing(mask_BT)
        x_MD = texts.pack(self.embed(ids_BT))
        for block, past in zip(self.blocks, _for_each_text(seen, len(ids_BT)), strict=True):
            x_MD, _ = block.tell(x_MD, texts, past)  # type: ignore[operator]
        return texts.spread(x_MD)

    def step(self, ids_BT: Tensor, seen: list[KeysValues], past: list[KeysValues] | None) -> tuple[Tensor, list[KeysValues]]:
        """Hidden states of new tokens behind `past` (None: at the start), and the grown past per layer. The queries stand first in it."""
        past = _for_each_text(seen, len(ids_BT)) if past is None else past
        x_BTD = self.embed(ids_BT, start=past[0][0].shape[2] - self.cfg.num_queries)
        texts, grown = Packing(torch.ones_like(ids_BT, dtype=torch.bool), keep_padding=True), []
        x_MD = texts.pack(x_BTD)
        for block, own in zip(self.blocks, past, strict=True):
            x_MD, own = block.tell(x_MD, texts, own)  # type: ignore[operator]
            grown.append(own)
        return texts.spread(x_MD), grown

    def vocabulary_logits(self, x: Tensor) -> Tensor:
        """Hidden states ... x D to logits ... x V."""
        return F.linear(self.head(x), self.tokens.weight, self.head_bias)

    def token_losses(self, x_MD: Tensor, ids_M: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """Cross-entropy of the tokens that should follow the hidden states, fp32: M."""
        return token_losses(self.head(x_MD), self.tokens.weight, self.head_bias, ids_M, smoothing=smoothing)

    def embed(self, ids_BT: Tensor, *, start: int = 0) -> Tensor:
        places = torch.arange(start, start + ids_BT.shape[1], device=ids_BT.device)
        return self._embedded(self.tokens(ids_BT) + self.positions(places))

    def drop_text(self) -> Self:
        """Leave out all that only texts use: a language model reads the queries alone (section 3.2)."""
        del self.tokens, self.positions, self.head, self.head_bias, self.image_projection, self.text_projection, self.match_head
        for block in self.blocks:
            del block.text_ffn
        self.missing = frozenset(PARTS)
        return self

    def lacking(self, *parts: str) -> list[str]:
        """Those of these parts that the checkpoint which filled this network had no weights for, in words. Names of MED's parts stand for
        the text's, which are one here."""
        wanted = dict.fromkeys("text" if p in ("encoder", "decoder", "cross") else p for p in parts)
        return [f"{p} ({PARTS[p]})" for p in wanted if p in self.missing]

    def require(self, *parts: str) -> None:
        """ValueError when it lacks one of these parts."""
        if lacking := self.lacking(*parts):
            raise ValueError(f"{', '.join(lacking)}: not in the loaded checkpoint, so still random; load one of stage 1 that has it")

    def _embedded(self, x: Tensor) -> Tensor:
        return F.dropout(self.embedding_norm(x), self.cfg.dropout, self.training)

    def _with_images(self, groups: list[list[KeysValues]]) -> list[tuple[QFormerBlock, list[KeysValues]]]:
        """Each block with what its queries attend to in each group of images; nothing where it does not."""
        every = self.cfg.cross_every
        return [(block, [] if i % every else [g[i // every] for g in groups]) for i, block in enumerate(self.blocks)]  # type: ignore[misc]


def _for_each_text(seen: list[KeysValues], num_texts: int) -> list[KeysValues]:
    """Keys and values of the queries, I of each, as often as an image has texts."""
    copies = num_texts // len(seen[0][0])
    return seen if copies == 1 else [(k.repeat_interleave(copies, 0), v.repeat_interleave(copies, 0)) for k, v in seen]

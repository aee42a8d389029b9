"""One step of stage 1 of BLIP-2 as LAVIS does it, written plainly: what benchmarks/speed/blip2_step.py compares with.

It follows LAVIS in what costs time: the frozen image encoder runs in every step, in fp32; attention is spelt out; texts are padded to 32
tokens; ITM is a pass of queries and texts over three copies of the pictures' states, whose keys and values it makes anew; negatives are
drawn row by row with `.item()`; logits at every position. As there, the text of ITG attends to the keys and values that the queries left.
It departs from it so that its losses can be ours: no dropout, the negatives drawn by numbers from outside, AdamW with the parameter groups
of ours.

B pairs, T tokens, N image tokens, Q queries, D width, E width of the ITC space.
"""

import torch
import torch.nn.functional as F
from public_step import HIDDEN, Attention, Vit, _eager, _heads, negative
from torch import Tensor, nn

from blip_core.config.model import QFormerConfig, VisionConfig
from blip_core.model.blip import SpecialTokens
from blip_core.model.qformer import QFormer
from blip_core.model.vit import Vit as OurVit

PADDED = 32
KeysValues = tuple[Tensor, Tensor]


class CachedAttention(Attention):
    """It gives its keys and values too, and may begin with those of others."""

    def step(self, x: Tensor, bias: Tensor, past: KeysValues | None) -> tuple[Tensor, KeysValues]:
        q, k, v = (_heads(t, self.heads) for t in (self.query(x), self.key(x), self.value(x)))
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        return self.norm(x + self.out(_eager(q, k, v, bias))), (k, v)


class FeedForward(nn.Module):
    def __init__(self, cfg: QFormerConfig):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(cfg.width, cfg.mlp_width), nn.GELU(), nn.Linear(cfg.mlp_width, cfg.width))
        self.norm = nn.LayerNorm(cfg.width, eps=cfg.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.mlp(x))


class Block(nn.Module):
    def __init__(self, cfg: QFormerConfig, image_width: int | None):
        super().__init__()
        self.attention = CachedAttention(cfg, cfg.width)
        self.cross_attention = Attention(cfg, image_width) if image_width else None
        self.query_ffn, self.text_ffn = FeedForward(cfg), FeedForward(cfg)

    def forward(self, x: Tensor, queries: int, bias: Tensor, image: Tensor | None, past: KeysValues | None) -> tuple[Tensor, KeysValues]:
        """The first `queries` rows are queries."""
        x, kept = self.attention.step(x, bias, past)
        q, text = x[:, :queries], x[:, queries:]
        if queries and self.cross_attention is not None:
            q = self.cross_attention(q, image)
        parts = [self.query_ffn(q)] * bool(queries) + [self.text_ffn(text)] * bool(text.shape[1])
        return torch.cat(parts, dim=1), kept


class PublicStage1(nn.Module):
    """Frozen encoder and Q-Former; `forward` gives the losses by name."""

    def __init__(self, cfg: QFormerConfig, vision: VisionConfig, special: SpecialTokens, *, temperature: float):
        super().__init__()
        self.cfg, self.special = cfg, special
        self.vit = Vit(vision)
        self.vit.norm = nn.Identity()
        self.vit.requires_grad_(False)
        self.image_norm = nn.LayerNorm(vision.width, eps=vision.norm_eps)
        self.queries = nn.Parameter(torch.zeros(1, cfg.num_queries, cfg.width))
        self.tokens, self.positions = nn.Embedding(special.vocab_size, cfg.width), nn.Embedding(cfg.max_positions, cfg.width)
        self.embedding_norm = nn.LayerNorm(cfg.width, eps=cfg.norm_eps)
        self.blocks = nn.ModuleList(Block(cfg, None if i % cfg.cross_every else vision.width) for i in range(cfg.depth))
        self.head = nn.Sequential(nn.Linear(cfg.width, cfg.width), nn.GELU(), nn.LayerNorm(cfg.width, eps=cfg.norm_eps))
        self.head_bias = nn.Parameter(torch.zeros(special.vocab_size))
        self.image_projection, self.text_projection = nn.Linear(cfg.width, cfg.embed_dim), nn.Linear(cfg.width, cfg.embed_dim)
        self.match_head = nn.Linear(cfg.width, 2)
        self.temperature = nn.Parameter(torch.tensor(temperature))

    def run(
        self, ids: Tensor | None, seen: Tensor, image: Tensor | None, past: list[KeysValues] | None = None
    ) -> tuple[Tensor, list[KeysValues]]:
        """A pass of the queries (with `image`), a text, or both; `seen` has a 1 where a row sees a column."""
        rows = []
        if image is not None:
            rows.append(self.queries.expand(len(image), -1, -1))
        if ids is not None:
            rows.append(self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device)))
        x, bias, kept = self.embedding_norm(torch.cat(rows, dim=1)), (1 - seen) * HIDDEN, []
        for i, block in enumerate(self.blocks):
            x, own = block(x, self.cfg.num_queries if image is not None else 0, bias, image, past[i] if past else None)
            kept.append(own)
        return x, kept

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor, draws: Tensor) -> dict[str, Tensor]:
        """`draws` 2 x B: uniform numbers for the negative texts and images. Texts come padded to 32."""
        image, size, queries = self.image_norm(self.vit(pixels)), len(ids), self.cfg.num_queries
        ones = mask.new_ones(size, queries)
        looked, kept = self.run(None, ones[:, None, None, :].float(), image)
        image_features = F.normalize(self.image_projection(looked), dim=-1)
        text = self.run(ids, mask[:, None, None, :].float(), None)[0][:, 0]
        text_features = F.normalize(self.text_projection(text), dim=-1)
        similarity = torch.matmul(image_features[:, None], text_features[None, :, :, None]).squeeze(-1).amax(-1) / self.temperature
        targets = torch.arange(size, device=ids.device)
        itc = sum(F.cross_entropy(rows, targets, label_smoothing=0.1) for rows in (similarity, similarity.T)) / 2
        itm = self.matching(image, ids, mask, similarity, draws)
        return {"itc": itc, "itm": itm, "lm": self.language(ids, mask, kept)}

    def matching(self, image: Tensor, ids: Tensor, mask: Tensor, similarity: Tensor, draws: Tensor) -> Tensor:
        size, queries = len(ids), self.cfg.num_queries
        texts = [negative(similarity[b], b, draws[0, b]) for b in range(size)]
        images = [negative(similarity.T[b], b, draws[1, b]) for b in range(size)]
        all_ids = torch.cat([ids, torch.stack([ids[i] for i in texts]), ids])
        all_mask = torch.cat([mask, torch.stack([mask[i] for i in texts]), mask])
        all_images = torch.cat([image, image, torch.stack([image[i] for i in images])])
        seen = torch.cat([all_mask.new_ones(3 * size, queries), all_mask], dim=1)[:, None, None, :].float()
        found = self.run(all_ids, seen, all_images)[0][:, :queries]
        labels = (torch.arange(3 * size, device=ids.device) < size).long()
        return F.cross_entropy(self.match_head(found).mean(1), labels)

    def language(self, ids: Tensor, mask: Tensor, kept: list[KeysValues]) -> Tensor:
        size, length = ids.shape
        begun = ids.clone()
        begun[:, 0] = self.special.dec
        text = mask[:, None, None, :].float() * mask.new_ones(length, length).float().tril()
        seen = torch.cat([text.new_ones(size, 1, length, self.cfg.num_queries), text], dim=-1)
        logits = F.linear(self.head(self.run(begun, seen, None, kept)[0]), self.tokens.weight, self.head_bias)
        targets = ids.masked_fill(~mask, -100)
        shifted = logits[:, :-1, :].contiguous()
        return F.cross_entropy(shifted.view(-1, shifted.shape[-1]), targets[:, 1:].contiguous().view(-1), label_smoothing=0.1)


def load_ours(public: PublicStage1, qformer: QFormer, vit: OurVit) -> None:
    """Fill `public` with the weights of ours."""
    state = {}
    for name, value in qformer.state_dict().items():
        fused = next((f for f in ("qkv", "kv") if f".{f}." in name), None)
        parts = {"qkv": ("query", "key", "value"), "kv": ("key", "value"), None: ()}[fused]
        state |= (
            {name.replace(f".{fused}.", f".{p}."): v for p, v in zip(parts, value.chunk(max(1, len(parts))), strict=True)}
            if fused
            else {name: value}
        )
    state |= {f"vit.{name}": value for name, value in vit.state_dict().items()}
    public.load_state_dict(state | {"temperature": public.temperature.data})

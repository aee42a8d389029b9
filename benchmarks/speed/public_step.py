"""One pre-training step as the public BLIP code does it, written plainly: what benchmarks/speed/step.py compares with.

It follows the public pre-training in what costs time: attention spelt out (scores, softmax, product), texts padded to 30 tokens,
keys and values of an image computed in each pass that reads them (ITM with the true pairs, ITM with the negatives, LM), the two
ITM passes apart, negatives drawn row by row with `.item()`, logits at every position, and a momentum encoder that keeps
cross-attention too and moves tensor by tensor. It departs from it so that its losses can be ours: no dropout, no 1e-4 added to the
weights of the negatives, the negatives drawn by numbers from outside, AdamW with the parameter groups of ours.

B pairs, T tokens, N image tokens, D width, E width of the ITC space, Q queued features.
"""

import copy
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from blip_core.config.model import ModelConfig, TextConfig, VisionConfig
from blip_core.model.blip import Blip, SpecialTokens

PADDED = 30
HIDDEN = -10000.0  # what the public code adds to the scores of what must not be seen


class Attention(nn.Module):
    """Eager attention, its residual and its norm behind it, as BERT."""

    def __init__(self, cfg: TextConfig, context_width: int):
        super().__init__()
        self.heads = cfg.heads
        self.query = nn.Linear(cfg.width, cfg.width)
        self.key, self.value = nn.Linear(context_width, cfg.width), nn.Linear(context_width, cfg.width)
        self.out, self.norm = nn.Linear(cfg.width, cfg.width), nn.LayerNorm(cfg.width, eps=cfg.norm_eps)

    def forward(self, x: Tensor, context: Tensor, bias: Tensor | None = None) -> Tensor:
        q, k, v = (_heads(t, self.heads) for t in (self.query(x), self.key(context), self.value(context)))
        return self.norm(x + self.out(_eager(q, k, v, bias)))


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.view(x.shape[0], x.shape[1], heads, -1).permute(0, 2, 1, 3)


def _eager(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if bias is not None:
        scores = scores + bias
    return (scores.softmax(-1) @ v).permute(0, 2, 1, 3).contiguous().flatten(2)


class VitBlock(nn.Module):
    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.heads, hidden = cfg.heads, round(cfg.width * cfg.mlp_ratio)
        self.attention_norm, self.mlp_norm = nn.LayerNorm(cfg.width, eps=cfg.norm_eps), nn.LayerNorm(cfg.width, eps=cfg.norm_eps)
        self.qkv, self.out = nn.Linear(cfg.width, 3 * cfg.width), nn.Linear(cfg.width, cfg.width)
        self.mlp = nn.Sequential(nn.Linear(cfg.width, hidden), nn.GELU(), nn.Linear(hidden, cfg.width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (_heads(t, self.heads) for t in self.qkv(self.attention_norm(x)).chunk(3, dim=-1))
        x = x + self.out(_eager(q, k, v, None))
        return x + self.mlp(self.mlp_norm(x))


class Vit(nn.Module):
    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.patches = nn.Conv2d(3, cfg.width, cfg.patch_size, stride=cfg.patch_size)
        self.cls = nn.Parameter(torch.zeros(1, 1, cfg.width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + (cfg.image_size // cfg.patch_size) ** 2, cfg.width))
        self.blocks = nn.ModuleList(VitBlock(cfg) for _ in range(cfg.depth))
        self.norm = nn.LayerNorm(cfg.width, eps=cfg.norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class TextBlock(nn.Module):
    def __init__(self, cfg: TextConfig, image_width: int):
        super().__init__()
        self.encoder_attention, self.decoder_attention = Attention(cfg, cfg.width), Attention(cfg, cfg.width)
        self.cross_attention = Attention(cfg, image_width)
        self.mlp = nn.Sequential(nn.Linear(cfg.width, cfg.mlp_width), nn.GELU(), nn.Linear(cfg.mlp_width, cfg.width))
        self.mlp_norm = nn.LayerNorm(cfg.width, eps=cfg.norm_eps)

    def forward(self, x: Tensor, bias: Tensor, image: Tensor | None, causal: bool) -> Tensor:
        x = (self.decoder_attention if causal else self.encoder_attention)(x, x, bias)
        if image is not None:
            x = self.cross_attention(x, image)
        return self.mlp_norm(x + self.mlp(x))


class Text(nn.Module):
    def __init__(self, cfg: TextConfig, vocab_size: int, image_width: int):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, cfg.width), nn.Embedding(cfg.max_positions, cfg.width)
        self.embedding_norm = nn.LayerNorm(cfg.width, eps=cfg.norm_eps)
        self.blocks = nn.ModuleList(TextBlock(cfg, image_width) for _ in range(cfg.depth))
        self.head = nn.Sequential(nn.Linear(cfg.width, cfg.width), nn.GELU(), nn.LayerNorm(cfg.width, eps=cfg.norm_eps))
        self.head_bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, ids: Tensor, mask: Tensor, image: Tensor | None = None, *, causal: bool = False) -> Tensor:
        seen = mask[:, None, None, :].float()
        if causal:
            seen = seen * seen.new_ones(ids.shape[1], ids.shape[1]).tril()
        x = self.embedding_norm(self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device)))
        for block in self.blocks:
            x = block(x, (1 - seen) * HIDDEN, image, causal)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(self.head(hidden), self.tokens.weight, self.head_bias)


class PublicBlip(nn.Module):
    """The model, its momentum encoder and queue; `forward` gives the losses by name."""

    def __init__(self, cfg: ModelConfig, special: SpecialTokens, *, queue_size: int, momentum: float, temperature: float):
        super().__init__()
        self.special, self.momentum, self.next = special, momentum, 0
        self.vit = Vit(cfg.vision)
        self.med = Text(cfg.text, special.vocab_size, cfg.vision.width)
        self.image_projection = nn.Linear(cfg.vision.width, cfg.embed_dim)
        self.text_projection = nn.Linear(cfg.text.width, cfg.embed_dim)
        self.match_head = nn.Linear(cfg.text.width, 2)
        self.temperature = nn.Parameter(torch.tensor(temperature))
        self.make_twin()
        for name in ("image_queue", "text_queue"):
            self.register_buffer(name, F.normalize(torch.randn(cfg.embed_dim, queue_size), dim=0))

    def make_twin(self) -> None:
        names = ("vit", "med", "image_projection", "text_projection")
        self.twin = nn.ModuleDict({name: copy.deepcopy(getattr(self, name)) for name in names}).requires_grad_(False)
        del self.twin.med.head, self.twin.med.head_bias
        for block in self.twin.med.blocks:
            del block.decoder_attention

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor, draws: Tensor, alpha: float) -> dict[str, Tensor]:
        """`draws` 2 x B: uniform numbers for the negative texts and images. Texts come padded to 30."""
        image = self.vit(pixels)
        loss_itc, image_to_text, text_to_image = self.contrast(pixels, image, ids, mask, alpha)
        loss_itm = self.matching(image, ids, mask, image_to_text, text_to_image, draws)
        return {"itc": loss_itc, "itm": loss_itm, "lm": self.language(image, ids, mask)}

    def contrast(self, pixels: Tensor, image: Tensor, ids: Tensor, mask: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
        image_feature = F.normalize(self.image_projection(image[:, 0]), dim=-1)
        text_feature = F.normalize(self.text_projection(self.med(ids, mask)[:, 0]), dim=-1)
        with torch.no_grad():
            self.momentum_update()
            image_m = F.normalize(self.twin.image_projection(self.twin.vit(pixels)[:, 0]), dim=-1)
            text_m = F.normalize(self.twin.text_projection(self.twin.med(ids, mask)[:, 0]), dim=-1)
            images = torch.cat([image_m.t(), self.image_queue.clone().detach()], dim=1)
            texts = torch.cat([text_m.t(), self.text_queue.clone().detach()], dim=1)
            hard = torch.zeros(len(ids), images.shape[1], device=images.device)
            hard.fill_diagonal_(1)
            targets_i2t = alpha * F.softmax(image_m @ texts / self.temperature, dim=1) + (1 - alpha) * hard
            targets_t2i = alpha * F.softmax(text_m @ images / self.temperature, dim=1) + (1 - alpha) * hard
        sim_i2t, sim_t2i = image_feature @ texts / self.temperature, text_feature @ images / self.temperature
        loss_i2t = -torch.sum(F.log_softmax(sim_i2t, dim=1) * targets_i2t, dim=1).mean()
        loss_t2i = -torch.sum(F.log_softmax(sim_t2i, dim=1) * targets_t2i, dim=1).mean()
        self.enqueue(image_m, text_m)
        return (loss_i2t + loss_t2i) / 2, sim_i2t, sim_t2i

    @torch.no_grad()
    def momentum_update(self) -> None:
        online = dict(self.named_parameters())
        for name, parameter in self.twin.named_parameters():
            parameter.data = parameter.data * self.momentum + online[name].data * (1.0 - self.momentum)

    @torch.no_grad()
    def enqueue(self, image_m: Tensor, text_m: Tensor) -> None:
        """The size of the queue is a multiple of the batch's."""
        self.image_queue[:, self.next : self.next + len(image_m)] = image_m.T
        self.text_queue[:, self.next : self.next + len(text_m)] = text_m.T
        self.next = (self.next + len(image_m)) % self.image_queue.shape[1]

    def matching(self, image: Tensor, ids: Tensor, mask: Tensor, image_to_text: Tensor, text_to_image: Tensor, draws: Tensor) -> Tensor:
        size = len(ids)
        pair_ids = self.begun(ids, self.special.enc)
        positive = self.med(pair_ids, mask, image)
        texts = [negative(image_to_text[b, :size], b, draws[0, b]) for b in range(size)]
        images = [negative(text_to_image[b, :size], b, draws[1, b]) for b in range(size)]
        negative_ids, negative_mask = torch.stack([pair_ids[i] for i in texts]), torch.stack([mask[i] for i in texts])
        negative_image = torch.stack([image[i] for i in images])
        all_ids, all_mask = torch.cat([pair_ids, negative_ids]), torch.cat([mask, negative_mask])
        negatives = self.med(all_ids, all_mask, torch.cat([negative_image, image]))
        logits = self.match_head(torch.cat([positive[:, 0], negatives[:, 0]]))
        labels = (torch.arange(3 * size, device=logits.device) < size).long()
        return F.cross_entropy(logits, labels)

    def language(self, image: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        logits = self.med.logits(self.med(self.begun(ids, self.special.dec), mask, image, causal=True))
        targets = ids.masked_fill(~mask, -100)
        shifted = logits[:, :-1, :].contiguous()
        return F.cross_entropy(shifted.view(-1, shifted.shape[-1]), targets[:, 1:].contiguous().view(-1), label_smoothing=0.1)

    def begun(self, ids: Tensor, first: int) -> Tensor:
        ids = ids.clone()
        ids[:, 0] = first
        return ids


@torch.no_grad()
def negative(similarity: Tensor, row: int, draw: Tensor) -> int:
    """One index in proportion to the softmax of a row, not its own."""
    weights = F.softmax(similarity.detach(), dim=0)
    weights[row] = 0
    cumulative = weights.cumsum(0)
    return torch.searchsorted(cumulative, (draw * cumulative[-1])[None], right=True).clamp(max=len(weights) - 1).item()


def load_ours(public: PublicBlip, ours: Blip) -> None:
    """Fill `public` with the weights of `ours`, and the momentum encoder with them."""
    state = {}
    for name, value in ours.state_dict().items():
        fused = next((f for f in ("qkv", "kv") if name.startswith("med.") and f".{f}." in name), None)
        if fused is None:
            state[name] = value
        else:
            parts = {"qkv": ("query", "key", "value"), "kv": ("key", "value")}[fused]
            state |= {name.replace(f".{fused}.", f".{p}."): v for p, v in zip(parts, value.chunk(len(parts)), strict=True)}
    kept = {k: v for k, v in public.state_dict().items() if k.startswith("twin.") or k in ("temperature", "image_queue", "text_queue")}
    public.load_state_dict(state | kept)
    public.make_twin()

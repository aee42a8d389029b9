"""Q-Former written slowly from the paper (arXiv 2301.12597, section 3.1, Figure 2): one pair at a time, queries and text as one row of
tokens, each pass by its whole mask. Shares nothing with blip_core/model but the names of the weights."""

import math

import torch
import torch.nn.functional as F


def tiny_qformer(tokenizer, *, seed: int = 0, image_width: int = 20, **changes):
    """One with random weights, every one of them another."""
    from blip_core.config.model import InitConfig, QFormerConfig
    from blip_core.model.qformer import QFormer
    from blip_core.weights.checkpoint import special_tokens
    from tests.support.peers import randomize

    sizes = dict(width=24, depth=3, heads=3, mlp_width=40, max_positions=24, activation="gelu", norm_eps=1e-12, dropout=0.0)
    cfg = QFormerConfig(**{**sizes, "num_queries": 3, "cross_every": 2, "embed_dim": 16, **changes})
    init = InitConfig(weight=0.2, patch=0.2, image_position=0.2, token=0.2, text_position=0.2)
    return randomize(QFormer(cfg, init, special_tokens(tokenizer), image_width=image_width), seed, std=0.25)


def linear(part, x):
    return x @ part.weight.T + part.bias


def norm(part, x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + part.eps).sqrt() * part.weight + part.bias


def attention(query, key, value, heads, mask):
    """Of T x D to S x D, head by head; `mask` T x S is 1 where a place is seen."""
    found, wide = [], query.shape[-1] // heads
    for h in range(heads):
        q, k, v = (t[:, h * wide : (h + 1) * wide] for t in (query, key, value))
        scores = (q @ k.T / math.sqrt(wide)).masked_fill(mask == 0, -math.inf)
        found.append(scores.softmax(-1) @ v)
    return torch.cat(found, -1)


MASKS = {
    "look": lambda q, t: torch.ones(q, q),
    "read": lambda q, t: torch.ones(t, t),
    "tell": lambda q, t: torch.cat(
        [torch.cat([torch.ones(q, q), torch.zeros(q, t)], 1), torch.cat([torch.ones(t, q), torch.ones(t, t).tril()], 1)]
    ),
    "ground": lambda q, t: torch.ones(q + t, q + t),
}


def run(model, kind: str, features=None, ids=None):
    """States of the queries and of the tokens after one pass over one picture (N x W) and one text (T ids)."""
    cfg = model.cfg
    num_q, num_t = (0 if kind == "read" else cfg.num_queries), (0 if ids is None else len(ids))
    rows = ([] if kind == "read" else [model.queries[0]]) + (
        [] if ids is None else [model.tokens.weight[ids] + model.positions.weight[:num_t]]
    )
    x, mask = norm(model.embedding_norm, torch.cat(rows)), MASKS[kind](num_q, num_t)
    for i, block in enumerate(model.blocks):
        query, key, value = linear(block.attention.qkv, x).chunk(3, -1)
        x = norm(block.attention.norm, x + linear(block.attention.out, attention(query, key, value, cfg.heads, mask)))
        q, t = x[:num_q], x[num_q:]
        if num_q and i % cfg.cross_every == 0:
            cross, image = block.cross_attention, norm(model.image_norm, features)
            key, value = linear(cross.kv, image).chunk(2, -1)
            seen = attention(linear(cross.query, q), key, value, cfg.heads, torch.ones(num_q, len(image)))
            q = norm(cross.norm, q + linear(cross.out, seen))
        x = torch.cat([feed(block.query_ffn, q), feed(block.text_ffn, t)])
    return x[:num_q], x[num_q:]


def feed(part, x):
    return norm(part.norm, x + linear(part.mlp[2], F.gelu(linear(part.mlp[0], x))))


def with_first(ids, first: int):
    return torch.cat([torch.tensor([first]), ids[1:]])


def similarity(model, features, ids):
    """Cosine of the best query of a picture with the [CLS] of a text."""
    queries, text = run(model, "look", features)[0], run(model, "read", ids=ids)[1]
    cosines = [F.cosine_similarity(linear(model.image_projection, q), linear(model.text_projection, text[0]), dim=0) for q in queries]
    return torch.stack(cosines).max()


def match(model, features, ids):
    """Logits of mismatch and match."""
    return torch.stack([linear(model.match_head, q) for q in run(model, "ground", features, ids)[0]]).mean(0)


def next_tokens(model, features, ids):
    """Logits of each next token behind [DEC] and the rest of the text: T x V."""
    states = run(model, "tell", features, with_first(ids, model.special.dec))[1]
    return norm(model.head[2], F.gelu(linear(model.head[0], states))) @ model.tokens.weight.T + model.head_bias

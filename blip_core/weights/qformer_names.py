"""What public checkpoints of BLIP-2 call our weights: transformers' three classes, and LAVIS."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from blip_core.config.model import QFormerConfig
from blip_core.weights.names import POSITION_IDS, TEMPERATURE, Layout, Pair, bert_layout, huggingface_vision, linear, timm_vision


@dataclass(frozen=True)
class Names:
    """How a code base calls the parts."""

    embeddings: str
    norm: str  # of the embeddings
    layers: str
    attention: str  # below a layer's attention and crossattention
    image_norm: str
    image_projection: str
    text_projection: str


HUGGINGFACE = Names(
    "embeddings.", "qformer.layernorm", "qformer.encoder.layer.", "attention", "vision_model.post_layernorm", "vision_projection",
    "text_projection",
)  # fmt: skip
LAVIS = Names(
    "Qformer.bert.embeddings.", "Qformer.bert.embeddings.LayerNorm", "Qformer.bert.encoder.layer.", "self", "ln_vision", "vision_proj",
    "text_proj",
)  # fmt: skip
LAVIS_HEAD = "Qformer.cls.predictions."
PROJECTIONS = ("language_projection", "opt_proj", "t5_proj")
_FEEDS = ("query_ffn", "text_ffn")
_LEFT_OUT = (
    POSITION_IDS,
    TEMPERATURE,
    (r"language_model\..*", "the language model, which is loaded by itself"),
)
_NO_TEXT = (
    (r".*\.layer\.\d+\.(intermediate|output)\..*", "feed-forwards of texts: in stage 2 none goes through the Q-Former"),
    (r"(Qformer\.bert\.)?embeddings\.(word|position)_embeddings\..*", "embeddings of texts, likewise"),
    (r"Qformer\.cls\..*|(vision|text)_proj(ection)?\..*|itm_head\..*", "heads of stage 1"),
)


def blip2_layout(keys: Iterable[str], cfg: QFormerConfig, *, vision_depth: int | None) -> Layout:
    """Of a BLIP-2 checkpoint, by the keys it has. `vision_depth` None: it has no image encoder, as LAVIS saves none that was frozen."""
    keys = set(keys)
    names = LAVIS if "ln_vision.weight" in keys else HUGGINGFACE
    text = "itm_head.weight" in keys
    start = "trained." if text else "trained.qformer."
    pairs = [*qformer_pairs(cfg, names, start=start, text=text)]
    if projection := next((name for name in PROJECTIONS if f"{name}.weight" in keys), None):
        pairs += linear("trained.projection", projection)
    copies: list[Pair] = []
    if text and f"{LAVIS_HEAD}bias" in keys:
        pairs += head_pairs()
        copies = [(f"{start}tokens.weight", (f"{LAVIS_HEAD}decoder.weight",)), (f"{start}head_bias", (f"{LAVIS_HEAD}decoder.bias",))]
    if vision_depth is not None:
        vision = timm_vision("visual_encoder.", vision_depth) if names is LAVIS else huggingface_vision(vision_depth)
        pairs += encoder_pairs(vision)
    return Layout(pairs, copies, (*_LEFT_OUT, *(() if text else _NO_TEXT)))


def qformer_pairs(cfg: QFormerConfig, names: Names, *, start: str, text: bool) -> Iterator[Pair]:
    """`text`: with all that stage 1 has, but for the head of ITG."""
    yield f"{start}queries", ("query_tokens",)
    yield from linear(f"{start}image_norm", names.image_norm)
    yield from linear(f"{start}embedding_norm", names.norm)
    for i in range(cfg.depth):
        ours, theirs = f"{start}blocks.{i}", f"{names.layers}{i}"
        yield from _attention(f"{ours}.attention", f"{theirs}.attention", names.attention, split=("query", "key", "value"))
        if i % cfg.cross_every == 0:
            cross = f"{theirs}.crossattention"
            yield from linear(f"{ours}.cross_attention.query", f"{cross}.{names.attention}.query")
            yield from linear(f"{ours}.cross_attention.kv", *(f"{cross}.{names.attention}.{n}" for n in ("key", "value")))
            yield from _ending(f"{ours}.cross_attention", cross)
        for own, end in (("query_ffn", "_query"), ("text_ffn", "")) if text else (("query_ffn", "_query"),):
            yield from linear(f"{ours}.{own}.mlp.0", f"{theirs}.intermediate{end}.dense")
            yield from linear(f"{ours}.{own}.mlp.2", f"{theirs}.output{end}.dense")
            yield from linear(f"{ours}.{own}.norm", f"{theirs}.output{end}.LayerNorm")
    if text:
        yield f"{start}tokens.weight", (f"{names.embeddings}word_embeddings.weight",)
        yield f"{start}positions.weight", (f"{names.embeddings}position_embeddings.weight",)
        yield from linear(f"{start}image_projection", names.image_projection)
        yield from linear(f"{start}text_projection", names.text_projection)
        yield from linear(f"{start}match_head", "itm_head")


def qformer_bert_layout(keys: Iterable[str], *, depth: int) -> Layout:
    """Of a BERT: its feed-forward begins that of texts and that of queries."""
    layout = bert_layout(keys, depth=depth)
    alone = [(name.removeprefix("med."), theirs) for name, theirs in layout.required if ".decoder_attention." not in name]
    required: list[Pair] = []
    for ours, theirs in alone:
        if ".mlp" in ours:
            required += [(ours.replace(".mlp_norm", f".{part}.norm").replace(".mlp.", f".{part}.mlp."), theirs) for part in _FEEDS]
        else:
            required.append((ours.replace(".encoder_attention.", ".attention."), theirs))
    return Layout(required, [(name.removeprefix("med."), theirs) for name, theirs in layout.copies], layout.left_out)


def encoder_pairs(vision: Iterable[Pair]) -> list[Pair]:
    """Of a frozen ViT; its last norm is the Q-Former's."""
    return [(f"encoder.{ours.removeprefix('vit.')}", theirs) for ours, theirs in vision if not ours.startswith("vit.norm")]


def head_pairs() -> Iterator[Pair]:
    """The head of ITG, which LAVIS alone has."""
    yield from linear("trained.head.0", f"{LAVIS_HEAD}transform.dense")
    yield from linear("trained.head.2", f"{LAVIS_HEAD}transform.LayerNorm")
    yield "trained.head_bias", (f"{LAVIS_HEAD}bias",)


def _attention(ours: str, theirs: str, inner: str, *, split: tuple[str, ...]) -> Iterator[Pair]:
    yield from linear(f"{ours}.qkv", *(f"{theirs}.{inner}.{n}" for n in split))
    yield from _ending(ours, theirs)


def _ending(ours: str, theirs: str) -> Iterator[Pair]:
    yield from linear(f"{ours}.out", f"{theirs}.output.dense")
    yield from linear(f"{ours}.norm", f"{theirs}.output.LayerNorm")


def whole_biases(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """EVA's ViT has no bias of keys, which would change no attention; LAVIS keeps those of queries and values apart: here they are one."""
    found = dict(tensors)
    for key in [k for k in tensors if k.endswith(".attn.q_bias")]:
        layer = key.removesuffix("q_bias")
        q, v = found.pop(f"{layer}q_bias"), found.pop(f"{layer}v_bias")
        found[f"{layer}qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    return found

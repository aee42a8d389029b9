"""What public checkpoints call our weights: transformers' BLIP, the authors' BLIP, BERT and ViT/DeiT.

A pair (ours, theirs) says that our tensor is theirs, joined along the first dimension where there are several (query, key, value).
A tensor of ours may stand in several pairs: theirs are copies then, and must be equal.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from blip_core.model.med import OWN

Pair = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class Layout:
    """The account of every key of a checkpoint."""

    required: list[Pair]
    copies: list[Pair]  # need not be there
    left_out: tuple[tuple[str, str], ...]  # keys that we have no place for, as a pattern of the whole key, and the reason


TEMPERATURE = (r"temp", "the temperature of ITC belongs to the training, not to the model")
AUTHORS_LEFT_OUT = (
    (r"(visual_encoder|text_encoder|vision_proj|text_proj)_m\..*", "momentum copies: a new training begins with its own"),
    (r"(image|text|idx)_queue|queue_ptr|ptr_queue", "features of past batches: a new training fills its own queue"),
    TEMPERATURE,
)
POSITION_IDS = (r"(.*\.)?position_ids", "0, 1, 2, ...: a constant that older versions saved")
ANSWERS = (r"text_decoder\..*", "VQA's answer decoder: it reads question states and shares no weights with the encoder")
BLIP_MODEL_LEFT_OUT = (
    (r"text_model\.pooler\..*", "BlipModel's own text features: no BLIP was trained with them"),
    (r"(visual|text)_projection\.weight|logit_scale", "BlipModel's own ITC space, of a second norm: no BLIP was trained with it"),
)
BERT_LEFT_OUT = (
    POSITION_IDS,
    (r"(bert\.)?embeddings\.token_type_embeddings\.weight", "BLIP has no second segment, and the authors drop both"),
    (r"(bert\.)?pooler\..*|cls\.seq_relationship\..*", "next-sentence prediction: BLIP has none"),
)
VIT_LEFT_OUT = (
    (r"classifier\..*|(cls|distillation)_classifier\..*|head(_dist)?\..*", "ImageNet's classifier"),
    (r"((vit|deit)\.)?pooler\..*|pre_logits\..*", "a layer before ImageNet's classifier"),
    (r"(deit\.)?embeddings\.distillation_token|dist_token", "DeiT's second token: BLIP has [CLS] alone"),
)


def blip_layout(keys: Iterable[str], *, vision_depth: int, text_depth: int) -> Layout:
    """Of a BLIP checkpoint of transformers or of the authors, any class of either that fits, by the keys it has."""
    keys = set(keys)
    authors = "visual_encoder.cls_token" in keys
    required = list(timm_vision("visual_encoder.", vision_depth) if authors else huggingface_vision(vision_depth))
    copies: list[Pair] = []
    left_out = (POSITION_IDS, *(AUTHORS_LEFT_OUT if authors else ()))
    starts = {key.split(".")[0] for key in keys}
    heads = bool(starts & {"itm_head", "vision_proj", "text_proj"})
    if "text_model" in starts:
        required += text_stack("text_model.", text_depth, attention="encoder_attention")
        left_out += BLIP_MODEL_LEFT_OUT
    if "text_encoder" in starts:
        required += text_stack("text_encoder.", text_depth, attention="encoder_attention")
    if heads:
        required += retrieval_heads()
    if "text_decoder" in starts:
        if "text_encoder" in starts and not heads:
            left_out += (ANSWERS,)
        else:
            required += text_stack("text_decoder.bert.", text_depth, attention="decoder_attention")
            required += language_head("text_decoder.cls.predictions.")
            copies += tied_output("text_decoder.cls.predictions.")
    return Layout(required, copies, left_out)


def vqa_layout(keys: Iterable[str], *, vision_depth: int, text_depth: int) -> Layout:
    """Of a question answering BLIP, transformers' BlipForQuestionAnswering or the authors' BLIP_VQA: two text stacks of their own."""
    authors = "visual_encoder.cls_token" in set(keys)
    head = "text_decoder.cls.predictions."
    required = list(timm_vision("visual_encoder.", vision_depth) if authors else huggingface_vision(vision_depth))
    required += text_stack("text_encoder.", text_depth, attention="encoder_attention", med="question")
    required += [*text_stack("text_decoder.bert.", text_depth, attention="decoder_attention"), *language_head(head)]
    return Layout(required, list(tied_output(head)), (POSITION_IDS, *(AUTHORS_LEFT_OUT if authors else ())))


def nlvr_layout(*, vision_depth: int, text_depth: int) -> Layout:
    """Of the authors' BLIP_NLVR, whose text encoder has two cross-attentions a layer, numbered 0 and 1."""
    required = list(timm_vision("visual_encoder.", vision_depth))
    required += text_stack("text_encoder.", text_depth, attention="encoder_attention", cross=False)
    for i in range(text_depth):
        ours, theirs = f"med.blocks.{i}.cross_attention", f"text_encoder.encoder.layer.{i}.crossattention"
        for n, twin in enumerate(("left", "right")):
            required += linear(f"{ours}.{twin}.query", f"{theirs}.self{n}.query")
            required += linear(f"{ours}.{twin}.kv", *(f"{theirs}.self{n}.{part}" for part in ("key", "value")))
            required += linear(f"{ours}.{twin}.out", f"{theirs}.output.dense{n}")
        required += linear(f"{ours}.norm", f"{theirs}.output.LayerNorm")
        if i >= text_depth // 2:
            required += linear(f"{ours}.merge", f"{theirs}.output.merge_layer")
    required += [*linear("head.0", "cls_head.0"), *linear("head.2", "cls_head.2")]
    return Layout(required, [], (POSITION_IDS, *AUTHORS_LEFT_OUT))


def bert_layout(keys: Iterable[str], *, depth: int) -> Layout:
    """Of transformers' BertModel, BertForMaskedLM or BertForPreTraining: both self-attentions of our blocks get BERT's."""
    keys = set(keys)
    prefix = "bert." if any(key.startswith("bert.") for key in keys) else ""
    required = [pair for a in ("encoder_attention", "decoder_attention") for pair in text_stack(prefix, depth, attention=a, cross=False)]
    copies: list[Pair] = []
    if any(key.startswith("cls.predictions.") for key in keys):
        required += language_head("cls.predictions.")
        copies += tied_output("cls.predictions.")
    return Layout(required, copies, BERT_LEFT_OUT)


def in_both_roles(pairs: Iterable[Pair], names: Collection[str]) -> Iterator[Pair]:
    """The pairs of those of our tensors that there are (`names`), and of what the decoder has of its own besides."""
    for ours, theirs in pairs:
        own = re.sub(r"^med\.(blocks\.\d+\.)?", rf"\g<0>{OWN}", ours)
        yield from ((name, theirs) for name in (ours, own) if name in names)


def vit_layout(keys: Iterable[str], *, depth: int) -> Layout:
    """Of transformers' ViT and DeiT classes, or of timm's and DeiT's own files."""
    keys = set(keys)
    if "cls_token" in keys:
        return Layout(list(timm_vision("", depth)), [], VIT_LEFT_OUT)
    prefix = next((p for p in ("vit.", "deit.") if any(key.startswith(p) for key in keys)), "")
    return Layout(list(_vit_classes(prefix, depth)), [], VIT_LEFT_OUT)


def huggingface_vision(depth: int) -> Iterator[Pair]:
    names = {"attention_norm": "layer_norm1", "qkv": "self_attn.qkv", "out": "self_attn.projection"}
    names |= {"mlp_norm": "layer_norm2", "mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2"}
    first = {"cls": "embeddings.class_embedding", "positions": "embeddings.position_embedding", "patches": "embeddings.patch_embedding"}
    return _vision("vision_model.", depth, **first, block="encoder.layers", names=names, norm="post_layernorm")


def timm_vision(prefix: str, depth: int) -> Iterator[Pair]:
    """The names of timm's ViT, which the authors and DeiT use."""
    names = {"attention_norm": "norm1", "qkv": "attn.qkv", "out": "attn.proj", "mlp_norm": "norm2", "mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2"}
    first = {"cls": "cls_token", "positions": "pos_embed", "patches": "patch_embed.proj"}
    return _vision(prefix, depth, **first, block="blocks", names=names, norm="norm")


def _vit_classes(prefix: str, depth: int) -> Iterator[Pair]:
    """The names of transformers' ViT and DeiT."""
    names: dict[str, str | tuple[str, ...]] = {"qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value")}
    names |= {"attention_norm": "layernorm_before", "out": "attention.output.dense"}
    names |= {"mlp_norm": "layernorm_after", "mlp.0": "intermediate.dense", "mlp.2": "output.dense"}
    first = {"cls": "embeddings.cls_token", "positions": "embeddings.position_embeddings"}
    first["patches"] = "embeddings.patch_embeddings.projection"
    return _vision(prefix, depth, **first, block="encoder.layer", names=names, norm="layernorm")


def _vision(
    prefix: str, depth: int, *, cls: str, positions: str, patches: str, block: str, names: Mapping[str, str | tuple[str, ...]], norm: str
) -> Iterator[Pair]:
    """A ViT under the names of others; `names` has those within a block, several where they keep apart what is one of ours."""
    yield "vit.cls", (f"{prefix}{cls}",)
    yield "vit.positions", (f"{prefix}{positions}",)
    yield from linear("vit.patches", f"{prefix}{patches}")
    for i in range(depth):
        for ours, theirs in names.items():
            parts = (theirs,) if isinstance(theirs, str) else theirs
            yield from linear(f"vit.blocks.{i}.{ours}", *(f"{prefix}{block}.{i}.{part}" for part in parts))
    yield from linear("vit.norm", f"{prefix}{norm}")


def text_stack(prefix: str, depth: int, *, attention: str, cross: bool = True, med: str = "med") -> Iterator[Pair]:
    """A BERT: its self-attention becomes `attention` of the blocks of our `med`; everything else is what all roles share."""
    yield f"{med}.tokens.weight", (f"{prefix}embeddings.word_embeddings.weight",)
    yield f"{med}.positions.weight", (f"{prefix}embeddings.position_embeddings.weight",)
    yield from linear(f"{med}.embedding_norm", f"{prefix}embeddings.LayerNorm")
    for i in range(depth):
        ours, theirs = f"{med}.blocks.{i}", f"{prefix}encoder.layer.{i}"
        yield from linear(f"{ours}.{attention}.qkv", *(f"{theirs}.attention.self.{n}" for n in ("query", "key", "value")))
        yield from linear(f"{ours}.{attention}.out", f"{theirs}.attention.output.dense")
        yield from linear(f"{ours}.{attention}.norm", f"{theirs}.attention.output.LayerNorm")
        if cross:
            yield from linear(f"{ours}.cross_attention.query", f"{theirs}.crossattention.self.query")
            yield from linear(f"{ours}.cross_attention.kv", *(f"{theirs}.crossattention.self.{n}" for n in ("key", "value")))
            yield from linear(f"{ours}.cross_attention.out", f"{theirs}.crossattention.output.dense")
            yield from linear(f"{ours}.cross_attention.norm", f"{theirs}.crossattention.output.LayerNorm")
        yield from linear(f"{ours}.mlp.0", f"{theirs}.intermediate.dense")
        yield from linear(f"{ours}.mlp.2", f"{theirs}.output.dense")
        yield from linear(f"{ours}.mlp_norm", f"{theirs}.output.LayerNorm")


def language_head(prefix: str) -> Iterator[Pair]:
    yield from linear("med.head.0", f"{prefix}transform.dense")
    yield from linear("med.head.2", f"{prefix}transform.LayerNorm")
    yield "med.head_bias", (f"{prefix}bias",)


def tied_output(prefix: str) -> Iterator[Pair]:
    """Second names that some versions saved of tensors that the head shares."""
    yield "med.tokens.weight", (f"{prefix}decoder.weight",)
    yield "med.head_bias", (f"{prefix}decoder.bias",)


def retrieval_heads() -> Iterator[Pair]:
    yield from linear("image_projection", "vision_proj")
    yield from linear("text_projection", "text_proj")
    yield from linear("match_head", "itm_head")


def linear(ours: str, *theirs: str) -> Iterator[Pair]:
    """Weight and bias of a layer."""
    for end in ("weight", "bias"):
        yield f"{ours}.{end}", tuple(f"{name}.{end}" for name in theirs)


_PARTS = (
    (r"vit\..*", "image"),
    (r"med\.blocks\.\d+\.encoder_attention\..*", "encoder"),
    (r"med\.blocks\.\d+\.decoder_attention\..*", "decoder"),
    (r"med\.blocks\.\d+\.(decoder_)?cross_attention\..*", "cross"),
    (r"med\.head.*", "language"),
    (r"(image|text)_projection\..*", "contrast"),
    (r"match_head\..*", "match"),
    (r"med\..*", "text"),
)


def part_of(name: str) -> str:
    """The part of the model (blip.PARTS) that one of our tensors belongs to."""
    return next(part for pattern, part in _PARTS if re.fullmatch(pattern, name))

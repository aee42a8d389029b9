"""The parts of a BLIP as functions of tensors alone, which torch.export can trace: image tower, text tower, matcher, a captioner's step.

The image tower gives the cross-attention keys and values of a picture besides its ITC feature. The matcher and the captioner take those,
so a picture is encoded once for all its texts. The captioner makes one token a call and keeps the keys and values of those before it
(`past`): without such a cache each token would cost the whole caption again.

B pictures, each with one text, T tokens, N image tokens, D width.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from blip_core.model.attention import split_heads
from blip_core.model.blip import CAPTIONING, MATCHING, Blip, mean_token
from blip_core.model.med import KeysValues, Med
from blip_core.model.packing import Packing
from blip_core.model.vqa import decoder_of, encoder_of

# sizes that a call chooses; no 0 or 1 among these, which torch would take for fixed
_TRACED = {"batch": 2, "length": 7, "past": 3}


@dataclass(frozen=True)
class Port:
    """An input: its name, numpy's name of its type, and its shape, a word for each size that a call chooses."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def example(self) -> Tensor:
        shape = [_TRACED[size] if isinstance(size, str) else size for size in self.shape]
        return torch.ones(shape, dtype=getattr(torch, self.dtype))


@dataclass(frozen=True)
class Graph:
    """A file of an export: inputs and outputs in the order of the traced function's."""

    name: str
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[str, ...]


def graphs(model: Blip) -> list[Graph]:
    """All that the model has weights for. ValueError for a model of videos: its pictures are no longer single ones."""
    if model.frames != 1:
        raise ValueError(f"a model of {model.frames} frames a picture; expected one of single pictures")
    if model.cfg.share in ("all_but_cross", "none"):
        raise ValueError(
            f"model.share is {model.cfg.share}, and the image tower gives matcher and captioner the same keys and values; "
            "expected a model with share: all_but_self or all"
        )
    side, depth = model.cfg.vision.image_size, model.cfg.text.depth
    texts = (Port("ids", "int64", ("batch", "length")), Port("mask", "bool", ("batch", "length")))
    seen, past = _ports(model, "image", model.vit.positions.shape[1]), _ports(model, "past", "past")
    feature = () if model.lacking("contrast") else ("feature",)
    pixels = Port("pixels", "float32", ("batch", 3, side, side))
    found = [Graph("image", _Image(model), (pixels,), (*feature, *(p.name for p in seen)))]
    if not model.lacking("encoder", "contrast"):
        found.append(Graph("text", _Text(model), texts, ("feature",)))
    if not model.lacking(*MATCHING):
        found.append(Graph("match", _Match(model), (*texts, *seen), ("logits",)))
    if not model.lacking(*CAPTIONING):
        outputs = ("logits", *_names("present", depth))
        found.append(Graph("step", _Step(model), (Port("ids", "int64", ("batch", 1)), *seen, *past), outputs))
    return found


def trace(graph: Graph) -> ExportedProgram:
    """What torch.export makes of it, for any batch and any length that the model has positions for."""
    shapes = tuple({i: Dim.DYNAMIC for i, size in enumerate(port.shape) if isinstance(size, str)} for port in graph.inputs)
    example = tuple(port.example() for port in graph.inputs)
    # strict, or the length of a tensor, as the model asks for it, would be fixed to the example's
    return torch.export.export(graph.module, example, dynamic_shapes=(shapes,), strict=True)


def _names(kind: str, depth: int) -> list[str]:
    return [f"{kind}_{part}_{layer}" for layer in range(depth) for part in ("key", "value")]


def _ports(model: Blip, kind: str, length: int | str) -> tuple[Port, ...]:
    """Keys and values of each layer."""
    text = model.cfg.text
    shape = ("batch", text.heads, length, text.width // text.heads)
    return tuple(Port(name, "float32", shape) for name in _names(kind, text.depth))


def pairs(tensors: Sequence[Tensor]) -> list[KeysValues]:
    """Key, value, key, value, … by layer."""
    return list(zip(tensors[::2], tensors[1::2], strict=True))


def flat(layers: list[KeysValues]) -> list[Tensor]:
    return [tensor for layer in layers for tensor in layer]


class _Image(nn.Module):
    def __init__(self, model: Blip):
        super().__init__()
        self.vit, self.heads = model.vit, model.cfg.text.heads
        self.projection = None if model.lacking("contrast") else model.image_projection
        self.kv = nn.ModuleList(block.cross_attention.kv for block in model.med.blocks)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Pixels B x 3 x height x width."""
        image_BND = self.vit(inputs[0])
        seen = [split_heads(part, self.heads) for kv in self.kv for part in kv(image_BND).chunk(2, dim=-1)]
        if self.projection is None:
            return tuple(seen)
        return F.normalize(self.projection(image_BND[:, 0]), dim=-1), *seen


class _Text(nn.Module):
    def __init__(self, model: Blip):
        super().__init__()
        self.med, self.projection, self.pooling = encoder_of(_copied(model)), model.text_projection, model.cfg.pooling
        for block in self.med.blocks:
            del block.cross_attention

    def forward(self, *inputs: Tensor) -> Tensor:
        texts, x_MD = _read(self.med, inputs[0], inputs[1])
        pooled_BD = mean_token(texts.spread(x_MD), inputs[1]) if self.pooling == "mean" else texts.first(x_MD)
        return F.normalize(self.projection(pooled_BD), dim=-1)


class _Match(nn.Module):
    def __init__(self, model: Blip):
        super().__init__()
        self.med, self.head = encoder_of(_copied(model)), model.match_head
        self.first = model.special.enc if model.match_token == "enc" else model.special.cls

    def forward(self, *inputs: Tensor) -> Tensor:
        ids_BT, mask_BT, *seen = inputs
        ids_BT = ids_BT.clone()
        ids_BT[:, 0] = self.first
        texts, x_MD = _read(self.med, ids_BT, mask_BT, pairs(seen))
        return self.head(texts.first(x_MD))


class _Step(nn.Module):
    def __init__(self, model: Blip):
        super().__init__()
        self.med = decoder_of(_copied(model))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        ids_B1, *rest = inputs
        half = len(rest) // 2
        hidden_B1D, grown = self.med.step(ids_B1, pairs(rest[:half]), pairs(rest[half:]))
        return self.med.vocabulary_logits(hidden_B1D[:, 0]), *flat(grown)


def _copied(model: Blip) -> Med:
    """Without what makes keys and values of a picture: the image tower has it."""
    med = copy.deepcopy(model.med)
    for block in med.blocks:
        del block.cross_attention.kv
    return med


def _read(med: Med, ids_BT: Tensor, mask_BT: Tensor, seen: list[KeysValues] | None = None) -> tuple[Packing, Tensor]:
    """The states of the tokens, with the picture or without. As Med does it, but the padding stays: to leave it out, the tensors'
    sizes would hang on what is in them."""
    texts = Packing(mask_BT, keep_padding=True)
    x_MD = texts.pack(med.embed(ids_BT))
    for layer, block in enumerate(med.blocks):
        x_MD = block.encoder_attention(x_MD, texts)
        if seen is not None:
            x_MD = texts.pack(block.cross_attention.step(texts.spread(x_MD), seen[layer]))
        x_MD = block.finish(x_MD)
    return texts, x_MD


def about(graph: Graph) -> dict[str, Any]:
    """For the manifest."""
    inputs = [{"name": p.name, "dtype": p.dtype, "shape": list(p.shape)} for p in graph.inputs]
    return {"inputs": inputs, "outputs": list(graph.outputs)}

"""Weights of others into our model and back, every key accounted for. Tensors only: load.py and export.py do the folders."""

import copy
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip_core.model.blip import CAPTIONING, PARTS, RETRIEVAL, Blip
from blip_core.model.med import Med
from blip_core.model.qformer import QFormer
from blip_core.model.vqa import decoder_of
from blip_core.weights.names import (
    Layout,
    Pair,
    bert_layout,
    blip_layout,
    huggingface_vision,
    in_both_roles,
    language_head,
    part_of,
    retrieval_heads,
    text_stack,
    vit_layout,
)
from blip_core.weights.qformer_names import qformer_bert_layout

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint gave: parts of blip.PARTS, and the keys that were left out with the reason."""

    parts: frozenset[str]
    left_out: dict[str, str]

    @property
    def missing(self) -> frozenset[str]:
        """Parts that are as random as before."""
        return frozenset(PARTS) - self.parts


def load_blip(model: Blip, tensors: dict[str, Tensor], *, source: str) -> Loaded:
    """Fill the model from a BLIP checkpoint, and note in `model.missing` the parts that the checkpoint lacks.

    `source` names the checkpoint in messages. ValueError names every key that is missing, unexpected or of another shape.
    """
    layout = blip_layout(tensors, vision_depth=model.cfg.vision.depth, text_depth=model.cfg.text.depth)
    loaded = fill(model, tensors, layout, source=source)
    model.missing = loaded.missing
    return loaded


def require_patches(model: Blip, why: str) -> None:
    """ValueError where the stem is another than that of all public ViTs."""
    if (stem := model.cfg.vision.stem) != "patch":
        raise ValueError(f"model.vision.stem is {stem}, and {why}; train with stem: patch for that")


def load_vit(model: Blip, tensors: dict[str, Tensor], *, source: str) -> Loaded:
    """Fill the image encoder from an ImageNet ViT or DeiT; position embeddings are resized to the model's image size."""
    require_patches(model, f"{source} has one convolution per patch")
    layout = vit_layout(tensors, depth=model.cfg.vision.depth)
    positions = dict(layout.required)["vit.positions"][0]
    tensors = dict(tensors)
    if positions in tensors:
        distilled = any(key.endswith(("distillation_token", "dist_token")) for key in tensors)
        kept = torch.cat([tensors[positions][:, :1], tensors[positions][:, 1 + distilled :]], dim=1)
        tensors[positions] = resize_positions(kept, model.cfg.vision.image_size // model.cfg.vision.patch_size, source=source)
    return fill(model, tensors, layout, source=source)


def load_bert(model: Blip, tensors: dict[str, Tensor], *, source: str) -> Loaded:
    """Fill the text transformer from BERT: its rows of the vocabulary, our [DEC] and [ENC] behind them stay random; cross-attention too."""
    tensors = {_new_norm_name(key): value for key, value in tensors.items()}
    layout = bert_layout(tensors, depth=model.cfg.text.depth)
    layout = replace(layout, required=[*in_both_roles(layout.required, model.state_dict().keys())])
    return fill(model, _fitted(tensors, layout, model.med, "med.", source), layout, source=source)


def load_bert_qformer(model: QFormer, tensors: dict[str, Tensor], *, source: str) -> None:
    """Likewise of a Q-Former; its queries stay random as well."""
    tensors = {_new_norm_name(key): value for key, value in tensors.items()}
    layout = qformer_bert_layout(tensors, depth=model.cfg.depth)
    copy_in(model, _fitted(tensors, layout, model, "", source), layout, source=source)


def _fitted(tensors: dict[str, Tensor], layout: Layout, text: Med | QFormer, start: str, source: str) -> dict[str, Tensor]:
    """BERT's tensors with rows for our [DEC] and [ENC], and no more positions than `text` has; its weights are named from `start` on."""
    names = dict(layout.required)
    for ours, current in ((f"{start}tokens.weight", text.tokens.weight), (f"{start}head_bias", text.head_bias)):
        for key in {k for name, keys in [*layout.required, *layout.copies] if name == ours for k in keys} & tensors.keys():
            if len(tensors[key]) + 2 != len(current):
                raise ValueError(
                    f"{source}: {key} has {len(tensors[key])} rows; the model's vocabulary has {len(current)} entries, "
                    f"[DEC] and [ENC] among them, so {len(current) - 2} are expected: build the model with the vocabulary of this BERT"
                )
            tensors[key] = torch.cat([tensors[key].float(), current.detach()[-2:]])
    positions, most = names[f"{start}positions.weight"][0], text.cfg.max_positions
    if positions in tensors and len(tensors[positions]) > most:
        log.info("%s: the first %d of %d text positions are used", source, most, len(tensors[positions]))
        tensors[positions] = tensors[positions][:most]
    return tensors


def report(loaded: Loaded, source: str) -> None:
    """Say in the log what was loaded, what stays random and what was left out."""
    log.info("%s: loaded %s", source, ", ".join(p for p in PARTS if p in loaded.parts))
    if loaded.missing:
        log.warning("%s: has no %s: still random", source, ", ".join(f"{p} ({PARTS[p]})" for p in PARTS if p in loaded.missing))
    for reason in sorted(set(loaded.left_out.values())):
        log.info("%s: left out %s: %s", source, _listed(sorted(k for k, r in loaded.left_out.items() if r == reason)), reason)


def fill(model: Blip, tensors: dict[str, Tensor], layout: Layout, *, source: str) -> Loaded:
    """Copy tensors into the model by a layout. ValueError, and an untouched model, unless every key and every shape fits."""
    values, left_out = copy_in(model, tensors, layout, source=source)
    incomplete = {part_of(name) for name in model.state_dict().keys() - values}
    if "encoder" in incomplete and model.cfg.share in ("all", "all_but_cross"):  # one self-attention is both
        incomplete.add("decoder")
    return Loaded(frozenset(PARTS) - incomplete, left_out)


@torch.no_grad()
def copy_in(model: nn.Module, tensors: dict[str, Tensor], layout: Layout, *, source: str) -> tuple[set[str], dict[str, str]]:
    """The same of any network: the names of what was filled, and the keys that were left out with their reasons."""
    pairs = [*layout.required, *(pair for pair in layout.copies if all(key in tensors for key in pair[1]))]
    left_out = _account(pairs, tensors, layout, source)
    state = model.state_dict()
    values: dict[str, Tensor] = {}
    for ours, theirs in pairs:
        value = torch.cat([tensors[key] for key in theirs]) if len(theirs) > 1 else tensors[theirs[0]]
        if value.shape != state[ours].shape:
            own = tuple(state[ours].shape)
            raise ValueError(f"{source}: {_listed(theirs)}: shape {tuple(value.shape)}, but the model's {ours} is {own}")
        if not torch.equal(values.setdefault(ours, value), value):
            first = next(keys for name, keys in pairs if name == ours)
            raise ValueError(
                f"{source}: {_listed(first)} and {_listed(theirs)} differ; one tensor of ours is both (the text encoder and decoder share "
                "all but self-attention), so this checkpoint does not fit"
            )
    for ours, value in values.items():
        state[ours].copy_(value)
    return set(values), left_out


def _account(pairs: list[Pair], tensors: dict[str, Tensor], layout: Layout, source: str) -> dict[str, str]:
    """The keys that are left out with their reasons; ValueError for keys that are missing or have no place."""
    used = {key for _, keys in pairs for key in keys}
    left_out = {}
    for key in tensors.keys() - used:
        reason = next((why for pattern, why in layout.left_out if re.fullmatch(pattern, key)), None)
        if reason:
            left_out[key] = reason
    missing, unexpected = used - tensors.keys(), tensors.keys() - used - left_out.keys()
    if missing or unexpected:
        faults = [f"{name} {_listed(sorted(keys))}" for name, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
        raise ValueError(f"{source}: weights do not fit the model: {'; '.join(faults)}")
    return left_out


def resize_positions(positions_1ND: Tensor, side: int, *, source: str) -> Tensor:
    """Position embeddings of [CLS] and a square of patches for a square of `side` patches, bicubic as the authors do."""
    num_patches = positions_1ND.shape[1] - 1
    old = round(num_patches**0.5)
    if old * old != num_patches:
        raise ValueError(f"{source}: {num_patches} patch positions are no square; only square images fit")
    if old == side:
        return positions_1ND
    grid = positions_1ND[:, 1:].float().unflatten(1, (old, old)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (side, side), mode="bicubic", align_corners=False)
    log.info("%s: position embeddings resized from %d x %d to %d x %d patches", source, old, old, side, side)
    return torch.cat([positions_1ND[:, :1].float(), grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def captioning_weights(model: Blip) -> dict[str, Tensor]:
    """The tensors of transformers' BlipForConditionalGeneration. ValueError when the model lacks a part of it."""
    model.require(*CAPTIONING)
    prefix, depth = "text_decoder.", model.cfg.text.depth
    decoder = nn.ModuleDict({"vit": model.vit, "med": decoder_of(copy.deepcopy(model.med))})
    return theirs(
        decoder,
        [
            *huggingface_vision(model.cfg.vision.depth),
            *text_stack(f"{prefix}bert.", depth, attention="decoder_attention"),
            *language_head(f"{prefix}cls.predictions."),
        ],
    )


def retrieval_weights(model: Blip) -> dict[str, Tensor]:
    """The tensors of transformers' BlipForImageTextRetrieval. ValueError when the model lacks a part of it."""
    model.require(*RETRIEVAL)
    stack = text_stack("text_encoder.", model.cfg.text.depth, attention="encoder_attention")
    return theirs(model, [*huggingface_vision(model.cfg.vision.depth), *stack, *retrieval_heads()])


def theirs(model: nn.Module, pairs: list[Pair]) -> dict[str, Tensor]:
    """Our tensors under the names of others."""
    state = model.state_dict()
    return {key: piece.clone() for ours, theirs in pairs for key, piece in zip(theirs, state[ours].chunk(len(theirs)), strict=True)}


def _new_norm_name(key: str) -> str:
    """bert-base-uncased still has TensorFlow's names of LayerNorm's tensors."""
    return re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", key))


def _listed(keys: Sequence[str], most: int = 6) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")

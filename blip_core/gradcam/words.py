"""Pictures and texts in; for each word, where the network looked, out. Several at once, in parts, so that memory is bounded.

The network may serve others meanwhile, and whoever asks may be in inference mode. It is ready for inference at `How.precision`
(model/inference.py). W words, S x S patches: the network sees a picture as a square, so both of its sides have S of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from blip_core.compute.distributed import device
from blip_core.compute.padding import pad, tokenize
from blip_core.compute.pixels import load_pixels
from blip_core.compute.precision import autocast
from blip_core.gradcam.maps import Kind, answer_maps, caption_maps, match_maps, usual_layer
from blip_core.model.blip import Blip
from blip_core.model.med import KeysValues, Med
from blip_core.model.network import Network
from blip_core.model.vqa import Vqa
from blip_core.tokenizer.tokenizer import Tokenizer

PART = 8  # pairs at a time: what the gradient needs of the layers above is kept for all of them
Words = list[tuple[str, list[int]]]  # each with the places of its tokens


@dataclass(frozen=True)
class How:
    """`max_tokens`: of a text; what is cut off has no map. `layer`: counted from 0; None is `usual_layer`."""

    max_tokens: int
    precision: str
    layer: int | None = None
    kind: Kind = "grad_cam"

    def layer_of(self, model: Network, *, first_only: bool = False) -> int:
        """ValueError when there is no such layer, or none of its words has a gradient."""
        depth = model.cfg.text.depth
        layer = usual_layer(depth) if self.layer is None else self.layer
        if not 0 <= layer < depth:
            raise ValueError(f"layer {layer + 1}: this model has {depth}, counted from 1")
        if first_only and self.kind == "grad_cam" and 0 < layer == depth - 1:
            last = f"layer {depth} is the last, of which ITM reads the first token alone"
            raise ValueError(f"{last}: no word has a gradient there; take another")
        return layer


@dataclass(frozen=True)
class Look:
    """`weights`: W x S x S, row by row of the picture; not scaled, so those of one text compare. `whole`: the mean over all tokens of the
    text, special ones too: S x S. `layer`: counted from 0."""

    layer: int
    words: list[str]
    weights: np.ndarray
    whole: np.ndarray


def look_for_match(model: Blip, tokenizer: Tokenizer, pictures: Sequence[np.ndarray], texts: Sequence[str], how: How) -> list[Look]:
    """Where each word of texts[i] looks in the uint8 H x W x 3 pictures[i] when ITM judges whether they match. ValueError when the model
    has no ITM, or no such layer."""
    layer = how.layer_of(model, first_only=True)

    def maps(part: slice) -> tuple[Tensor, Tensor]:
        ids, mask = _tokens(tokenizer, texts[part], how.max_tokens)
        images = _images(model, model.med, pictures[part])
        return match_maps(model, ids, mask, images, layer=layer, kind=how.kind), mask

    return _looks(maps, [tokenizer.words(text, max_tokens=how.max_tokens) for text in texts], layer, how)


def look_for_caption(
    model: Blip, tokenizer: Tokenizer, pictures: Sequence[np.ndarray], captions: Sequence[str], how: How, *, prompt: str = ""
) -> list[Look]:
    """Where the decoder looks when it chooses each word of captions[i], whoever wrote it, behind the prompt. ValueError when the model
    can't write, or has no such layer."""
    layer, start = how.layer_of(model), tokenizer.encode_prompt(prompt)
    most = min(how.max_tokens, model.cfg.text.max_positions - len(start) + 1)
    encoded = [start + tokenizer.encode(caption, max_tokens=most)[1:] for caption in captions]
    words = [tokenizer.words(caption, max_tokens=most) for caption in captions]
    shifted = [[(word, [len(start) - 1 + place for place in places]) for word, places in own] for own in words]

    def maps(part: slice) -> tuple[Tensor, Tensor]:
        ids, mask = (t.to(device()) for t in pad(encoded[part], tokenizer.pad))
        images = _images(model, model.med, pictures[part])
        chosen = mask & (torch.arange(mask.shape[1], device=mask.device) >= len(start))
        return caption_maps(model, ids, mask, images, layer=layer, kind=how.kind), chosen

    return _looks(maps, shifted, layer, how)


def look_for_answer(
    model: Vqa, tokenizer: Tokenizer, pictures: Sequence[np.ndarray], questions: Sequence[str], answers: Sequence[str], how: How
) -> list[Look]:
    """Where each word of questions[i] looks for the log-probability of answers[i], be it the model's own or another. ValueError when there
    is no such layer."""
    layer = how.layer_of(model)

    def maps(part: slice) -> tuple[Tensor, Tensor]:
        ids, mask = _tokens(tokenizer, questions[part], how.max_tokens)
        answer_ids, answer_mask = _tokens(tokenizer, answers[part], model.cfg.text.max_positions)
        images = _images(model, model.question, pictures[part])
        return answer_maps(model, ids, mask, answer_ids, answer_mask, images, layer=layer, kind=how.kind), mask

    return _looks(maps, [tokenizer.words(question, max_tokens=how.max_tokens) for question in questions], layer, how)


@torch.inference_mode(False)
@torch.enable_grad()
def _looks(maps: Callable[[slice], tuple[Tensor, Tensor]], words: list[Words], layer: int, how: How) -> list[Look]:
    """`maps`: of a part of the pairs, B x T x N, and which tokens count in the whole, B x T."""
    looks = []
    for start in range(0, len(words), PART):
        with autocast(how.precision):
            found_BTN, counted_BT = (t.cpu().numpy() for t in maps(slice(start, start + PART)))
        own = zip(words[start : start + PART], found_BTN, counted_BT, strict=True)
        looks += [_look(*one, layer) for one in own]
    return looks


def _look(words: Words, found_TN: np.ndarray, counted_T: np.ndarray, layer: int) -> Look:
    """A word of several pieces has their mean. The first image token is no patch."""
    side = round((found_TN.shape[1] - 1) ** 0.5)
    patches_TSS = found_TN[:, 1:].reshape(-1, side, side)
    weights_WSS = np.array([patches_TSS[places].mean(0) for _, places in words], np.float32).reshape(-1, side, side)
    return Look(layer, [word for word, _ in words], weights_WSS, patches_TSS[counted_T].mean(0))


def _tokens(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> tuple[Tensor, Tensor]:
    ids, mask = tokenize(tokenizer, list(texts), max_tokens=max_tokens)
    return ids.to(device()), mask.to(device())


@torch.no_grad()
def _images(model: Network, med: Med, pictures: Sequence[np.ndarray]) -> list[KeysValues]:
    """What `med`, a part of the model, reads of them."""
    return med.keys_values(model.vit(load_pixels(list(pictures), model.cfg.vision.image_size)))

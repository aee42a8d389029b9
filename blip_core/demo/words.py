"""Where each word of a text looks in a picture, as the page draws it."""

from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from blip_core.compute.distributed import device
from blip_core.compute.padding import tokenize
from blip_core.compute.pixels import load_pixels
from blip_core.compute.precision import autocast
from blip_core.demo.attention_map import cross_attention, grad_cam
from blip_core.model.blip import MATCHING
from blip_core.serving.options import BadRequest
from blip_core.serving.rows import Row
from blip_core.serving.service import BlipService

Kind = Literal["grad_cam", "attention"]
SIDE, LONGEST = 240, 1200  # pixels of a drawn map: its shorter side, and what its longer one may have
RED, OPAQUE, GREYED = (255, 40, 0), 0.8, 0.8


def word_maps(service: BlipService, row: Row, *, layer: int, kind: Kind) -> dict[str, Any]:
    """Of each word a weight for every patch, row by row of the picture: grad_cam, or plain attention, averaged over the heads of a layer
    and over the pieces of the word."""
    depth = service.model.cfg.text.depth
    service.require("an attention map", *MATCHING)
    if not 0 <= layer < depth:
        raise BadRequest(f"layer {layer + 1}: this model has {depth}, counted from 1")
    if kind == "grad_cam" and layer == depth - 1:
        raise BadRequest(f"layer {depth} is the last, of which ITM reads the first token alone: no word has a gradient there; take another")
    assert row.text is not None and row.picture is not None
    words = service.tokenizer.words(row.text, max_tokens=service.max_tokens)
    with service.lock:
        weights_TN = _weights(service, row.text, row.picture, layer, kind)
    places = [places for _, places in words]
    maps = [weights_TN[own].mean(0)[1:] for own in places]  # the first image token is no patch
    side = service.model.cfg.vision.image_size // service.model.cfg.vision.patch_size
    return {"side": side, "words": [{"word": word, "weights": found.tolist()} for (word, _), found in zip(words, maps, strict=True)]}


def _weights(service: BlipService, text: str, picture: np.ndarray, layer: int, kind: Kind) -> torch.Tensor:
    model, settings = service.model, service.settings
    ids, mask = (t.to(device()) for t in tokenize(service.tokenizer, [text], max_tokens=service.max_tokens))
    with torch.no_grad(), autocast(settings.precision):
        images = model.keys_values(model.image_tokens(load_pixels([picture], model.cfg.vision.image_size)))
        if kind == "grad_cam":
            return grad_cam(model, ids, mask, images, layer=layer)[0].cpu()
        return cross_attention(model, ids, mask, images, layer=layer)[1][0].mean(0).cpu()


def overlay(picture: np.ndarray, weights: list[float], side: int) -> np.ndarray:
    """Red over the greyed picture, uint8 H x W x 3, the stronger the larger the weight of `side` x `side` patches.

    The model saw the whole picture as a square, so the patches are stretched with it."""
    height, width = picture.shape[:2]
    scale = SIDE / min(height, width)
    size = tuple(max(1, min(LONGEST, round(length * scale))) for length in (width, height))
    shown = np.asarray(Image.fromarray(picture).resize(size), np.float32)
    shown += GREYED * (shown.mean(-1, keepdims=True) - shown)
    heat = np.asarray(weights, np.float32).reshape(side, side)
    heat = (heat - heat.min()) / max(float(np.ptp(heat)), 1e-12)
    strength = OPAQUE * np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.BILINEAR))[..., None]
    return (shown + strength * (np.array(RED) - shown)).clip(0, 255).astype(np.uint8)

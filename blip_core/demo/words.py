"""Where each word of a text looks in a picture, as the page draws it."""

from typing import Literal

import torch

from blip_core.data import load_pixels, tokenize
from blip_core.distributed import device
from blip_core.model.attention_map import cross_attention, grad_cam
from blip_core.model.blip import MATCHING
from blip_core.precision import autocast
from blip_core.serving.options import BadRequest
from blip_core.serving.rows import Row
from blip_core.serving.service import Service

Kind = Literal["grad_cam", "attention"]


def word_maps(service: Service, row: Row, *, layer: int, kind: Kind) -> dict:
    """Of each word a weight for every patch, row by row of the picture: grad_cam, or plain attention, averaged over the heads of a layer
    and over the pieces of the word."""
    depth = service.model.cfg.text.depth
    service.require("an attention map", *MATCHING)
    if not 0 <= layer < depth:
        raise BadRequest(f"layer {layer + 1}: this model has {depth}, counted from 1")
    if kind == "grad_cam" and layer == depth - 1:
        raise BadRequest(f"layer {depth} is the last, of which ITM reads the first token alone: no word has a gradient there; take another")
    words = service.tokenizer.words(row.text, max_tokens=service.settings.max_tokens)
    with service.lock:
        weights_TN = _weights(service, row, layer, kind)
    places = [places for _, places in words]
    maps = [weights_TN[own].mean(0)[1:] for own in places]  # the first image token is no patch
    side = service.model.cfg.vision.image_size // service.model.cfg.vision.patch_size
    return {"side": side, "words": [{"word": word, "weights": found.tolist()} for (word, _), found in zip(words, maps, strict=True)]}


def _weights(service: Service, row: Row, layer: int, kind: Kind) -> torch.Tensor:
    model, settings = service.model, service.settings
    ids, mask = (t.to(device()) for t in tokenize(service.tokenizer, [row.text], max_tokens=settings.max_tokens))
    with torch.no_grad(), autocast(settings.precision):
        images = model.keys_values(model.image_tokens(load_pixels([row.picture], model.cfg.vision.image_size)))
        if kind == "grad_cam":
            return grad_cam(model, ids, mask, images, layer=layer)[0].cpu()
        return cross_attention(model, ids, mask, images, layer=layer)[1][0].mean(0).cpu()

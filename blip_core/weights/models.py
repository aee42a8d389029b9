"""Model folders of the chain, of both kinds: a BLIP (checkpoint.py), or a BLIP-2 of stage 1 with its frozen image encoder inside.

Both hold config.json, tokenizer.json and model.safetensors; `model.kind` in config.json is blip2 or missing.
"""

from pathlib import Path
from typing import Any

import torch

from blip_core.config.model import QFormerConfig
from blip_core.files.content import read_json
from blip_core.model.blip2 import Blip2, ImageText
from blip_core.model.qformer import QFormer
from blip_core.tokenizer.folders import load_tokenizer
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.weights.checkpoint import is_blip2, load_model, load_weights, model_hash, save_network, special_tokens
from blip_core.weights.encoders import Encoder, about_encoder, bare_encoder
from blip_core.weights.sizes import INIT


def load_any(folder: Path) -> tuple[ImageText, Tokenizer]:
    """The model of a folder, in eval mode, and its tokenizer. ValueError names what is missing or does not fit."""
    return _load_blip2(folder) if is_blip2(folder) else load_model(folder)


def save_blip2(model: Blip2, tokenizer: Tokenizer, folder: Path, *, label_smoothing: float, **facts: Any) -> None:
    """Write a model folder by rename. `label_smoothing`: of ITC, which its tunings have too."""
    sizes = {
        "kind": "blip2",
        "encoder": about_encoder(model.encoder),
        "image_size": model.image_size,
        "image_width": model.qformer.image_width,
        "image_eps": model.qformer.image_norm.eps,
        "qformer": model.cfg.model_dump(),
        "label_smoothing": label_smoothing,
    }
    save_network(model, tokenizer, folder, model=sizes, missing=sorted(model.qformer.missing), **facts)


def _load_blip2(folder: Path) -> tuple[Blip2, Tokenizer]:
    about, tokenizer = read_json(folder / "config.json"), load_tokenizer(folder)
    sizes, widths = about["model"], {name: about["model"][name] for name in ("image_width", "image_eps")}
    with torch.device("meta"):  # as in load_model; an encoder of transformers has tensors that no file holds
        qformer = QFormer(QFormerConfig(**sizes["qformer"]), INIT, special_tokens(tokenizer), **widths)
    qformer.missing = frozenset(about["missing"])
    model = Blip2(bare_encoder(sizes["encoder"]), qformer, image_size=sizes["image_size"])
    load_weights(model, folder)
    return model.eval(), tokenizer


def encoder_of(model: Blip2, folder: Path) -> Encoder:
    """The frozen encoder of the model that lies in `folder`."""
    return Encoder(model.encoder, model.qformer.image_width, model.image_size, model_hash(folder))

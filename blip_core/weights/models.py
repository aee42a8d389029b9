"""Model folders of the chain, of both kinds: a BLIP (checkpoint.py), or a BLIP-2 with its frozen image encoder inside, and behind stage 2
the folder of its frozen language model.

Both hold config.json, tokenizer.json and model.safetensors; `model.kind` in config.json is blip2 or missing.
"""

from pathlib import Path
from typing import Any

from torch import nn

from blip_core.config.model import QFormerConfig
from blip_core.files.content import read_json
from blip_core.model.blip2 import Blip2, ImageText, Prompter
from blip_core.model.qformer import QFormer
from blip_core.tokenizer.folders import load_tokenizer
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.weights.checkpoint import LANGUAGE, is_blip2, load_model, load_weights, model_hash, save_network, special_tokens
from blip_core.weights.encoders import Encoder, about_encoder, bare_encoder
from blip_core.weights.language import Language, load_language
from blip_core.weights.sizes import INIT
from blip_core.weights.undrawn import undrawn


class BothStages(Blip2):
    """What stage 1 trained scores, what stage 2 trained has the frozen `language` write. That one is no part of the weights."""

    def __init__(self, encoder: nn.Module, qformer: QFormer, prompter: Prompter, language: Language, *, image_size: int):
        super().__init__(encoder, qformer, image_size=image_size)
        self.prompter, self.language = prompter, language

    @property
    def stage_2(self) -> Blip2:
        """What writes, alone: as `export_generation` takes it."""
        return Blip2(self.encoder, self.prompter, image_size=self.image_size)


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
    language = None
    if isinstance(model, BothStages):
        sizes["language"], language = {"end": model.language.end}, model.language.folder
    save_network(model, tokenizer, folder, language=language, model=sizes, missing=sorted(model.qformer.missing), **facts)


def _load_blip2(folder: Path) -> tuple[Blip2, Tokenizer]:
    about, tokenizer = read_json(folder / "config.json"), load_tokenizer(folder)
    sizes, widths = about["model"], {name: about["model"][name] for name in ("image_width", "image_eps")}

    def bare() -> QFormer:
        with undrawn():  # an encoder of transformers has tensors that no file holds
            return QFormer(QFormerConfig(**sizes["qformer"]), INIT, special_tokens(tokenizer), **widths)

    encoder, qformer, size = bare_encoder(sizes["encoder"]), bare(), {"image_size": sizes["image_size"]}
    qformer.missing = frozenset(about["missing"])
    if words := sizes.get("language"):
        language = load_language(folder / LANGUAGE, precision=about["precision"], end=words["end"])
        model: Blip2 = BothStages(encoder, qformer, Prompter(bare(), language.width), language, **size)
    else:
        model = Blip2(encoder, qformer, **size)
    load_weights(model, folder)
    return model.eval(), tokenizer


def encoder_of(model: Blip2, folder: Path) -> Encoder:
    """The frozen encoder of the model that lies in `folder`."""
    return Encoder(model.encoder, model.qformer.image_width, model.image_size, model_hash(folder))

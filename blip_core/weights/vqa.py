"""A question answering BLIP on disk: folders of ours, and weights in and out of transformers' BlipForQuestionAnswering and the authors'
BLIP_VQA."""

import json
from pathlib import Path
from typing import Literal

from torch import Tensor

from blip_core.config.model import ModelConfig
from blip_core.model.vqa import Vqa
from blip_core.tokenizer.folders import load_tokenizer
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.weights.checkpoint import load_weights, special_tokens
from blip_core.weights.load import read_public
from blip_core.weights.names import vqa_layout
from blip_core.weights.pretrained import copy_in, theirs


def load_vqa(
    path: Path, *, vocab: Path | None = None, image_size: int | None = None, first: Literal["enc", "cls"] = "enc"
) -> tuple[Vqa, Tokenizer]:
    """One in eval mode from a folder of transformers or a .pth file of the authors, and its tokenizer; as `load_pretrained`.

    `first`: the token that stands first in a question. The authors trained with [ENC]; transformers leaves [CLS], in training as well,
    so a model that was tuned there wants "cls".
    """
    cfg, tensors, tokenizer = read_public(path, vocab=vocab, image_size=image_size)
    model = Vqa(cfg, special_tokens(tokenizer))
    copy_in(model, tensors, vqa_layout(tensors, vision_depth=cfg.vision.depth, text_depth=cfg.text.depth), source=str(path))
    model.first = first
    return model.eval(), tokenizer


def load_answering(folder: Path) -> tuple[Vqa, Tokenizer]:
    """One in eval mode from a folder that `tune_task` made, and its tokenizer. ValueError when its weights do not load."""
    about, tokenizer = json.loads((folder / "config.json").read_text()), load_tokenizer(folder)
    model = Vqa(ModelConfig(**about["task_model"]), special_tokens(tokenizer))
    load_weights(model, folder)
    return model.eval(), tokenizer


def vqa_weights(model: Vqa) -> dict[str, Tensor]:
    """The tensors of transformers' BlipForQuestionAnswering. ValueError when picture and text differ in width, which it can't have."""
    vision, text = model.cfg.vision, model.cfg.text
    if vision.width != text.width:
        raise ValueError(
            f"picture tokens are {vision.width} wide and texts {text.width}; transformers' BlipForQuestionAnswering gives its answer "
            "decoder keys of the picture's width though it reads the question, so only equal widths fit"
        )
    return theirs(model, vqa_layout((), vision_depth=vision.depth, text_depth=text.depth).required)

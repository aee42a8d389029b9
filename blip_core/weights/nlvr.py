"""The authors' BLIP_NLVR checkpoints in; transformers has no such class."""

from pathlib import Path

from blip_core.model.nlvr import Nlvr
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.weights.checkpoint import special_tokens
from blip_core.weights.load import read_public
from blip_core.weights.names import nlvr_layout
from blip_core.weights.pretrained import copy_in


def load_nlvr(path: Path, *, vocab: Path | None = None, image_size: int | None = None) -> tuple[Nlvr, Tokenizer]:
    """One in eval mode from a .pth file of the authors, and its tokenizer; as `load_pretrained`."""
    cfg, tensors, tokenizer = read_public(path, vocab=vocab, image_size=image_size)
    model = Nlvr(cfg, special_tokens(tokenizer))
    copy_in(model, tensors, nlvr_layout(vision_depth=cfg.vision.depth, text_depth=cfg.text.depth), source=str(path))
    return model.eval(), tokenizer

"""Public weights in: BLIP folders of transformers, the authors' .pth files, and BERT and ViT folders to begin a pre-training with.

Reads files alone: json, safetensors and torch.load(weights_only=True); transformers is not needed.
"""

import json
import logging
import pickle
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from blip_core.config.model import ModelConfig
from blip_core.files.content import read_json
from blip_core.model.blip import Blip
from blip_core.model.qformer import QFormer
from blip_core.tokenizer.folders import load_tokenizer
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.weights.checkpoint import load_model, new_model
from blip_core.weights.pretrained import Loaded, load_bert, load_bert_qformer, load_blip, load_vit, report, resize_positions
from blip_core.weights.sizes import authors_config, check_bert, check_rows, check_vit, check_vocabulary, huggingface_config, resized

log = logging.getLogger(__name__)

_POSITIONS = {"vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"}


def load_pretrained(
    path: str | Path,
    *,
    vocab: str | Path | None = None,
    image_size: int | None = None,
    match_token: Literal["enc", "cls"] = "enc",
) -> tuple[Blip, Tokenizer]:
    """A BLIP in eval mode from a folder of transformers, a .pth file of the authors, or a model folder of ours, and its tokenizer.

    `model.missing` holds the parts that the checkpoint lacks. `vocab` is the tokenizer, a file or folder, where it is not beside the
    weights; `image_size` resizes the position embeddings; `match_token` "cls" gives the ITM scores of the public inference code, which
    forgets [ENC] (it is a property of this object: a saved model folder does not keep it). ValueError says what does not fit.
    """
    path, vocab = Path(path), Path(vocab) if vocab else None
    if path.is_dir() and "model" in read_config(path):
        if vocab or image_size or match_token != "enc":
            raise ValueError(f"{path}: a model folder of ours loads as it is; vocab, image_size and match_token are for public ones")
        return load_model(path)
    cfg, tensors, tokenizer = read_public(path, vocab=vocab, image_size=image_size)
    model = new_model(cfg, tokenizer, seed=0)
    report(load_blip(model, tensors, source=str(path)), str(path))
    model.match_token = match_token
    if "match" not in model.missing:
        log.info("%s: ITM scores have [%s] first (trained: [ENC]; the public inference code leaves [CLS])", path, match_token.upper())
    return model.eval(), tokenizer


def read_public(path: Path, *, vocab: Path | None, image_size: int | None) -> tuple[ModelConfig, dict[str, Tensor], Tokenizer]:
    """Sizes, tensors under their public names, and tokenizer of a folder of transformers or a .pth file of the authors. ValueError says
    what does not fit."""
    if path.is_dir():
        config = read_config(path)
        cfg = huggingface_config(config, path)
        tensors, tokenizer = read_tensors(path), load_tokenizer(vocab or path)
        check_vocabulary(config["text_config"], tokenizer, path)
    else:
        tensors = read_pth(path)
        cfg = authors_config(tensors, path)
        tokenizer = load_tokenizer(vocab or path.parent)
    check_rows(tensors, tokenizer, path)
    if image_size and image_size != cfg.vision.image_size:
        cfg = resized(cfg, image_size)
        for key in _POSITIONS & tensors.keys():
            tensors[key] = resize_positions(tensors[key], image_size // cfg.vision.patch_size, source=str(path))
    return cfg, tensors, tokenizer


@torch.no_grad()
def resize_images(model: Blip, image_size: int, *, source: str) -> None:
    """Let a model take pictures of another size, in place: its position embeddings are resized. ValueError when the size does not fit.

    `source` names the model in messages.
    """
    cfg = resized(model.cfg, image_size)
    positions = resize_positions(model.vit.positions, image_size // cfg.vision.patch_size, source=source)
    model.cfg, model.vit.cfg, model.vit.positions = cfg, cfg.vision, nn.Parameter(positions)


def initialize(model: Blip, *, vit: Path | None = None, bert: Path | None = None) -> Loaded:
    """Begin as the paper: the image encoder from an ImageNet ViT or DeiT, the text transformer from BERT; the rest stays random.

    Both self-attentions of a block begin as BERT's. `vit` is a folder of transformers or a .pth file of DeiT, `bert` a folder of
    transformers whose vocabulary is the model's. ValueError says what does not fit.
    """
    parts: frozenset[str] = frozenset()
    left_out: dict[str, str] = {}
    if vit:
        if vit.is_dir():
            check_vit(read_config(vit), model.cfg, vit)
        loaded = load_vit(model, read_tensors(vit) if vit.is_dir() else read_pth(vit), source=str(vit))
        parts, left_out = parts | loaded.parts, left_out | loaded.left_out
    if bert:
        check_bert(read_config(bert), load_tokenizer(bert), model.cfg.text, model.special, bert)
        loaded = load_bert(model, read_tensors(bert), source=str(bert))
        parts, left_out = parts | loaded.parts, left_out | loaded.left_out
    loaded = Loaded(parts, left_out)
    report(loaded, " and ".join(str(p) for p in (vit, bert) if p))
    return loaded


def initialize_qformer(qformer: QFormer, bert: Path) -> None:
    """Begin a Q-Former from BERT, as the paper does (arXiv 2301.12597, section 3.1): both feed-forwards as BERT's one, cross-attention,
    queries and heads random. `bert` as `initialize` takes it."""
    check_bert(read_config(bert), load_tokenizer(bert), qformer.cfg, qformer.special, bert)
    load_bert_qformer(qformer, read_tensors(bert), source=str(bert))
    log.info("%s: begins the Q-Former's text, self-attention and feed-forwards", bert)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder of transformers: one safetensors file, or shards with an index."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = json.loads(index.read_text())["weight_map"]
        tensors: dict[str, Tensor] = {}
        for name in sorted(set(weight_map.values())):
            tensors |= _read_safetensors(folder / name)
        if lost := weight_map.keys() - tensors.keys():
            raise ValueError(f"{index}: names {len(lost)} tensors that no shard holds, as {sorted(lost)[0]}; download the folder again")
        return tensors
    if not (folder / "model.safetensors").exists() and (folder / "pytorch_model.bin").exists():
        return _unpickle(folder / "pytorch_model.bin")
    return _read_safetensors(folder / "model.safetensors")


def read_pth(path: Path) -> dict[str, Tensor]:
    """The tensors below `model` of a checkpoint of the authors (or of DeiT); no code in it is run."""
    content = _unpickle(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        found = sorted(map(str, content))[:5] if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path}: expected a checkpoint of BLIP's authors, a mapping with the weights at 'model'; got {found}")
    return content["model"]


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{path}: does not load ({e}); expected the weights of a transformers folder") from None


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # noqa: BLE001  # bytes that are no pickle make the reader fail in any way; torch's own words recommend to trust the file
        found = "it holds more than tensors, or is no such file" if isinstance(e, pickle.UnpicklingError) else f"{type(e).__name__}: {e}"
        raise ValueError(f"{path}: does not load as tensors alone ({found}); expected weights written by torch.save") from None


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a model's folder. ValueError when there is none, or it is no JSON object."""
    path = folder / "config.json"
    if not path.exists():
        raise ValueError(f"{folder}: no config.json; expected a folder as transformers' save_pretrained writes it")
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected the settings of a model as a JSON object, got {type(found).__name__}")
    return found

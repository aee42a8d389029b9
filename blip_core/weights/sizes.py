"""The sizes of a BLIP from a public config.json or the shapes of its weights, and what must fit before weights are copied."""

import logging
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from blip_core.config.model import InitConfig, ModelConfig, TextConfig
from blip_core.model.blip import SpecialTokens
from blip_core.tokenizer.tokenizer import ROLE_TOKENS, Tokenizer

log = logging.getLogger(__name__)

# of what a checkpoint lacks, as BERT and ViT
INIT = InitConfig(weight=0.02, patch=0.02, image_position=0.02, token=0.02, text_position=0.02)
_EMBEDDINGS = ("text_encoder.embeddings", "text_decoder.bert.embeddings", "text_model.embeddings")


def huggingface_config(config: dict[str, Any], folder: Path) -> ModelConfig:
    """Our sizes from a BLIP config.json of transformers. ValueError names a key that is missing or has a value that does not fit."""
    if config.get("model_type") != "blip":
        raise ValueError(f"{folder / 'config.json'}: model_type is {config.get('model_type')!r}; expected 'blip'")
    where = folder / "config.json"
    try:
        vision, text = config["vision_config"], config["text_config"]
        if text["hidden_size"] == 768 and text["num_attention_heads"] == 8:
            log.warning("%s: 8 attention heads of 96; BLIP was trained with 12 of 64: an early conversion had this error", where)
        if text["attention_probs_dropout_prob"] != text["hidden_dropout_prob"] or vision["attention_dropout"]:
            log.warning("%s: dropout differs by place; training will have %s, in the text alone", where, text["hidden_dropout_prob"])
        return ModelConfig(
            vision=dict(
                image_size=vision["image_size"],
                patch_size=vision["patch_size"],
                width=vision["hidden_size"],
                depth=vision["num_hidden_layers"],
                heads=vision["num_attention_heads"],
                mlp_ratio=vision["intermediate_size"] / vision["hidden_size"],
                activation=vision["hidden_act"],
                norm_eps=vision["layer_norm_eps"],
                drop_path=0.0,
            ),
            text=dict(
                width=text["hidden_size"],
                depth=text["num_hidden_layers"],
                heads=text["num_attention_heads"],
                mlp_width=text["intermediate_size"],
                max_positions=text["max_position_embeddings"],
                activation=text["hidden_act"],
                norm_eps=text["layer_norm_eps"],
                dropout=text["hidden_dropout_prob"],
            ),
            embed_dim=config["image_text_hidden_size"],
            init=INIT,
        )
    except KeyError as e:
        raise ValueError(f"{where}: no key {e}; expected a config.json as transformers' BlipConfig writes it") from None
    except ValidationError as e:
        faults = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}, got {f['input']!r}" for f in e.errors())
        raise ValueError(f"{where}: {faults}") from None


def authors_config(tensors: dict[str, Tensor], path: Path) -> ModelConfig:
    """Sizes from the shapes of the weights; what no shape tells (heads of 64, GELU, epsilons) as the authors' code sets it."""
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    text = next((p.removesuffix(".embeddings") for p in _EMBEDDINGS if f"{p}.word_embeddings.weight" in shapes), None)
    if text is None or "visual_encoder.pos_embed" not in shapes:
        raise ValueError(f"{path}: {len(shapes)} keys without visual_encoder.pos_embed or text embeddings; expected a BLIP of the authors")
    _, num_positions, vision_width = shapes["visual_encoder.pos_embed"]
    patch = shapes["visual_encoder.patch_embed.proj.weight"][-1]
    max_positions, text_width = shapes[f"{text}.embeddings.position_embeddings.weight"]
    return ModelConfig(
        vision=dict(
            image_size=round((num_positions - 1) ** 0.5) * patch,
            patch_size=patch,
            width=vision_width,
            depth=_depth(shapes, "visual_encoder.blocks."),
            heads=max(1, vision_width // 64),
            mlp_ratio=shapes["visual_encoder.blocks.0.mlp.fc1.weight"][0] / vision_width,
            activation="gelu",
            norm_eps=1e-6,
            drop_path=0.0,
        ),
        text=dict(
            width=text_width,
            depth=_depth(shapes, f"{text}.encoder.layer."),
            heads=max(1, text_width // 64),
            mlp_width=shapes[f"{text}.encoder.layer.0.intermediate.dense.weight"][0],
            max_positions=max_positions,
            activation="gelu",
            norm_eps=1e-12,
            dropout=0.1,
        ),
        embed_dim=shapes.get("vision_proj.weight", (256,))[0],
        init=INIT,
    )


def _depth(shapes: dict[str, Any], prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in shapes if key.startswith(prefix)})


def resized(cfg: ModelConfig, image_size: int) -> ModelConfig:
    try:
        return ModelConfig(**{**cfg.model_dump(), "vision": {**cfg.vision.model_dump(), "image_size": image_size}})
    except ValidationError as e:
        raise ValueError(f"image_size {image_size}: {e.errors()[0]['msg']}") from None


def check_vocabulary(text_config: dict[str, Any], tokenizer: Tokenizer, folder: Path) -> None:
    """ValueError unless the ids that config.json names are those of the vocabulary."""
    expected = {"vocab_size": tokenizer.size, "bos_token_id": tokenizer.dec, "sep_token_id": tokenizer.sep, "pad_token_id": tokenizer.pad}
    for key, value in expected.items():
        if text_config.get(key) != value:
            raise ValueError(
                f"{folder / 'config.json'}: text_config.{key} is {text_config.get(key)}, but by its vocabulary of {len(tokenizer.vocab)} "
                f"entries, [DEC] and [ENC] behind them, it is {value}: weights and vocabulary do not belong together"
            )


def check_rows(tensors: dict[str, Tensor], tokenizer: Tokenizer, path: Path) -> None:
    """ValueError unless the embeddings have a row for each entry of the vocabulary, [DEC] and [ENC]."""
    for prefix in _EMBEDDINGS:
        rows = tensors.get(f"{prefix}.word_embeddings.weight")
        if rows is not None and len(rows) != tokenizer.size:
            raise ValueError(
                f"{path}: {prefix}.word_embeddings has {len(rows)} rows, but the vocabulary has {len(tokenizer.vocab)} entries "
                f"+ [DEC] and [ENC] = {tokenizer.size}: weights and vocabulary do not belong together"
            )


def check_vit(config: dict[str, Any], cfg: ModelConfig, folder: Path) -> None:
    """What no shape tells."""
    if config.get("model_type") not in ("vit", "deit"):
        raise ValueError(f"{folder / 'config.json'}: model_type is {config.get('model_type')!r}; expected 'vit' or 'deit'")
    vision = cfg.vision
    _expect(config, {"num_attention_heads": vision.heads, "hidden_act": vision.activation, "num_hidden_layers": vision.depth}, folder)


def check_bert(config: dict[str, Any], tokenizer: Tokenizer, text: TextConfig, special: SpecialTokens, folder: Path) -> None:
    """What no shape tells: heads, activation, and that the special tokens have the ids of the model's vocabulary."""
    if config.get("model_type") != "bert":
        raise ValueError(f"{folder / 'config.json'}: model_type is {config.get('model_type')!r}; expected 'bert'")
    _expect(config, {"num_attention_heads": text.heads, "hidden_act": text.activation, "num_hidden_layers": text.depth}, folder)
    if (tokenizer.size, tokenizer.pad, tokenizer.cls, tokenizer.sep) != (special.vocab_size, special.pad, special.cls, special.sep):
        raise ValueError(
            f"{folder}: its vocabulary of {len(tokenizer.vocab)} entries has its special tokens at other ids than the model's of "
            f"{special.vocab_size - len(ROLE_TOKENS)}, or another size: build the model with the vocabulary of this BERT (ingest.vocab)"
        )


def _expect(config: dict[str, Any], expected: dict[str, Any], folder: Path) -> None:
    for key, value in expected.items():
        if config.get(key) != value:
            where = folder / "config.json"
            raise ValueError(f"{where}: {key} is {config.get(key)!r}, but the model was built with {value!r}; set its sizes to match")

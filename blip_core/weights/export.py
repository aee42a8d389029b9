"""Public weights out: folders that transformers' from_pretrained and BlipProcessor load offline, with equal outputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file

from blip_core.config.model import MEAN, STD
from blip_core.files.atomic import new_folder
from blip_core.files.content import write_json
from blip_core.model.blip import Blip
from blip_core.tokenizer.folders import TOKENIZER, VOCAB
from blip_core.tokenizer.tokenizer import ROLE_TOKENS, Tokenizer
from blip_core.tokenizer.wordpiece import save_vocab
from blip_core.weights.pretrained import captioning_weights, require_patches, retrieval_weights

CLASSES = {"captioning": "BlipForConditionalGeneration", "retrieval": "BlipForImageTextRetrieval"}
_WEIGHTS = {"captioning": captioning_weights, "retrieval": retrieval_weights}


def export_huggingface(model: Blip, tokenizer: Tokenizer, folder: Path, *, kind: Literal["captioning", "retrieval"]) -> None:
    """Write a folder of transformers by rename: weights, config, tokenizer and image processor.

    One class of transformers holds one role only, so captioning and retrieval are two folders. ValueError when the folder exists,
    or when the model lacks a part of the role.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists; name another folder or remove it")
    require_patches(model, "transformers has no such model")
    if kind == "retrieval" and model.cfg.pooling != "first":
        raise ValueError(
            f"model.pooling is {model.cfg.pooling}, and transformers compares the first token; train with pooling: first for that"
        )
    tensors = _WEIGHTS[kind](model)
    with new_folder(folder) as temporary:
        save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, temporary / "model.safetensors", metadata={"format": "pt"})
        write_json(model_config(model, kind), temporary / "config.json")
        write_tokenizer(tokenizer, temporary, max_positions=model.cfg.text.max_positions, processor="BlipProcessor")
        write_json(image_processor_config(model.cfg.vision.image_size, "BlipProcessor"), temporary / "preprocessor_config.json")
        (temporary / "README.md").write_text(_card(model, kind))


def model_config(model: Blip, kind: str) -> dict[str, Any]:
    """config.json of transformers' BlipConfig. Stochastic depth has no place in it."""
    vision, text, special = model.cfg.vision, model.cfg.text, model.special
    return {
        "architectures": [CLASSES[kind]],
        "model_type": "blip",
        "dtype": "float32",
        "image_text_hidden_size": model.cfg.embed_dim,
        "projection_dim": 512,
        "logit_scale_init_value": 2.6592,
        "tie_word_embeddings": True,
        "text_config": {
            "model_type": "blip_text_model",
            "vocab_size": special.vocab_size,
            "hidden_size": text.width,
            "encoder_hidden_size": vision.width,
            "intermediate_size": text.mlp_width,
            "num_hidden_layers": text.depth,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.max_positions,
            "hidden_act": text.activation,
            "layer_norm_eps": text.norm_eps,
            "hidden_dropout_prob": text.dropout,
            "attention_probs_dropout_prob": text.dropout,
            "bos_token_id": special.dec,
            "eos_token_id": special.sep,
            "sep_token_id": special.sep,
            "pad_token_id": special.pad,
            "is_decoder": True,
            "use_cache": True,
            "label_smoothing": 0.0,
        },
        "vision_config": {
            "model_type": "blip_vision_model",
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_size": vision.width,
            "intermediate_size": round(vision.width * vision.mlp_ratio),
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.heads,
            "hidden_act": vision.activation,
            "layer_norm_eps": vision.norm_eps,
            "attention_dropout": 0.0,
        },
    }


def write_tokenizer(tokenizer: Tokenizer, folder: Path, *, max_positions: int, processor: str, roles: Sequence[str] = ROLE_TOKENS) -> None:
    """vocab.txt for transformers' BertTokenizer, which all of its versions read, or tokenizer.json. `roles`: those of [DEC] and [ENC] that
    the weights have a row for."""
    special, bert = tokenizer.special, tokenizer.bert_options()
    names = {"pad_token": special.pad, "cls_token": special.cls, "sep_token": special.sep, "unk_token": special.unk}
    if bert is None:
        tokenizer.save(folder / TOKENIZER)
        kind: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": special.cls, "eos_token": special.sep}
    else:
        save_vocab(tokenizer.vocab, folder / VOCAB)
        flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
        ids = dict(zip(ROLE_TOKENS, (tokenizer.dec, tokenizer.enc), strict=True))
        added = {str(ids[token]): {"content": token, **flags} for token in roles}
        kind = {"tokenizer_class": "BertTokenizer", **bert, "mask_token": "[MASK]", "added_tokens_decoder": added}
    about = {
        "processor_class": processor,
        "model_max_length": max_positions,
        "model_input_names": ["input_ids", "attention_mask"],
        "additional_special_tokens": list(roles),
    }
    write_json({**kind, **names, **about}, folder / "tokenizer_config.json")


def image_processor_config(size: int, processor: str) -> dict[str, Any]:
    """Of transformers' BlipImageProcessor: the same resize and normalisation as blip_core/training/batches.py."""
    return {
        "image_processor_type": "BlipImageProcessor",
        "processor_class": processor,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }


def _card(model: Blip, kind: str) -> str:
    name = CLASSES[kind]
    text = f"A BLIP for {kind}: `transformers.{name}.from_pretrained(folder)`, `transformers.BlipProcessor.from_pretrained(folder)`.\n"
    if kind == "retrieval" and model.match_token == "enc":
        text += (
            f"\nFor the ITM head, put [ENC] (id {model.special.enc}) in place of [CLS] at position 0 of `input_ids`: it was trained so,\n"
            "and transformers does not do it. For ITC (`use_itm_head=False`) leave [CLS].\n"
        )
    return text

"""BLIP-2 out: folders that transformers opens alone, with equal outputs."""

import copy
from pathlib import Path
from typing import Any

from torch import Tensor

from blip_core.config.model import VisionConfig
from blip_core.files.atomic import new_folder
from blip_core.files.content import write_json
from blip_core.model.blip2 import Blip2, Prompter
from blip_core.model.qformer import PARTS, QFormer
from blip_core.model.vit import Vit
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.weights.export import image_processor_config, write_tokenizer
from blip_core.weights.language import Language
from blip_core.weights.names import huggingface_vision, linear
from blip_core.weights.pretrained import theirs
from blip_core.weights.qformer_names import HUGGINGFACE, encoder_pairs, qformer_pairs
from blip_core.weights.undrawn import undrawn

PICTURE = "<image>"  # what transformers' processor calls a place of the soft prompt


def export_retrieval(model: Blip2, tokenizer: Tokenizer, folder: Path) -> None:
    """A folder of Blip2ForImageTextRetrieval, by rename. The head of ITG has no place there, nor has the temperature.

    Its config has no image_token_index, and its processor no number of queries: with them transformers would cut the first tokens off a
    text that comes without a picture. ValueError when the folder exists, the model is of stage 2, or its image encoder does not fit.
    """
    if not isinstance(model.trained, QFormer):
        raise ValueError("this is a BLIP-2 of stage 2, whose Q-Former reads no text; give the one of stage 1, or export it for generation")
    model.qformer.require(*(PARTS.keys() - {"language"}))
    vision = _vision(model)
    pairs = [*encoder_pairs(huggingface_vision(vision.depth)), *qformer_pairs(model.qformer.cfg, HUGGINGFACE, start="trained.", text=True)]
    with _folder(folder) as temporary:
        _save("Blip2ForImageTextRetrieval", config_of(model, vision), theirs(model, pairs), temporary)
        roles = ["[DEC]"] if model.qformer.special.vocab_size > tokenizer.dec else []
        write_tokenizer(tokenizer, temporary, max_positions=model.qformer.cfg.max_positions, processor="Blip2Processor", roles=roles)
        write_json(image_processor_config(vision.image_size, "Blip2Processor"), temporary / "preprocessor_config.json")
        write_json({"processor_class": "Blip2Processor"}, temporary / "processor_config.json")


def export_generation(model: Blip2, language: Language, folder: Path) -> None:
    """A folder of Blip2ForConditionalGeneration, by rename, its language model in it. Blip2Model opens it too.

    transformers marks the places of the soft prompt by a token of their own, which the language model's vocabulary gets where it has none.
    It becomes as probable as a token that is never written, the one that begins a text. ValueError as `export_retrieval`.
    """
    if not isinstance(model.trained, Prompter):
        raise ValueError("this is a BLIP-2 of stage 1, which has no projection into a language model; give the one of stage 2")
    vision, start = _vision(model), "trained.qformer."
    pairs = [*encoder_pairs(huggingface_vision(vision.depth)), *qformer_pairs(model.qformer.cfg, HUGGINGFACE, start=start, text=False)]
    pairs += linear("trained.projection", "language_projection")
    tokenizer, whole = copy.deepcopy(language.tokenizer), copy.deepcopy(language.model)
    tokenizer.add_tokens([PICTURE], special_tokens=True)
    place = tokenizer.convert_tokens_to_ids(PICTURE)
    _widen(whole, place + 1, like=_rare(language))
    config = config_of(model, vision)
    text = {**whole.config.to_dict(), "eos_token_id": language.end, "pad_token_id": language.padding}
    config |= {"text_config": text, "image_token_index": place, "use_decoder_only_language_model": not language.reads}
    tensors = theirs(model, pairs) | {f"language_model.{name}": value for name, value in whole.state_dict().items()}
    with _folder(folder) as temporary:
        _save("Blip2ForConditionalGeneration", config, tensors, temporary)
        tokenizer.save_pretrained(temporary)
        write_json(image_processor_config(vision.image_size, "Blip2Processor"), temporary / "preprocessor_config.json")
        about = {"processor_class": "Blip2Processor", "num_query_tokens": model.qformer.cfg.num_queries}
        write_json(about, temporary / "processor_config.json")


def config_of(model: Blip2, vision: VisionConfig) -> dict[str, Any]:
    """Of transformers' Blip2Config, but for the language model."""
    cfg, special = model.qformer.cfg, model.qformer.special
    return {
        "num_query_tokens": cfg.num_queries,
        "image_text_hidden_size": cfg.embed_dim,
        "qformer_config": {
            "vocab_size": special.vocab_size,
            "hidden_size": cfg.width,
            "num_hidden_layers": cfg.depth,
            "num_attention_heads": cfg.heads,
            "intermediate_size": cfg.mlp_width,
            "hidden_act": cfg.activation,
            "hidden_dropout_prob": cfg.dropout,
            "attention_probs_dropout_prob": cfg.dropout,
            "max_position_embeddings": cfg.max_positions,
            "layer_norm_eps": cfg.norm_eps,
            "pad_token_id": special.pad,
            "cross_attention_frequency": cfg.cross_every,
            "encoder_hidden_size": vision.width,
            "use_qformer_text_input": isinstance(model.trained, QFormer),
        },
        "vision_config": {
            "hidden_size": vision.width,
            "intermediate_size": round(vision.width * vision.mlp_ratio),
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_act": vision.activation,
            "layer_norm_eps": vision.norm_eps,
        },
    }


def _vision(model: Blip2) -> VisionConfig:
    if not isinstance(model.encoder, Vit):
        raise ValueError(
            f"its image encoder is a {type(getattr(model.encoder, 'model', model.encoder)).__name__}, but BLIP-2's classes of transformers "
            "have a ViT of their own kind: only a Q-Former upon such a ViT (of a BLIP or BLIP-2) can be a folder of theirs"
        )
    return model.encoder.cfg


def _folder(folder: Path) -> Any:
    if folder.exists():
        raise ValueError(f"{folder} exists; name another folder or remove it")
    return new_folder(folder)


def _rare(language: Language) -> int:
    """A token that the language model hardly writes: what begins a text, or pads it, unless that ends one too."""
    tokenizer = language.tokenizer
    return next((i for i in (tokenizer.bos_token_id, tokenizer.pad_token_id) if i not in (None, language.end)), language.end)


def _widen(language: Any, rows: int, *, like: int) -> None:
    """In place, where the embeddings have fewer rows."""
    if language.get_input_embeddings().weight.shape[0] < rows:
        language.resize_token_embeddings(rows, mean_resizing=False)
        for part in {language.get_input_embeddings(), language.get_output_embeddings()} - {None}:
            part.weight.data[rows - 1 :] = part.weight.data[like]


def _save(name: str, config: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> None:
    import transformers

    with undrawn():
        whole = getattr(transformers, name)(transformers.Blip2Config(**config))
    whole.load_state_dict({key: value.detach().cpu() for key, value in tensors.items()}, assign=True)
    whole.save_pretrained(folder)

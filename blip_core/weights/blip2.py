"""BLIP-2 of others, in and out: transformers' Blip2ForImageTextRetrieval (stage 1), Blip2ForConditionalGeneration and Blip2Model (stage 2),
and LAVIS' .pth files of either. Every key is accounted for.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip_core.compute.distributed import device
from blip_core.config.model import QFormerConfig
from blip_core.files.atomic import new_file
from blip_core.model.blip import SpecialTokens
from blip_core.model.blip2 import Blip2, Prompter
from blip_core.model.qformer import PARTS, QFormer
from blip_core.model.vit import Vit
from blip_core.tokenizer.folders import load_tokenizer
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.tokenizer.wordpiece import BERT_TOKENS, bert_tokenizer
from blip_core.weights.checkpoint import special_tokens
from blip_core.weights.encoders import Encoder, blip2_vision
from blip_core.weights.folders import FAULTS, read_model, read_tokenizer
from blip_core.weights.hashes import folder_hash
from blip_core.weights.language import Language, language_of
from blip_core.weights.load import read_config, read_pth, read_tensors
from blip_core.weights.pretrained import copy_in, theirs
from blip_core.weights.qformer_names import LAVIS, LAVIS_HEAD, PROJECTIONS, blip2_layout, head_pairs, qformer_pairs, whole_biases
from blip_core.weights.sizes import INIT

_BARE = bert_tokenizer(BERT_TOKENS)  # of stage 2, where no text goes through the Q-Former


@dataclass(frozen=True)
class OpenedBlip2:
    """`tokenizer`: of stage 1, which reads texts. `language`: of stage 2, which has a tokenizer of its own."""

    model: Blip2
    tokenizer: Tokenizer | None = None
    language: Language | None = None


def load_blip2(path: Path, *, vocab: Path | None = None, encoder: Encoder | None = None, precision: str = "fp32") -> OpenedBlip2:
    """In eval mode on this process's device, from a folder of transformers or LAVIS' .pth file.

    `encoder`: what the Q-Former reads; LAVIS' files need one, for they hold none that was frozen. `vocab` is the tokenizer, where it is not
    beside the weights. `precision`: of the language model. A text is [CLS] ids [SEP] alone: the placeholders of pictures that transformers'
    processor puts before it belong to its own classes. ValueError says what does not fit.
    """
    if not path.is_dir():
        return _lavis(path, vocab, encoder)
    config = read_config(path)
    if config.get("model_type") != "blip-2":
        raise ValueError(f"{path / 'config.json'}: model_type is {config.get('model_type')!r}; expected 'blip-2'")
    if "Blip2ForImageTextRetrieval" in config.get("architectures", []):
        tokenizer = load_tokenizer(vocab or path)
        return OpenedBlip2(_filled(read_tensors(path), config, str(path), special_tokens(tokenizer)), tokenizer)
    return _generating(path, config, precision)


def _generating(path: Path, config: dict[str, Any], precision: str) -> OpenedBlip2:
    from transformers import Blip2ForConditionalGeneration

    try:
        whole = read_model(Blip2ForConditionalGeneration, path, precision=precision)
        tokenizer = read_tokenizer(path)
    except FAULTS as e:
        raise ValueError(f"{path}: transformers can't read this as a Blip2ForConditionalGeneration with its tokenizer ({e})") from None
    tensors = {name: value for name, value in whole.state_dict().items() if not name.startswith("language_model.")}
    language = language_of(whole.language_model, tokenizer, folder_hash(path))
    if isinstance(end := whole.generation_config.eos_token_id or whole.config.text_config.eos_token_id, int):
        language = replace(language, end=end)
    return OpenedBlip2(_filled(tensors, config, str(path), special_tokens(_BARE)), language=language)


def _filled(tensors: dict[str, Tensor], config: dict[str, Any], source: str, special: SpecialTokens) -> Blip2:
    """Of transformers."""
    from transformers import Blip2QFormerConfig

    sizes, vit = Blip2QFormerConfig(**config.get("qformer_config") or {}), Vit(blip2_vision(config.get("vision_config") or {}))
    cfg = QFormerConfig(
        width=sizes.hidden_size,
        depth=sizes.num_hidden_layers,
        heads=sizes.num_attention_heads,
        mlp_width=sizes.intermediate_size,
        max_positions=sizes.max_position_embeddings,
        activation=sizes.hidden_act,
        norm_eps=sizes.layer_norm_eps,
        dropout=sizes.hidden_dropout_prob,
        num_queries=tensors["query_tokens"].shape[1],
        cross_every=sizes.cross_attention_frequency,
        embed_dim=config.get("image_text_hidden_size", 256),
    )
    norm, vit.norm = vit.norm, torch.nn.Identity()  # type: ignore[assignment]
    encoder = Encoder(vit, vit.cfg.width, vit.cfg.image_size, "", norm)
    return _fill(tensors, cfg, encoder, source, special, vision_depth=vit.cfg.depth)


def _lavis(path: Path, vocab: Path | None, encoder: Encoder | None) -> OpenedBlip2:
    tensors = whole_biases(read_pth(path))
    if encoder is None:
        raise ValueError(f"{path}: LAVIS saves no image encoder that was frozen; name the one that the Q-Former was trained upon")
    if "ln_vision.weight" not in tensors or "query_tokens" not in tensors:
        raise ValueError(f"{path}: {len(tensors)} keys without ln_vision and query_tokens; expected a BLIP-2 of LAVIS")
    tokenizer = load_tokenizer(vocab or path.parent) if "itm_head.weight" in tensors else None
    encoder_depth = encoder.module.cfg.depth if isinstance(encoder.module, Vit) and "visual_encoder.cls_token" in tensors else None
    cfg = _lavis_config(tensors)
    special = special_tokens(tokenizer or _BARE)
    return OpenedBlip2(_fill(tensors, cfg, encoder, str(path), special, vision_depth=encoder_depth, image_eps=1e-5), tokenizer)


def _lavis_config(tensors: dict[str, Tensor]) -> QFormerConfig:
    """Sizes from the shapes of the weights; what no shape tells as BERT-base has it."""
    layers = LAVIS.layers
    _, num_queries, width = tensors["query_tokens"].shape
    crossing = sorted({int(k.removeprefix(layers).split(".")[0]) for k in tensors if k.startswith(layers) and ".crossattention." in k})
    positions = tensors.get(f"{LAVIS.embeddings}position_embeddings.weight")
    return QFormerConfig(
        width=width,
        depth=len({k.removeprefix(layers).split(".")[0] for k in tensors if k.startswith(layers)}),
        heads=max(1, width // 64),
        mlp_width=len(tensors[f"{layers}0.intermediate_query.dense.weight"]),
        max_positions=512 if positions is None else len(positions),
        activation="gelu",
        norm_eps=1e-12,
        dropout=0.1,
        num_queries=num_queries,
        cross_every=crossing[1] - crossing[0] if len(crossing) > 1 else 2,
        embed_dim=len(tensors["vision_proj.weight"]) if "vision_proj.weight" in tensors else 256,
    )


def _fill(
    tensors: dict[str, Tensor],
    cfg: QFormerConfig,
    encoder: Encoder,
    source: str,
    special: SpecialTokens,
    *,
    vision_depth: int | None,
    image_eps: float | None = None,
) -> Blip2:
    """A BLIP-2 with these weights upon this encoder; `image_eps`: of the norm between both, where it is not the encoder's own."""
    rows = next((len(value) for key, value in tensors.items() if key.endswith("embeddings.word_embeddings.weight")), special.vocab_size)
    if rows < special.dec:
        raise ValueError(f"{source}: embeddings of {rows} tokens, but the vocabulary has {special.dec}: they do not belong together")
    eps = image_eps or (encoder.norm.eps if encoder.norm else 1e-5)
    qformer = QFormer(cfg, INIT, replace(special, vocab_size=rows), image_width=encoder.width, image_eps=eps)
    model = Blip2(encoder.module, _trained(qformer, tensors, source), image_size=encoder.image_size)
    copy_in(model, tensors, blip2_layout(tensors, cfg, vision_depth=vision_depth), source=source)
    return model.to(device()).eval()


def _trained(qformer: QFormer, tensors: dict[str, Tensor], source: str) -> QFormer | Prompter:
    """What is to be filled: of stage 1, or of stage 2."""
    if "itm_head.weight" in tensors:
        qformer.missing = frozenset(() if f"{LAVIS_HEAD}bias" in tensors else {"language"})
        return qformer
    projections = [tensors[f"{name}.weight"] for name in PROJECTIONS if f"{name}.weight" in tensors]
    if not projections:
        raise ValueError(f"{source}: neither itm_head (stage 1) nor a projection into a language model (stage 2); expected a whole BLIP-2")
    return Prompter(qformer, len(projections[0]))


def save_lavis(model: Blip2, path: Path, *, reads: bool = False) -> None:
    """What a training learned as LAVIS saves it, by rename: without what was frozen. `reads`: the language model has an encoder, as T5."""
    pairs = list(
        qformer_pairs(
            model.qformer.cfg,
            LAVIS,
            start="trained." if isinstance(model.trained, QFormer) else "trained.qformer.",
            text=isinstance(model.trained, QFormer),
        )
    )
    if isinstance(model.trained, Prompter):
        pairs += [(f"trained.projection.{end}", (f"{'t5' if reads else 'opt'}_proj.{end}",)) for end in ("weight", "bias")]
    else:
        model.qformer.require(*PARTS)
        pairs += head_pairs()
    with new_file(path) as temporary, temporary.open("wb") as f:
        torch.save({"model": theirs(model, pairs)}, f)

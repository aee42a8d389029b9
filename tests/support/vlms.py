"""Folders of vision-language models of transformers, of the true architectures at a tiny size with random weights."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

WORDS = "Yes yes No no a photo of a red ball on the grass. there is a green box next to a blue star, and 2 dogs!"
TEXT = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
CLIP = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
BERT = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2)
SQUARE = {"size": {"height": 28, "width": 28}, "crop_size": {"height": 28, "width": 28}}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
# of Qwen3.5: one layer of linear attention, whose state is no list of keys
LINEAR = dict(
    head_dim=16, layer_types=["linear_attention", "full_attention"],
    linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=16, linear_value_head_dim=16,
    rope_parameters=MROPE | {"mrope_section": [1, 1, 0], "mrope_interleaved": True, "partial_rotary_factor": 0.25},
)  # fmt: skip
TILES = [[28, 56], [56, 28], [56, 56]]
TEMPLATE = (
    "{% for turn in messages %}<turn>{{ turn.role }}\n{% for part in turn.content %}{% if part.type == 'image' %}PICTURE"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<end>\n{% endfor %}{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """How a folder is made; `ids` gives the id of a token."""

    config: Callable[[Any, int], transformers.PreTrainedConfig]  # of ids and the size of the vocabulary
    images: Callable[[], Any]  # the image processor
    marks: tuple[str, ...] = ("<image>",)  # tokens of the family
    named: dict[str, str] = field(default_factory=dict)  # those that its tokenizer has by name
    picture: str | None = "<image>"  # in the chat template; None: it has none
    settings: dict[str, Any] = field(default_factory=dict)  # of processor_config.json
    also: Callable[[Path], None] = lambda folder: None  # what else lies in the folder


def make_folder(name: str, folder: Path, *, seed: int = 0) -> Path:
    """A folder as it would be published."""
    family = FAMILIES[name]
    tokenizer = make_tokenizer(*family.marks, **family.named)
    config = family.config(tokenizer.convert_tokens_to_ids, len(tokenizer))
    torch.manual_seed(seed)
    kind = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    model = spread(kind(config), seed)
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    if config.is_encoder_decoder:
        special["decoder_start_token_id"] = tokenizer.bos_token_id
    model.generation_config.update(**special)
    model.save_pretrained(folder)
    if family.picture is not None:
        tokenizer.chat_template = TEMPLATE.replace("PICTURE", family.picture)
    tokenizer.save_pretrained(folder)
    family.images().save_pretrained(folder)
    if family.settings:
        (folder / "processor_config.json").write_text(json.dumps(family.settings))
    family.also(folder)
    return folder


def make_tokenizer(*marks: str, **named: str) -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE of a few words."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer, found.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<turn>", "<end>", *dict.fromkeys(marks)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    found.train_from_iterator([WORDS] * 3, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet))
    tokens = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": [*marks, "<turn>", "<end>"]}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=found, **tokens, **({"extra_special_tokens": named} if named else {}))


def spread(model: Any, seed: int, *, std: float = 0.2) -> Any:
    """Weights so large that two pictures and two texts differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=std, generator=generator)
    return model.eval()


def _qwen(kind: str, *, text: dict[str, Any] | None = None, **vision: Any) -> Family:
    marks = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")

    def config(ids: Any, size: int) -> Any:
        names = {"vision_start_token_id": marks[0], "vision_end_token_id": marks[1], "image_token_id": marks[2], "video_token_id": marks[3]}
        shared = dict(depth=2, num_heads=2, patch_size=14, spatial_merge_size=2)
        words = TEXT | dict(vocab_size=size, rope_parameters=MROPE, bos_token_id=1, eos_token_id=2, head_dim=8) | (text or {})
        return getattr(transformers, kind)(text_config=words, vision_config=shared | vision, **{n: ids(mark) for n, mark in names.items()})

    def images() -> Any:
        return transformers.Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=84 * 84)

    return Family(config, images, marks, picture="<|vision_start|><|image_pad|><|vision_end|>")


def _llava_next(ids: Any, size: int) -> Any:
    text, vision = transformers.LlamaConfig(**TEXT, vocab_size=size), transformers.CLIPVisionConfig(**CLIP)
    names = {"image_token_index": ids("<image>"), "image_grid_pinpoints": TILES}
    return transformers.LlavaNextConfig(vision_config=vision, text_config=text, **names)


def _llava(ids: Any, size: int) -> Any:
    text = transformers.LlamaConfig(**TEXT, vocab_size=size)
    return transformers.LlavaConfig(vision_config=transformers.CLIPVisionConfig(**CLIP), text_config=text, image_token_index=ids("<image>"))


def _llava_onevision(ids: Any, size: int) -> Any:
    text, vision = transformers.Qwen2Config(**TEXT, vocab_size=size), transformers.SiglipVisionConfig(**CLIP)
    names = {"image_token_index": ids("<image>"), "video_token_index": ids("<video>")}
    return transformers.LlavaOnevisionConfig(
        vision_config=vision, text_config=text, image_grid_pinpoints=[[28, 28], [28, 56], [56, 28]], **names
    )


def _idefics(kind: str) -> Family:
    rows = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    marks = ("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *rows)

    def config(ids: Any, size: int) -> Any:
        text = transformers.LlamaConfig(**TEXT, vocab_size=size)
        return getattr(transformers, f"{kind}Config")(text_config=text, vision_config=CLIP, image_token_id=ids("<image>"), scale_factor=2)

    def images() -> Any:
        sizes = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}}
        return getattr(transformers, f"{kind}ImageProcessorPil")(**sizes)

    return Family(config, images, marks, settings={"image_seq_len": 1})


def _internvl(ids: Any, size: int) -> Any:
    vision = {n: v for n, v in CLIP.items() if n not in ("image_size", "patch_size")} | {"image_size": [28, 28], "patch_size": [14, 14]}
    text = transformers.Qwen2Config(**TEXT, vocab_size=size)
    return transformers.InternVLConfig(vision_config=vision, text_config=text, image_token_id=ids("<IMG_CONTEXT>"), image_seq_length=1)


def _gemma3(ids: Any, size: int) -> Any:
    text = TEXT | dict(vocab_size=size, head_dim=8, sliding_window=16, layer_types=["sliding_attention", "full_attention"])
    names = {"boi_token_index": ids("<boi>"), "eoi_token_index": ids("<eoi>"), "image_token_index": ids("<soft>")}
    vision = transformers.SiglipVisionConfig(**CLIP)
    return transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **names)


def _paligemma(ids: Any, size: int) -> Any:
    text = transformers.GemmaConfig(**TEXT, head_dim=8, vocab_size=size + 1152)  # its processor adds tokens of places and outlines
    vision = transformers.SiglipVisionConfig(**CLIP, projection_dim=32)
    return transformers.PaliGemmaConfig(text_config=text, vision_config=vision, projection_dim=32, image_token_index=ids("<image>"))


def _blip2(ids: Any, size: int, *, kind: str = "Blip2") -> Any:
    text = transformers.OPTConfig(
        vocab_size=size,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=128,
    )
    qformer = BERT | dict(vocab_size=size, encoder_hidden_size=CLIP["hidden_size"], max_position_embeddings=128)
    config = getattr(transformers, f"{kind}Config")
    return config(vision_config=CLIP, qformer_config=qformer, text_config=text, num_query_tokens=3, image_token_index=ids("<image>"))


def _git(ids: Any, size: int) -> Any:
    return transformers.GitConfig(vision_config=CLIP, **BERT, vocab_size=size, bos_token_id=ids("<s>"), eos_token_id=ids("</s>"))


def _florence2(ids: Any, size: int) -> Any:
    text = transformers.BartConfig(
        vocab_size=size, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=40, decoder_ffn_dim=40, max_position_embeddings=128, forced_eos_token_id=None,
    )  # fmt: skip
    vision = dict(
        depths=[1] * 4, embed_dim=[8, 8, 16, 16], num_heads=[1, 1, 2, 2], num_groups=[1, 1, 2, 2], window_size=2, projection_dim=32
    )
    return transformers.Florence2Config(text_config=text, vision_config=vision, image_token_id=ids("<image>"))


def _square(kind: str, side: int = 28, **settings: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, f"{kind}ImageProcessorPil")(size={"height": side, "width": side}, do_center_crop=False, **settings)


def _with_qformer(folder: Path) -> None:
    make_tokenizer("<image>").save_pretrained(folder / "qformer_tokenizer")


FAMILIES = {
    "qwen2_vl": _qwen("Qwen2VLConfig", embed_dim=32, hidden_size=32, mlp_ratio=2),
    "qwen2_5_vl": _qwen(
        "Qwen2_5_VLConfig", hidden_size=32, out_hidden_size=32, intermediate_size=40, window_size=56, fullatt_block_indexes=[1]
    ),
    "qwen3_vl": _qwen(
        "Qwen3VLConfig", hidden_size=32, out_hidden_size=32, intermediate_size=40, num_position_embeddings=16, deepstack_visual_indexes=[0]
    ),
    "qwen3_5": _qwen("Qwen3_5Config", text=LINEAR, hidden_size=32, out_hidden_size=32, intermediate_size=40, num_position_embeddings=16),
    "llava_next": Family(
        _llava_next,
        lambda: transformers.LlavaNextImageProcessorPil(
            size={"shortest_edge": 28}, crop_size=SQUARE["crop_size"], image_grid_pinpoints=TILES
        ),
        settings={"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    "llava": Family(
        _llava,
        lambda: transformers.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=SQUARE["crop_size"]),
        settings={"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    "llava_onevision": Family(
        _llava_onevision,
        lambda: transformers.LlavaOnevisionImageProcessorPil(size=SQUARE["size"], image_grid_pinpoints=[[28, 28], [28, 56], [56, 28]]),
        ("<image>", "<video>"),
        settings={"num_image_tokens": 4, "vision_feature_select_strategy": "full"},
    ),
    "idefics3": _idefics("Idefics3"),
    "smolvlm": _idefics("SmolVLM"),
    "internvl": Family(
        _internvl,
        lambda: transformers.GotOcr2ImageProcessorPil(size=SQUARE["size"], crop_to_patches=True, min_patches=1, max_patches=4),
        ("<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
        {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"},
        "<IMG_CONTEXT>",
        {"image_seq_length": 1},
    ),
    "gemma3": Family(
        _gemma3,
        _square("Gemma3"),
        ("<boi>", "<eoi>", "<soft>"),
        {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<soft>"},
        "<boi>",
        {"image_seq_length": 4},
    ),
    "paligemma": Family(_paligemma, _square("Siglip", image_seq_length=4), named={"image_token": "<image>"}, picture=None),
    "blip-2": Family(_blip2, _square("Blip"), picture=None, settings={"num_query_tokens": 3}),
    "instructblip": Family(
        partial(_blip2, kind="InstructBlip"), _square("Blip"), picture=None, settings={"num_query_tokens": 3}, also=_with_qformer
    ),
    "git": Family(_git, _square("CLIP"), picture=None),
    "florence2": Family(
        _florence2,
        _square("CLIP", 64, image_seq_length=5),
        named={"image_token": "<image>"},
        picture=None,
    ),
}

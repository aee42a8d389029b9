"""BLIP-2 models of transformers with random weights, and their folders."""

from pathlib import Path

import torch
import transformers

from blip_core.tokenizer.wordpiece import save_vocab
from tests.support.peers import TIMM_RULES, randomize, renamed
from tests.support.vlms import make_tokenizer

SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
# Q-Former and image encoder differ in width, depth, heads and norms
SIZES = {
    "even": dict(qformer={"hidden_size": 24, **SMALL, "num_hidden_layers": 3}, vision={"hidden_size": 32, **SMALL}, num_query_tokens=3),
    "odd": dict(
        qformer={"hidden_size": 30, **SMALL, "num_attention_heads": 3, "cross_attention_frequency": 1, "layer_norm_eps": 1e-6},
        vision={"hidden_size": 16, **SMALL, "intermediate_size": 70, "layer_norm_eps": 1e-5},
        num_query_tokens=1,
        image_text_hidden_size=7,
    ),
}
TEXT = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
LANGUAGE = {
    "opt": lambda v, special: transformers.OPTConfig(vocab_size=v, **TEXT, ffn_dim=48, word_embed_proj_dim=32, **special),
    "llama": lambda v, special: transformers.LlamaConfig(
        vocab_size=v, **TEXT, intermediate_size=48, num_key_value_heads=2, tie_word_embeddings=False, **special
    ),
    "t5": lambda v, special: transformers.T5Config(
        vocab_size=v, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=special["pad_token_id"], **special
    ),
}


def blip2_config(size: str, *, rows: int = 30, text: bool = False, **changes) -> transformers.Blip2Config:
    parts = dict(SIZES[size])
    qformer = parts.pop("qformer") | {"vocab_size": rows, "max_position_embeddings": 40, "use_qformer_text_input": text}
    vision = parts.pop("vision") | {"image_size": 16, "patch_size": 8}
    return transformers.Blip2Config(qformer_config=qformer, vision_config=vision, **parts, **changes)


def retrieval_folder(size: str, tokenizer, folder: Path, **changes) -> transformers.Blip2ForImageTextRetrieval:
    """The model of a folder with its vocabulary. A strong head of ITM: some pair is matched with certainty."""
    config = blip2_config(size, rows=tokenizer.dec + 1, text=True, **changes)
    model = randomize(transformers.Blip2ForImageTextRetrieval(config), 0, std=0.25)
    model.itm_head.weight.data *= 4
    model.save_pretrained(folder)
    save_vocab(tokenizer.vocab, folder / "vocab.txt")
    return model


def language(kind: str, seed: int = 0):
    """A tiny language model and its tokenizer, byte-level BPE, which has nothing of BERT's."""
    tokenizer = make_tokenizer()
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    config = LANGUAGE[kind](len(tokenizer), special)
    made = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    return randomize(made.from_config(config), seed, std=0.2), tokenizer


def language_folder(kind: str, folder: Path) -> Path:
    model, tokenizer = language(kind)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def lavis_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of transformers' Blip2ForImageTextRetrieval under LAVIS' names (the reverse of the public conversion script)."""
    rules = [
        *TIMM_RULES,
        (r"^vision_model\.post_layernorm\.", "ln_vision."),
        (r"^embeddings\.", "Qformer.bert.embeddings."),
        (r"^qformer\.layernorm\.", "Qformer.bert.embeddings.LayerNorm."),
        (r"^qformer\.(encoder\.layer\.\d+\.\w+)\.attention\.", r"Qformer.bert.\1.self."),
        (r"^qformer\.", "Qformer.bert."),
        (r"^(vision|text)_projection\.", r"\1_proj."),
        (r"^language_projection\.", "opt_proj."),
    ]
    found = {}
    for key, value in renamed(state, rules).items():
        if key.endswith("attn.qkv.bias"):  # without one of keys
            q, _, v = value.chunk(3)
            found |= {key.replace("qkv.bias", "q_bias"): q, key.replace("qkv.bias", "v_bias"): v}
        else:
            found[key] = value
    return found

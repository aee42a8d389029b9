"""BLIP models of transformers with random weights: the reference for agreement, and the writers of true folders."""

import re

import torch

from blip_core.tokenizer.wordpiece import save_vocab

# text and vision differ in width, depth, heads and MLP
SIZES = {
    "wide_text": dict(text=dict(width=48, depth=2, heads=4, mlp=80), vision=dict(width=32, depth=3, heads=2, mlp=72, image=24, patch=8)),
    "wide_vision": dict(text=dict(width=24, depth=3, heads=3, mlp=96), vision=dict(width=56, depth=1, heads=4, mlp=115, image=32, patch=8)),
    "equal": dict(text=dict(width=64, depth=1, heads=1, mlp=128), vision=dict(width=64, depth=2, heads=1, mlp=128, image=16, patch=4)),
}


def blip_config(size: str, tokenizer, *, label_smoothing: float = 0.0, **vision):
    from transformers import BlipConfig

    text, image = SIZES[size]["text"], SIZES[size]["vision"]
    return BlipConfig(
        text_config=dict(
            vocab_size=tokenizer.size,
            hidden_size=text["width"],
            num_hidden_layers=text["depth"],
            num_attention_heads=text["heads"],
            intermediate_size=text["mlp"],
            max_position_embeddings=32,
            bos_token_id=tokenizer.dec,
            sep_token_id=tokenizer.sep,
            pad_token_id=tokenizer.pad,
            label_smoothing=label_smoothing,
        ),
        vision_config=dict(
            hidden_size=image["width"],
            num_hidden_layers=image["depth"],
            num_attention_heads=image["heads"],
            intermediate_size=image["mlp"],
            image_size=image["image"],
            patch_size=image["patch"],
            **vision,
        ),
        image_text_hidden_size=16,
    )


def peer(name: str, size: str, tokenizer, *, seed: int = 0, **changes):
    """A model of the class `name` of transformers, every weight random, so that none can be mistaken for another."""
    import transformers

    return randomize(getattr(transformers, name)(blip_config(size, tokenizer, **changes)), seed)


def randomize(model, seed: int, std: float = 0.15):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=std, generator=generator)
            if re.search(r"norm\w*\.weight$", name, re.IGNORECASE):
                parameter.add_(1.0)
    return model.eval()


def save(model, tokenizer, folder, **options):
    """The folder that save_pretrained writes, and the vocabulary beside it."""
    model.save_pretrained(folder, **options)
    save_vocab(tokenizer.vocab, folder / "vocab.txt")
    return folder


def random_pixels(model, count: int, seed: int = 0) -> torch.Tensor:
    side = model.config.vision_config.image_size
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


# transformers' vision model under the names of timm, which the authors of BLIP and BLIP-2 took over; the last norm has one name in each
TIMM_RULES = [
    (r"^vision_model\.embeddings\.class_embedding$", "visual_encoder.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding$", "visual_encoder.pos_embed"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual_encoder.patch_embed.proj."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.projection\.", r"visual_encoder.blocks.\1.attn.proj."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.", r"visual_encoder.blocks.\1.attn."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.layer_norm", r"visual_encoder.blocks.\1.norm"),
    (r"^vision_model\.encoder\.layers\.", "visual_encoder.blocks."),
]


def authors_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of transformers under the names of the authors' code (the reverse of the public conversion script)."""
    return renamed(state, [*TIMM_RULES, (r"^vision_model\.post_layernorm\.", "visual_encoder.norm.")])


def renamed(state: dict[str, torch.Tensor], rules: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    """By all rules, one after the other."""
    found = {}
    for key, value in state.items():
        for pattern, new in rules:
            key = re.sub(pattern, new, key)
        found[key] = value
    return found

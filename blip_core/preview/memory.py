"""What memory a training of a BLIP takes, and how much of the image encoder to compute twice so that it takes less."""

from blip_core.compute.precision import resolved
from blip_core.config.model import ModelConfig
from blip_core.config.params import Params
from blip_core.config.training import OptimConfig
from blip_core.model.blip import Blip
from blip_core.training.contrast import momentum_twin

OVERHEAD = 1.25  # a step of ViT-B/16 in fp32 on a CPU grew by 0.37 GiB per image, where counting tensors gives 0.30


def keys_values_layers(cfg: ModelConfig) -> int:
    """Cross-attentions that make keys and values of a picture: twice as many where the decoder has its own."""
    return cfg.text.depth * (2 if cfg.share in ("all_but_cross", "none") else 1)


def num_image_tokens(cfg: ModelConfig) -> int:
    return (cfg.vision.image_size // cfg.vision.patch_size) ** 2 + 1


def state_bytes(params: Params, model: Blip, stage: str) -> int:
    """fp32 weights, gradients and two moments of AdamW; the momentum twin's weights where there is one."""
    total = 16 * sum(p.numel() for p in model.parameters())
    if stage == "tune_captioner":
        return total
    return total + sum(p.nbytes for p in momentum_twin(model, params.section(stage).contrast.twin_precision).parameters())


def image_bytes(cfg: ModelConfig, optim: OptimConfig, stage: str, *, vocabulary: int) -> int:
    """Activations kept for the backward pass, an estimate: per token and layer about 9 vectors of the width and two of the MLP's."""
    size = 2 if resolved(optim.precision) == "bf16" else 4
    v, t, n = cfg.vision, cfg.text, num_image_tokens(cfg)
    kept = max(0, v.depth - optim.recompute)
    image = n * v.width * (kept * (size * (7 + 2 * v.mlp_ratio) + 8) + optim.recompute * 4)
    passes = {"pretrain": 5, "tune_filter": 4, "tune_captioner": 1}[stage]
    text = passes * t.depth * optim.max_tokens * (size * (11 * t.width + 2 * t.mlp_width) + 12 * t.width)
    keys_values = keys_values_layers(cfg) * 2 * n * t.width * size * (1 if stage == "tune_captioner" else 4)
    logits = 0 if stage == "tune_filter" else optim.max_tokens * vocabulary * (4 + 4 + size)
    return int(OVERHEAD * (image + text + keys_values + logits))


def within(gib: float, params: Params, stage: str, optim: OptimConfig, model: Blip) -> str:
    """The least `optim.recompute` with which a micro-batch fits into so many GiB, in words; else how many images would."""
    room = gib * 2**30 - state_bytes(params, model, stage)
    depth, micro = model.cfg.vision.depth, optim.batch_size // optim.accumulate
    images = [
        int(room // image_bytes(model.cfg, optim.model_copy(update={"recompute": n}), stage, vocabulary=model.special.vocab_size))
        for n in range(depth + 1)
    ]
    fits = next((n for n, most in enumerate(images) if most >= micro), None)
    if fits is not None:
        return f"within {gib:g} GiB: optim.recompute {fits} of {depth} blocks, which leaves room for {images[fits]:,} images"
    if images[-1] >= 1:
        return (
            f"within {gib:g} GiB: not the {micro:,} images of a micro-batch, but {images[-1]:,} with optim.recompute {depth}; "
            "a larger optim.accumulate or more processes make it smaller"
        )
    return f"within {gib:g} GiB: not one image, even with optim.recompute {depth}"

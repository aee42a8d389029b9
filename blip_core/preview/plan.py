"""What a training will need, before it starts: parameters, floating-point work, memory, steps. Nothing is trained or allocated."""

import torch

from blip_core.config.model import ModelConfig
from blip_core.config.params import Params
from blip_core.config.training import OptimConfig
from blip_core.model.blip import Blip, SpecialTokens
from blip_core.training.objectives import momentum_twin

GIB = 2**30
BERT_VOCABULARY = 30524  # bert-base-uncased with [DEC] and [ENC]
OVERHEAD = 1.25  # a step of ViT-B/16 in fp32 on a CPU grew by 0.37 GiB per image, where counting tensors gives 0.30


def plan(params: Params, *, vocabulary: int = BERT_VOCABULARY) -> str:
    """Lines for a person: the model, then each training of params.yaml."""
    model = skeleton(params.model, vocabulary)
    parts = {"image encoder": model.vit, "text transformer": model.med, "projections and ITM head": None}
    total = sum(p.numel() for p in model.parameters())
    lines = [f"model: {total / 1e6:.1f} M parameters (vocabulary of {vocabulary:,})"]
    known = 0
    for name, part in parts.items():
        count = sum(p.numel() for p in part.parameters()) if part is not None else total - known
        known += count
        lines.append(f"  {name}: {count / 1e6:.1f} M")
    for stage in ("pretrain", "tune_captioner", "tune_filter"):
        lines += _describe(stage, params.model, params.section(stage).optim, model)
    return "\n".join(lines)


def skeleton(cfg: ModelConfig, vocabulary: int) -> Blip:
    """The model with shapes and no storage."""
    with torch.device("meta"):
        return Blip(cfg, SpecialTokens(vocabulary, 0, 2, 3, vocabulary - 2, vocabulary - 1))


def _describe(stage: str, cfg: ModelConfig, optim: OptimConfig, model: Blip) -> list[str]:
    flops = step_flops(cfg, stage, tokens=optim.max_tokens, vocabulary=model.special.vocab_size)
    state, per_image = state_bytes(model, stage), image_bytes(cfg, optim, stage, vocabulary=model.special.vocab_size)
    micro = optim.batch_size // optim.accumulate
    return [
        f"{stage}: {optim.steps:,} steps of {optim.batch_size:,} images = {optim.steps * optim.batch_size / 1e6:.2f} M images",
        f"  work: {flops / 1e9:.1f} GFLOP per image, {flops * optim.steps * optim.batch_size / 1e15:.3g} PFLOP in all",
        f"  memory on one process: {state / GIB:.1f} GiB for weights, gradients and optimizer, about {per_image / 2**20:.0f} MiB per image"
        f" of activations: {(state + per_image * micro) / GIB:.1f} GiB for the {micro:,} images of a micro-batch; "
        "n processes hold 1/n of the images",
    ]


def step_flops(cfg: ModelConfig, stage: str, *, tokens: int, vocabulary: int) -> float:
    """Matrix work per image: a forward pass counts once, its backward twice more, the momentum twin's forward once.

    pretrain: image, text alone, three grounded texts (a pair and two negatives), one decoded text; the others leave parts out.
    """
    image, keys_values = vit_flops(cfg), keys_values_flops(cfg)
    alone = text_flops(cfg, tokens, first_only=True)
    grounded = alone + cross_flops(cfg, tokens, first_only=True)
    decoded = text_flops(cfg, tokens) + cross_flops(cfg, tokens)
    head = 2 * tokens * cfg.text.width * (cfg.text.width + vocabulary)
    trained = {"pretrain": ("contrast", "match", "decode"), "tune_filter": ("contrast", "match"), "tune_captioner": ("decode",)}[stage]
    work = 3 * (image + keys_values)
    if "contrast" in trained:
        work += image + 4 * alone
    if "match" in trained:
        work += 3 * 3 * grounded
    if "decode" in trained:
        work += 3 * (decoded + head)
    return work


def vit_flops(cfg: ModelConfig) -> float:
    v = cfg.vision
    patches = (v.image_size // v.patch_size) ** 2
    n, d = patches + 1, v.width
    block = 2 * n * (4 + 2 * v.mlp_ratio) * d * d + 4 * n * n * d
    return 2 * patches * 3 * v.patch_size**2 * d + v.depth * block


def text_flops(cfg: ModelConfig, tokens: int, *, first_only: bool = False) -> float:
    """Without cross-attention; with `first_only`, the last layer makes the first token alone (model/med.py)."""
    t = cfg.text

    def layer(made: int) -> float:
        return 4 * tokens * t.width**2 + made * (4 * t.width**2 + 4 * t.width * t.mlp_width + 4 * tokens * t.width)

    return (t.depth - 1) * layer(tokens) + layer(1 if first_only else tokens)


def cross_flops(cfg: ModelConfig, tokens: int, *, first_only: bool = False) -> float:
    t, made = cfg.text, (cfg.text.depth - 1) * tokens + (1 if first_only else tokens)
    return made * (4 * t.width**2 + 4 * num_image_tokens(cfg) * t.width)


def keys_values_flops(cfg: ModelConfig) -> float:
    return cfg.text.depth * 2 * num_image_tokens(cfg) * cfg.vision.width * 2 * cfg.text.width


def num_image_tokens(cfg: ModelConfig) -> int:
    return (cfg.vision.image_size // cfg.vision.patch_size) ** 2 + 1


def state_bytes(model: Blip, stage: str) -> int:
    """fp32 weights, gradients and two moments of AdamW; the momentum twin's weights where there is one."""
    total = 16 * sum(p.numel() for p in model.parameters())
    return total if stage == "tune_captioner" else total + 4 * sum(p.numel() for p in momentum_twin(model).parameters())


def image_bytes(cfg: ModelConfig, optim: OptimConfig, stage: str, *, vocabulary: int) -> int:
    """Activations kept for the backward pass, an estimate: per token and layer about 9 vectors of the width and two of the MLP's."""
    size = 2 if optim.precision == "bf16" else 4
    v, t, n = cfg.vision, cfg.text, num_image_tokens(cfg)
    kept = max(0, v.depth - optim.recompute)
    image = n * v.width * (kept * (size * (7 + 2 * v.mlp_ratio) + 8) + optim.recompute * 4)
    passes = {"pretrain": 5, "tune_filter": 4, "tune_captioner": 1}[stage]
    text = passes * t.depth * optim.max_tokens * (size * (11 * t.width + 2 * t.mlp_width) + 12 * t.width)
    keys_values = t.depth * 2 * n * t.width * size * (1 if stage == "tune_captioner" else 4)
    logits = 0 if stage == "tune_filter" else optim.max_tokens * vocabulary * (4 + 4 + size)
    return int(OVERHEAD * (image + text + keys_values + logits))

"""What a training will need, before it starts: parameters, floating-point work, memory, time, steps; and a captioner of others. Nothing is
trained."""

from pathlib import Path

from blip_core.compute.precision import resolved
from blip_core.config.model import ModelConfig
from blip_core.config.params import Params
from blip_core.config.training import LoraConfig, OptimConfig
from blip_core.model.blip import Blip, SpecialTokens
from blip_core.model.stem import CELL_FEATURES, stem_widths
from blip_core.preview.advice import suggestions
from blip_core.preview.figures import LONGEST_TIMED, duration, product_speed, scaled
from blip_core.preview.memory import image_bytes, keys_values_layers, num_image_tokens, state_bytes, within
from blip_core.preview.writers import tensor_sizes, writer_needs
from blip_core.weights.undrawn import undrawn

BERT_VOCABULARY = 30524  # bert-base-uncased with [DEC] and [ENC]


def plan(params: Params, vocab: Path, *, pictures: int | None = None, memory: float | None = None) -> str:
    """Lines for a person: the model, then each training of params.yaml. Seconds are those of this machine.

    `vocab`: what ingest has written of the texts. Before it, the vocabulary counts as large as ingest may make it. `pictures`: how many
    there are to train on; what suits so many is told of pretrain. `memory`: GiB that a device has; what of a BLIP to compute twice so
    that its trainings fit."""
    vocabulary, by = _vocabulary(params, vocab)
    if isinstance(params.model, ModelConfig):
        lines = _of_med(params, skeleton(params.model, vocabulary), by, pictures, memory)
    else:
        from blip_core.preview.plan_blip2 import model_lines  # benchmarks/speed/gpu.py runs where torch alone is

        lines = model_lines(params, vocabulary, by, pictures=pictures)
    for writer in params.caption.writers:
        if (needs := writer_needs(writer, params.caption)) is not None:
            weights, texts = (f"{scaled(part, 1024)}iB" for part in needs)
            lines.append(f"caption by {writer.captioner}: {weights} for weights, about {texts} for what a batch of texts keeps")
    lines.append("`profile` times real steps: reading and small operations come on top, and are the more the smaller the model")
    lines.append("to the memory on one process comes what it takes by itself: on a CPU 1.4 GiB in the demo")
    return "\n".join(lines)


def _of_med(params: Params, model: Blip, by: str, pictures: int | None, memory: float | None) -> list[str]:
    parts = {"image encoder": model.vit, "text transformer": model.med, "projections and ITM head": None}
    total = sum(p.numel() for p in model.parameters())
    lines = [f"model: {scaled(total)} parameters (vocabulary of {by})"]
    known = 0
    for name, part in parts.items():
        count = sum(p.numel() for p in part.parameters()) if part is not None else total - known
        known += count
        lines.append(f"  {name}: {scaled(count)}")
    for stage in ("pretrain", "tune_captioner", "tune_filter"):
        cfg = params.section(stage)
        adapted = getattr(cfg, "lora", None)
        lines += [adapter_needs(stage, adapted, cfg.optim)] if adapted else _describe(stage, params, cfg.optim, model)
        if memory and not adapted:
            lines.append(f"  {within(memory, params, stage, cfg.optim, model)}")
        if stage == "pretrain" and pictures:
            lines += _suited(params, model.cfg, pictures)
    return lines


def _vocabulary(params: Params, vocab: Path) -> tuple[int, str]:
    """Entries with [DEC] and [ENC], and in words."""
    from blip_core.tokenizer.folders import load_tokenizer  # benchmarks/speed/gpu.py runs where torch alone is
    from blip_core.tokenizer.tokenizer import ROLE_TOKENS  # benchmarks/speed/gpu.py runs where torch alone is

    path = params.ingest.vocab or vocab
    if path.exists():
        size = load_tokenizer(path).size
        return size, f"{size:,}, by {path}"
    if params.ingest.vocab:
        return BERT_VOCABULARY, f"{BERT_VOCABULARY:,}, BERT's"
    size = params.ingest.vocab_size + len(ROLE_TOKENS)
    return size, f"at most {size:,}; fewer where the texts have fewer words, which ingest will tell"


def skeleton(cfg: ModelConfig, vocabulary: int) -> Blip:
    """The model with shapes and no storage."""
    with undrawn():
        return Blip(cfg, SpecialTokens(vocabulary, 0, 2, 3, vocabulary - 2, vocabulary - 1))


def _describe(stage: str, params: Params, optim: OptimConfig, model: Blip) -> list[str]:
    cfg = model.cfg
    flops = step_flops(cfg, stage, tokens=optim.max_tokens, vocabulary=model.special.vocab_size)
    state, per_image = state_bytes(params, model, stage), image_bytes(cfg, optim, stage, vocabulary=model.special.vocab_size)
    images, micro = optim.steps * optim.batch_size, optim.batch_size // optim.accumulate
    precision = resolved(optim.precision)
    speed = product_speed(cfg.text.width, precision, optim.threads)
    return [
        f"{stage}: {optim.steps:,} steps of {optim.batch_size:,} images = {images:,} images",
        f"  work: {scaled(flops)}FLOP per image, {scaled(flops * images)}FLOP in all",
        f"  time of one process: {duration(flops * images / speed)} for its matrix products, at the {scaled(speed)}FLOP/s that one of "
        f"its width makes in {precision} on this machine",
        *_timed(stage, params, optim, model, flops / speed),
        f"  memory on one process: {scaled(state, 1024)}iB for weights, gradients and optimizer, about {scaled(per_image, 1024)}iB per "
        f"image of activations: {scaled(state + per_image * micro, 1024)}iB for the {micro:,} images of a micro-batch; "
        "n processes hold 1/n of the images",
    ]


def _suited(params: Params, cfg: ModelConfig, pictures: int) -> list[str]:
    width = min(cfg.vision.width, cfg.text.width)
    found = suggestions(params.section("pretrain"), width=width, pictures=pictures)
    return [
        f"  what suits {pictures:,} pictures and a width of {width}, from random weights, all of it together:",
        *(f"    {each}" for each in found),
    ]


def _timed(stage: str, params: Params, optim: OptimConfig, model: Blip, image_seconds: float) -> list[str]:
    """A line on two steps by the clock, if what is timed would not take too long; of a batch that does, a part."""
    from blip_core.preview.timing import TIMED, step_seconds

    images = min(optim.batch_size // optim.accumulate, int(LONGEST_TIMED / (TIMED + 1) / image_seconds))
    if images < 2:
        return [f"  two steps: not timed, for two images would take more than {duration(LONGEST_TIMED)}"]
    seconds = step_seconds(params, stage, images=images, vocabulary=model.special.vocab_size) / images * optim.batch_size
    part = "" if images == optim.batch_size else f" (by those of {images:,} images)"
    return [f"  two steps by the clock: {duration(seconds)} each{part}, so {duration(seconds * optim.steps)} for {optim.steps:,}"]


def adapter_needs(stage: str, lora: LoraConfig, optim: OptimConfig) -> str:
    """What is known without opening the model: activations depend on its kind and on the pictures."""
    size = 2 if resolved(optim.precision) == "bf16" else 4
    images = f"{optim.steps:,} steps of {optim.batch_size:,} images = {optim.steps * optim.batch_size:,} images"
    weights = f"{scaled(size * sum(tensor_sizes(lora.base)), 1024)}iB for its frozen weights"
    return (
        f"{stage}: {images}\n  an adapter of rank {lora.rank} upon {lora.base}: {weights}; activations come on top, `recompute` has fewer"
    )


def step_flops(cfg: ModelConfig, stage: str, *, tokens: int, vocabulary: int) -> float:
    """Matrix work per image: a forward pass counts once, its backward twice more, the momentum twin's forward once.

    pretrain: image, text alone, three grounded texts (a pair and two negatives), one decoded text; the others leave parts out.
    """
    image, keys_values = vit_flops(cfg), keys_values_flops(cfg)
    grounded = text_flops(cfg, tokens, first_only=True) + cross_flops(cfg, tokens, first_only=True)
    decoded = text_flops(cfg, tokens) + cross_flops(cfg, tokens)
    head = 2 * tokens * cfg.text.width * (cfg.text.width + vocabulary)
    trained = {"pretrain": ("contrast", "match", "decode"), "tune_filter": ("contrast", "match"), "tune_captioner": ("decode",)}[stage]
    work = 3 * (image + keys_values)
    if "contrast" in trained:
        work += image + 4 * text_flops(cfg, tokens, first_only=cfg.pooling == "first")
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
    return stem_flops(cfg) + v.depth * block


def stem_flops(cfg: ModelConfig) -> float:
    v = cfg.vision
    side, channels, work = v.image_size, 3, 0.0
    if v.stem == "patch":
        return 2 * (side // v.patch_size) ** 2 * channels * v.patch_size**2 * v.width
    if v.stem == "cells":
        return 2 * (side // v.patch_size) ** 2 * CELL_FEATURES * v.width
    for wide in stem_widths(v):
        side //= 2
        work += 2 * side**2 * 9 * channels * wide
        channels = wide
    return work + 2 * side**2 * channels * v.width


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
    return keys_values_layers(cfg) * 2 * num_image_tokens(cfg) * cfg.vision.width * 2 * cfg.text.width

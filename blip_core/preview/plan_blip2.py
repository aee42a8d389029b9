"""What the trainings of a BLIP-2 will need: what is frozen, what learns, what its features take on disk; work, memory and time.

Nothing is estimated from sizes here: one step of few made-up pictures runs, and PyTorch counts its products and what it keeps.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from blip_core.compute.distributed import device
from blip_core.compute.precision import resolved
from blip_core.config.model import Blip2Config
from blip_core.config.params import Params
from blip_core.config.training import OptimConfig
from blip_core.preview.figures import LONGEST_TIMED, duration, product_speed, scaled
from blip_core.preview.frozens import Frozens, no_features
from blip_core.preview.made_up import STAGE_2, Training, made_up_tokenizer, optim_of
from blip_core.preview.timing import TIMED, clocked_seconds
from blip_core.tokenizer.tokenizer import ROLE_TOKENS
from blip_core.training.features import Frozen
from blip_core.training.loop import backward, parallel

COUNTED = (2, 4)  # images of the two steps that are counted: what each more image costs, and what any number of them does


def model_lines(params: Params, vocabulary: int, words: str, *, pictures: int | None) -> list[str]:
    """The parts, with what of them learns, and the features' place on disk; then each training. ValueError where a folder is not there.

    `words`: of the vocabulary."""
    assert isinstance(params.model, Blip2Config)
    frozens, tokenizer = Frozens.of(params), made_up_tokenizer(vocabulary - len(ROLE_TOKENS))
    qformer, _ = frozens.trained("pretrain", params, tokenizer)
    lines = [
        f"model: a BLIP-2 (vocabulary of {words})",
        f"  Q-Former: {scaled(_count(qformer))} parameters, which learn in stage 1",
        f"  image encoder {params.model.encoder}: {scaled(_count(frozens.encoder.module))}, frozen",
    ]
    if frozens.language is not None and params.model.language is not None:
        prompter, _ = frozens.trained(STAGE_2, params, tokenizer)
        lines.append(f"  the queries' half with its projection: {scaled(_count(prompter))}, which learn in stage 2")
        lines.append(f"  language model {params.model.language.folder}: {scaled(_count(frozens.language.model))}, frozen")
    lines += _features(params.model, Frozen(frozens.encoder, params.pretrain.optim.precision), pictures)
    stages = ["pretrain", *([STAGE_2] if frozens.language else []), "tune_captioner", "tune_filter"]
    return [*lines, *(line for stage in stages for line in _describe(stage, params, frozens, tokenizer))]


def _features(cfg: Blip2Config, frozen: Frozen, pictures: int | None) -> list[str]:
    see = no_features(frozen.encoder)
    one = see(torch.zeros(1, 1)).to(frozen.dtype)
    size = " x ".join(map(str, one.shape[1:]))
    whole = f"; {scaled(one.nbytes * pictures, 1024)}iB of {pictures:,} pictures" if pictures else ""
    kept = f"kept in {cfg.features.cache}, {cfg.features.max_gib:g} GiB at most" if cfg.features.cache else "made anew for each batch"
    return [f"  features of a picture: {size} numbers, {scaled(one.nbytes, 1024)}iB in {resolved(frozen.precision)}{whole}: {kept}"]


def _describe(stage: str, params: Params, frozens: Frozens, tokenizer: Any) -> list[str]:
    assert isinstance(params.model, Blip2Config)
    adapted = getattr(params.section(stage), "lora", None) if stage != STAGE_2 else None
    if adapted:
        from blip_core.preview.plan import adapter_needs

        return [adapter_needs(stage, adapted, params.section(stage).optim)]
    optim, see = optim_of(stage, params), no_features(frozens.encoder)

    def made(images: int, steps: int = 1) -> Training:
        cfg = optim.model_copy(update={"batch_size": images, "accumulate": 1, "steps": steps})
        return frozens.training(stage, params, tokenizer, cfg, see)

    language = [frozens.language.model] if frozens.language and stage in (STAGE_2, "tune_captioner") else []
    (few, more), images = ([counted(made(n), language, optim.precision) for n in COUNTED], COUNTED[1] - COUNTED[0])
    flops, kept = ((b - a) / images for a, b in zip(few, more, strict=True))
    cached = params.model.features.cache is not None and not stage.startswith("tune")
    seen = 0.0 if cached else encoder_flops(frozens)
    learned = _count(made(COUNTED[0]).model)
    frozen_bytes = sum(p.nbytes for part in [*([] if cached else [frozens.encoder.module]), *language] for p in part.parameters())
    total, micro = optim.steps * optim.batch_size, optim.batch_size // optim.accumulate
    memory = frozen_bytes + 16 * learned + kept * micro
    speed = product_speed(params.model.qformer.width, resolved(optim.precision), optim.threads)
    return [
        f"{stage}: {optim.steps:,} steps of {optim.batch_size:,} images = {total:,} images",
        f"  work: {scaled(flops)}FLOP per image, and {scaled(seen)}FLOP for its features; {scaled((flops + seen) * total)}FLOP in all",
        f"  time of one process: {duration((flops + seen) * total / speed)} for its matrix products, at the {scaled(speed)}FLOP/s that one "
        f"of its width makes in {resolved(optim.precision)} on this machine",
        *_timed(made, optim, frozens, (flops + seen) / speed, cached=cached),
        f"  memory on one process: {scaled(frozen_bytes, 1024)}iB that is frozen, {scaled(16 * learned, 1024)}iB for weights, gradients "
        f"and optimizer, {scaled(kept, 1024)}iB per image of activations: {scaled(memory, 1024)}iB for the {micro:,} images of a "
        "micro-batch; n processes hold 1/n of the images",
    ]


def _timed(made: Callable[..., Training], optim: OptimConfig, frozens: Frozens, image_seconds: float, *, cached: bool) -> list[str]:
    images = min(optim.batch_size // optim.accumulate, int(LONGEST_TIMED / (TIMED + 1) / image_seconds))
    if images < 2:
        return [f"  two steps: not timed, for two images would take more than {duration(LONGEST_TIMED)}"]
    scale = optim.batch_size / images
    seconds = scale * clocked_seconds(made(images, TIMED + 1), optim, images)
    features = 0.0 if cached else scale * encoder_seconds(Frozen(frozens.encoder, optim.precision), images)
    part = "" if scale == 1 else f" (by those of {images:,} images)"
    return [
        f"  two steps by the clock: {duration(seconds)} each{part}, and {duration(features)} for its features, so "
        f"{duration((seconds + features) * optim.steps)} for {optim.steps:,}"
    ]


def counted(training: Training, frozen: Iterable[nn.Module], precision: str) -> tuple[int, int]:
    """FLOP of the matrix products of a step, forward and backward, and bytes that its forward pass keeps beside the weights."""
    [batch] = training.batches.loader(0)
    stepper = parallel(training.model, training.objective)
    weights = {p.untyped_storage().data_ptr() for part in (stepper, *frozen) for p in part.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    math = sdpa_kernel(SDPBackend.MATH)  # of the products in attention, that the counter sees them
    with FlopCounterMode(display=False) as counter, math:
        backward(stepper, [batch], precision=precision)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        backward(stepper, [batch], precision=precision)
    return counter.get_total_flops(), sum(kept.values())


def encoder_flops(frozens: Frozens) -> int:
    """Of one picture."""
    size = frozens.encoder.image_size
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        frozens.encoder(torch.zeros(1, 3, size, size, device=device()))
    return counter.get_total_flops()


def encoder_seconds(frozen: Frozen, images: int) -> float:
    """Of so many pictures, behind a pass that warms up."""
    size = frozen.encoder.image_size
    pixels = torch.randn(images, 3, size, size, device=device())
    for _ in range(2):
        began = time.perf_counter()
        frozen(pixels).sum().item()  # waits for the device
    return time.perf_counter() - began


def _count(part: nn.Module) -> int:
    return sum(p.numel() for p in part.parameters())

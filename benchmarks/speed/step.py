"""One pre-training step: ours against a plain writing of what the public code does (benchmarks/speed/public_step.py).

    python benchmarks/speed/step.py [--size tiny|vit-b16|vit-l16] [--batch N] [--runs N] [--threads N] [--memory]

The same weights, batch, queue and negatives; the losses of two steps must agree to 1e-4 before anything is timed. A step is forward,
backward, AdamW and the momentum update; no data loading. Sides alternate in one process. `--memory` measures instead the peak
resident memory of two steps, each side in a process of its own; there, `recomputed` is ours with all blocks of the image encoder
computed again in the backward pass, and one side more has its momentum twin in bf16. Writes benchmarks/results/step-<size>-<batch>.json
(memory-<size>-<batch>.json).

How much of the processor is used: the work that a step must do (blip_core/preview/plan.py: matrix products, forward once, backward twice,
nothing computed again) by CPU seconds, against products of matrices of 1,024 x 1,024 that took their turns in the same rounds.
"""

import functools
import statistics
from collections.abc import Callable

import torch
from public_step import PADDED, PublicBlip, load_ours
from side_by_side import ROOT, SIZES, Times, alternate, build, compared, model_config, random_texts, show, write
from training_steps import Benchmark, Step, following, greatest_difference

from blip_core.config.contrast import ContrastConfig
from blip_core.config.params import load_params
from blip_core.config.training import OptimConfig
from blip_core.preview.plan import step_flops
from blip_core.training.loop import _train_step, learning_rate, make_optimizer, parallel, parameter_groups
from blip_core.training.objectives import PretrainObjective
from blip_core.training.step import Batch

SEED = 0
TOKENS = 12  # of a text, in the mean
SQUARE, PRODUCTS = 1024, 20
SIDES = ("public, fp32", "ours, fp32", "ours, bf16", "ours, bf16, recomputed")
TWIN = "ours, bf16, bf16 twin"
WEIGHED = (*SIDES, TWIN)


def settings(size: str) -> tuple[ContrastConfig, OptimConfig, int]:
    """Of the paper, but for a clipping norm that the gradient does not reach (the public code does not clip; the norm is still
    computed), no warm-up, so that the first steps already move the weights, and the sizes of tiny."""
    pretrain = load_params(ROOT / "configs/vit-b16.yaml").pretrain
    changes = {"clip_norm": 1e9, "warmup": 0.0, "threads": 0, "accumulate": 1, "recompute": 0}
    contrast = pretrain.contrast.model_copy(update={"hardness_ramp": 0.0, **({"queue_size": 64} if size == "tiny" else {})})
    return contrast, pretrain.optim.model_copy(update=changes), 64 if size == "tiny" else 224


def make_batch(tokenizer, step: int, *, image_size: int, batch_size: int) -> Batch:
    """Random pixels; random texts as long as COCO captions, 8 to 15 tokens with both ends."""
    generator = torch.Generator().manual_seed(1000 + step)
    lengths = torch.randint(8, 16, (batch_size,), generator=generator).tolist()
    ids, mask = random_texts(tokenizer, lengths, seed=step)
    pixels = torch.randn(batch_size, 3, image_size, image_size, generator=generator)
    own = torch.arange(batch_size) + step * batch_size
    return Batch(pixels=pixels, ids=ids, mask=mask, prompt_tokens=0, image_ids=own, text_ids=own, step=step, progress=0.5, seed=SEED)


def our_step(model, tokenizer, contrast: ContrastConfig, optim: OptimConfig, batch_size: int) -> tuple[PretrainObjective, Callable]:
    language = load_params(ROOT / "configs/vit-b16.yaml").pretrain.language
    objective = PretrainObjective(model, contrast, language)
    fill_queue(objective)
    stepper = parallel(model, objective)
    optimizer = make_optimizer(model, objective, optim)

    def run(step: int, precision: str, recompute: int) -> dict[str, float]:
        model.vit.recompute = recompute
        batch = make_batch(tokenizer, step, image_size=model.cfg.vision.image_size, batch_size=batch_size)
        row = _train_step(stepper, optimizer, [batch], optim.model_copy(update={"precision": precision}), SEED)
        return {k: float(row[k]) for k in ("itc", "itm", "lm")}

    return objective, run


def fill_queue(objective: PretrainObjective) -> None:
    """A full queue of random features of other pairs, as after many steps."""
    contrast = objective.contrast
    for name in ("image", "text"):
        queue = getattr(contrast, f"{name}_queue")
        queue.copy_(torch.nn.functional.normalize(torch.randn(queue.shape, generator=torch.Generator().manual_seed(len(name))), dim=-1))
        getattr(contrast, f"{name}_id_queue").copy_(-1 - torch.arange(len(queue)))
    contrast.queue_filled = len(contrast.image_queue)


def public_step(public: PublicBlip, tokenizer, contrast: ContrastConfig, optim: OptimConfig, image_size: int, batch_size: int) -> Step:
    public.train()
    optimizer = torch.optim.AdamW(parameter_groups(public, torch.nn.Module(), optim.weight_decay), lr=optim.lr, betas=optim.betas)

    def run(step: int) -> dict[str, float]:
        batch = make_batch(tokenizer, step, image_size=image_size, batch_size=batch_size)
        extra = (0, PADDED - batch.ids.shape[1])
        ids, mask = (torch.nn.functional.pad(t, extra, value=v) for t, v in ((batch.ids, tokenizer.pad), (batch.mask, False)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, optim)
        with torch.no_grad():
            public.temperature.clamp_(*contrast.temperature_range)
        alpha = contrast.alpha * min(1.0, batch.progress / contrast.alpha_ramp)
        optimizer.zero_grad()
        losses = public(batch.pixels, ids, mask, batch.draws, alpha)
        sum(losses.values()).backward()
        optimizer.step()
        return {k: v.item() for k, v in losses.items()}

    return run


def make_sides(size: str, names: tuple[str, ...] = SIDES, *, batch_size: int = 4) -> dict[str, Step]:
    """The steps by name. Both precisions of ours move one model; a lone public model needs no weights of ours."""
    contrast, optim, image_size = settings(size)
    if TWIN in names:  # alone
        contrast = contrast.model_copy(update={"twin_precision": "bf16"})
    model, tokenizer = build(size, image_size=image_size)
    sides: dict[str, Step] = {}
    queues = {}
    if SIDES[0] in names:
        options = dict(queue_size=contrast.queue_size, momentum=contrast.momentum, temperature=contrast.temperature)
        public = PublicBlip(model.cfg, model.special, **options)
        load_ours(public, model)
        sides[SIDES[0]] = public_step(public, tokenizer, contrast, optim, image_size, batch_size)
        queues = {"image_queue": public.image_queue, "text_queue": public.text_queue}
    if set(WEIGHED[1:]) & set(names):
        objective, run = our_step(model, tokenizer, contrast, optim, batch_size)
        for name, queue in queues.items():
            queue.copy_(getattr(objective.contrast, name).T)
        how = dict(zip(WEIGHED[1:], (("fp32", 0), ("bf16", 0), ("bf16", model.cfg.vision.depth), ("bf16", 0)), strict=True))
        sides |= {name: (lambda step, how=how[name]: run(step, *how)) for name in WEIGHED[1:] if name in names}
    return sides


def check(sides: dict[str, Step], *, steps: int = 2) -> float:
    """The greatest difference of the losses of the first steps in fp32; ValueError when it is above 1e-4."""
    return greatest_difference(sides[SIDES[0]], sides[SIDES[1]], steps=steps)


def measure_time(size: str, runs: int, batch_size: int) -> None:
    sides = make_sides(size, batch_size=batch_size)
    difference = check(sides)
    print(f"losses of two steps agree: greatest difference {difference:.1e}")
    numbered = following(sides, start=2)
    peaks = {f"matrix product, {p}": functools.partial(multiply, t) for p, t in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    times = alternate(numbered | peaks, runs=runs, warmup=0)
    used = usage(times, size, batch_size)
    rows = compared({name: times[name] for name in numbered}, theirs=SIDES[0])
    show(f"One pre-training step, {size}, batch {batch_size}", rows, items=batch_size, unit="images")
    print("\n| side | GFLOP/s | of the matrix product of its precision |\n|---|---|---|")
    for name, (rate, share) in used.items():
        print(f"| {name} | {rate / 1e9:.1f} | {share:.0%} |")
    about = {"size": size, "batch": batch_size, "greatest_loss_difference": difference, "rows": rows}
    print(write(f"step-{size}-{batch_size}", about | {"flops_per_second_and_share": used}))


def multiply(dtype: torch.dtype) -> None:
    a = torch.ones(SQUARE, SQUARE, dtype=dtype)
    for _ in range(PRODUCTS):
        a @ a


def usage(times: Times, size: str, batch_size: int) -> dict[str, tuple[float, float]]:
    """Of each side: FLOP/s by CPU seconds (the median of the rounds), and their share in the matrix product's of the same precision."""
    cfg = model_config(size, image_size=settings(size)[2])
    step = batch_size * step_flops(cfg, "pretrain", tokens=TOKENS, vocabulary=207 if size == "tiny" else 30524)
    product = PRODUCTS * 2 * SQUARE**3
    rates = {n: (product if n.startswith("matrix") else step) / statistics.median(cpu for _, cpu in t) for n, t in times.items()}
    return {name: (rate, rate / rates[f"matrix product, {'bf16' if 'bf16' in name else 'fp32'}"]) for name, rate in rates.items()}


def one(size: str, name: str, batch_size: int) -> Step:
    return make_sides(size, (name,), batch_size=batch_size)[name]


if __name__ == "__main__":
    Benchmark(__file__, SIZES, WEIGHED, WEIGHED, "memory", one, measure_time).run()

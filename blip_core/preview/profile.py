"""Where the time of a stage's work goes: a few real steps, their parts by the clock, the dearest operators, a trace to look into.

    blip profile pretrain --artifacts artifacts
    blip profile pretrain --params configs/vit-b16.yaml --batch-size 8

A training runs through the very loop of the stage (train.fit), watched from outside; captions and scores through the stage's own
functions. First come steps that are only warmed up, then some whose parts are timed, then some that are traced: a trace slows small
operators down, so no time is taken from it. Without `artifacts`, pictures and texts are made up, and `data` is the time to make them.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.profiler import ProfilerActivity

from blip_core.capfilt.med import caption_images, score_texts, set_threads
from blip_core.compute.distributed import device
from blip_core.compute.padding import tokenize
from blip_core.compute.pixels import read_resized
from blip_core.compute.precision import resolved
from blip_core.config.params import Params
from blip_core.config.training import OptimConfig
from blip_core.model.blip import Blip
from blip_core.model.inference import for_inference
from blip_core.tables.shards import ShardImages
from blip_core.tokenizer.wordpiece import BERT_TOKENS, Tokenizer
from blip_core.training.batches import Batches, Rows, batch_shares
from blip_core.training.loop import Source, fit
from blip_core.training.objectives import CaptionObjective, PretrainObjective
from blip_core.training.step import Batch, MicroBatch, Objective
from blip_core.weights.checkpoint import load_model, new_model

TRAININGS = ("pretrain", "tune_captioner", "tune_filter")
PROFILED = (*TRAININGS, "caption", "score")
WARM, TRACED = 2, 2  # steps
SHOWN = 15  # operators
NEVER = 10**9
WORDS = (6, 14)  # in a made-up text, as in COCO
TEXTS_PER_IMAGE = 6  # that are scored, when they are made up


class Work(NamedTuple):
    """What is profiled: `run` does the steps 0 to `steps` - 1, telling the watch where it is and when a step has ended."""

    title: str
    images: int  # in a step
    run: Callable[["Watch", int], None]


class Watch:
    """Counts the seconds of each part of a step. Warm-up, timing and tracing follow each other by the number of the step."""

    def __init__(self, timed: int):
        self.timed, self.step = timed, 0
        self.seconds: dict[str, list[float]] = {}  # part -> by the clock, of CPU; of all timed steps together
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self.trace = torch.profiler.profile(activities=activities)
        self._part, self._began = "", (0.0, 0.0)
        self._range: torch.profiler.record_function | None = None

    def enter(self, part: str) -> None:
        """The part that begins now; "" for none. Waits for the GPU, so that what a part has started counts as its own."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter(), time.process_time()
        if self._part and WARM <= self.step < WARM + self.timed:
            sums = self.seconds.setdefault(self._part, [0.0, 0.0])
            sums[:] = (s + n - b for s, n, b in zip(sums, now, self._began, strict=True))
        if self._range is not None:
            self._range.__exit__(None, None, None)
        self._range = torch.profiler.record_function(part) if part else None
        if self._range is not None:
            self._range.__enter__()
        self._part, self._began = part, now

    def end_step(self) -> None:
        self.enter("")
        self.step += 1
        if self.step == WARM + self.timed:
            self.trace.start()


def profile(what: str, params: Params, *, artifacts: Path | None, steps: int, batch_size: int | None, out: Path) -> str:
    """Write `out`/<what>.trace.json.gz, for chrome://tracing or Perfetto, and <what>.txt; returns the text."""
    if steps < 1 or (batch_size or 2) < 2:
        raise ValueError(f"--steps {steps} --batch-size {batch_size}; expected 1 step and 2 images or more")
    if artifacts is not None and not (artifacts / "generations/g0").exists():
        raise ValueError(
            f"{artifacts}: holds no generations/g0; run `dvc repro validate` first, or leave --artifacts out to make pictures up"
        )
    work = (_training if what in TRAININGS else _reading)(what, params, artifacts, batch_size)
    watch = Watch(steps)
    work.run(watch, WARM + steps + TRACED)
    watch.trace.stop()
    out.mkdir(parents=True, exist_ok=True)
    trace = out / f"{what}.trace.json.gz"
    watch.trace.export_chrome_trace(str(trace))
    text = "\n".join([work.title, "", *_part_lines(watch, work.images), "", *_operator_lines(watch), "", f"trace: {trace}"])
    (out / f"{what}.txt").write_text(text + "\n")
    return text


def _training(stage: str, params: Params, artifacts: Path | None, batch_size: int | None) -> Work:
    if getattr(params.section(stage), "lora", None):
        raise ValueError(
            f"{stage}.lora: only trainings of BLIP are profiled; leave lora out of the parameter file to see that of the round"
        )
    cfg = params.section(stage).optim
    quiet = {"checkpoint_every": NEVER, "log_every": NEVER, "health": "off"}
    cfg = cfg.model_copy(update=quiet | {"batch_size": batch_size or cfg.batch_size})

    def run(watch: Watch, steps: int) -> None:
        fixed = cfg.model_copy(update={"steps": steps})
        tokenizer = _tokenizer(params, artifacts)
        model = new_model(params.model, tokenizer, seed=params.seed)
        objective = _objective(stage, params, model)
        source = _real_batches(stage, params, artifacts, tokenizer, fixed) if artifacts else MadeUp(params, tokenizer, fixed)
        with tempfile.TemporaryDirectory() as folder, _watching(watch, objective):
            read, name = Watched(source, watch), f"profile {stage}"
            fit(model, objective, read, fixed, name=name, folder=Path(folder), seed=params.seed, report=None)

    return Work(_title(stage, params, cfg.batch_size, cfg.precision, cfg.threads, artifacts), cfg.batch_size, run)


def _objective(stage: str, params: Params, model: Blip) -> Objective:
    cfg = params.section(stage)
    if stage == "tune_captioner":
        return CaptionObjective(cfg.language)
    objective = PretrainObjective(model, cfg.contrast, getattr(cfg, "language", None))
    contrast = objective.contrast
    for name in ("image", "text"):  # a full queue of other pairs, as behind the first hundred steps
        queue = getattr(contrast, f"{name}_queue")
        queue.copy_(nn.functional.normalize(torch.randn(queue.shape), dim=-1))
        getattr(contrast, f"{name}_id_queue").copy_(-1 - torch.arange(len(queue)))
    contrast.queue_filled = contrast.cfg.queue_size
    return objective


@contextmanager
def _watching(watch: Watch, objective: Objective) -> Iterator[None]:
    """Hooks that tell the watch when the objective and the optimizer begin and end."""

    def tell(part: str) -> Callable[..., None]:
        return lambda *_: watch.enter(part)

    handles = [
        objective.register_forward_pre_hook(tell("forward")),
        objective.register_forward_hook(tell("backward, clipping")),
        register_optimizer_step_pre_hook(tell("optimizer")),
        register_optimizer_step_post_hook(tell("rest")),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Watched:
    """Batches that tell the watch how long the training waits for them, and when a step has ended."""

    def __init__(self, batches: Source, watch: Watch):
        self.batches, self.watch = batches, watch

    def loader(self, start: int) -> Iterator[MicroBatch]:
        self.watch.enter("data")
        for batch in self.batches.loader(start):
            self.watch.enter("momentum, zero_grad")
            yield batch
            if batch.part == batch.parts - 1:
                self.watch.end_step()
            self.watch.enter("data")
        self.watch.enter("")


class MadeUp:
    """Batches of random pixels and texts as long as those of COCO."""

    def __init__(self, params: Params, tokenizer: Tokenizer, cfg: OptimConfig):
        self.params, self.tokenizer, self.cfg = params, tokenizer, cfg

    def loader(self, start: int) -> Iterator[Batch]:
        cfg, side = self.cfg, self.params.model.vision.image_size
        size = cfg.batch_size // cfg.accumulate
        for place in range(start * cfg.accumulate, cfg.steps * cfg.accumulate):
            step, part = divmod(place, cfg.accumulate)
            ids, mask = tokenize(self.tokenizer, _texts(self.tokenizer, size, seed=place), max_tokens=cfg.max_tokens)
            own, pixels = torch.arange(size) + place * size, torch.randn(size, 3, side, side)
            made = Batch(
                pixels=pixels,
                ids=ids,
                mask=mask,
                prompt_tokens=0,
                image_ids=own,
                text_ids=own,
                step=step,
                progress=step / cfg.steps,
                seed=self.params.seed,
                part=part,
                parts=cfg.accumulate,
            )
            yield made.to(device())


def _real_batches(stage: str, params: Params, artifacts: Path, tokenizer: Tokenizer, cfg: OptimConfig) -> Batches:
    sources = ["human", "web"] if stage == "pretrain" else ["human"]
    rows = Rows.of(artifacts / "generations/g0", sources)
    shares = batch_shares(rows, human=params.pretrain.human_share, synthetic=params.pretrain.synthetic_share)
    images, size = ShardImages(artifacts / "shards"), params.model.vision.image_size
    return Batches(rows, images, tokenizer, shares=shares, cfg=cfg, image_size=size, prompt="", seed=params.seed)


def _reading(stage: str, params: Params, artifacts: Path | None, batch_size: int | None) -> Work:
    """Captions or scores: the stage's own function on batches of pictures."""
    cfg = params.section(stage)
    size = batch_size or cfg.batch_size

    def run(watch: Watch, steps: int) -> None:
        set_threads(cfg.threads)
        model, tokenizer = _reader(stage, params, artifacts)
        source = _pictures(params, artifacts, tokenizer)
        hooks = [model.vit.register_forward_pre_hook(lambda *_: watch.enter("image encoder"))]
        hooks.append(model.vit.register_forward_hook(lambda *_: watch.enter("words")))
        for step in range(steps):
            watch.enter("data")
            keys, pictures, texts = source(step, size)
            watch.enter("pixels")
            if stage == "caption":
                for writer in cfg.writers:
                    options = {"seed": params.seed, "num_candidates": writer.num_candidates, "precision": cfg.precision}
                    caption_images(model, tokenizer, pictures, keys, writer.sampler, **options)
            else:
                score_texts(model, tokenizer, pictures, texts, max_tokens=params.tune_filter.optim.max_tokens, precision=cfg.precision)
            watch.end_step()
        for hook in hooks:
            hook.remove()

    return Work(_title(stage, params, size, cfg.precision, cfg.threads, artifacts), size, run)


def _reader(stage: str, params: Params, artifacts: Path | None) -> tuple[Blip, Tokenizer]:
    """The first round's own model where there is one: a random one ends no caption before its limit."""
    folder = artifacts and artifacts / "rounds" / next(iter(params.rounds)) / {"caption": "captioner", "score": "filter"}[stage]
    if folder is not None and folder.exists():
        model, tokenizer = load_model(folder)
    else:
        tokenizer = _tokenizer(params, artifacts)
        model = new_model(params.model, tokenizer, seed=params.seed)
    return for_inference(model.to(device()), resolved(params.section(stage).precision)), tokenizer


Pictured = tuple[list[str], list[np.ndarray], list[list[str]]]  # of a step: keys, pictures, texts of each


def _pictures(params: Params, artifacts: Path | None, tokenizer: Tokenizer) -> Callable[[int, int], Pictured]:
    side = params.model.vision.image_size
    if artifacts is None:

        def made_up(step: int, count: int) -> Pictured:
            pictures = list(np.random.default_rng(step).integers(0, 256, (count, side, side, 3), dtype=np.uint8))
            texts = _texts(tokenizer, count * TEXTS_PER_IMAGE, seed=step)
            return [f"made-up-{i}" for i in range(count)], pictures, [texts[i::count] for i in range(count)]

        return made_up
    rows, images = Rows.of(artifacts / "generations/g0", ["web"]), ShardImages(artifacts / "shards")

    def real(step: int, count: int) -> Pictured:
        shards, keys, texts = rows.at(np.arange(step * count, (step + 1) * count) % len(rows.image_id))
        return keys, [read_resized(images, s, k, side) for s, k in zip(shards, keys, strict=True)], [[text] for text in texts]

    return real


def _tokenizer(params: Params, artifacts: Path | None) -> Tokenizer:
    if artifacts is not None:
        return Tokenizer.load(artifacts / "vocab.txt")
    return Tokenizer([*BERT_TOKENS, *(f"w{i}" for i in range(params.ingest.vocab_size - len(BERT_TOKENS)))])


def _texts(tokenizer: Tokenizer, count: int, *, seed: int) -> list[str]:
    rng, words = np.random.default_rng(seed), tokenizer.vocab[len(BERT_TOKENS) :]
    return [" ".join(words[i] for i in rng.integers(0, len(words), rng.integers(*WORDS))) for _ in range(count)]


def _title(stage: str, params: Params, size: int, precision: str, threads: int, artifacts: Path | None) -> str:
    v, where = params.model.vision, torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {threads or 'all'} thread(s)"
    data = f"pictures of {artifacts}" if artifacts else "made-up pictures"
    return f"{stage}: {size} images a step, {v.image_size} pixels, ViT {v.width} x {v.depth}, {resolved(precision)}, {data}; {where}"


def _part_lines(watch: Watch, images: int) -> list[str]:
    """Mean of the timed steps."""
    total = [sum(s[i] for s in watch.seconds.values()) for i in (0, 1)]
    lines = [f"{'part':20} {'ms a step':>10} {'share':>7} {'CPU ms':>10}"]
    for name, (clock, cpu) in [*watch.seconds.items(), ("sum", total)]:
        lines.append(f"{name:20} {1000 * clock / watch.timed:10.1f} {clock / total[0]:7.1%} {1000 * cpu / watch.timed:10.1f}")
    return [*lines, f"{images * watch.timed / total[0]:.4g} images/s by the clock, {images * watch.timed / total[1]:.4g} per CPU second"]


def _operator_lines(watch: Watch) -> list[str]:
    """The operators that took most by themselves, of the traced steps: on the GPU where there is one."""
    gpu = torch.cuda.is_available()
    own: Callable[[Any], float] = (lambda e: e.self_device_time_total) if gpu else (lambda e: e.self_cpu_time_total)
    events = [e for e in watch.trace.key_averages() if e.key not in watch.seconds]
    total = max(1e-9, sum(map(own, events)))
    lines = [f"{'operator (own time)':60} {'GPU ms' if gpu else 'CPU ms':>10} {'share':>7} {'calls':>8}"]
    for e in sorted(events, key=own, reverse=True)[:SHOWN]:
        lines.append(f"{e.key.removeprefix('aten::')[:60]:60} {own(e) / 1000 / TRACED:10.2f} {own(e) / total:7.1%} {e.count / TRACED:8.0f}")
    return [*lines, "a step; the trace itself takes time, most where operators are small"]

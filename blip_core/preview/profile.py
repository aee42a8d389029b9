"""Where the time of a stage's work goes: a few real steps, their parts by the clock, the dearest operators, a trace to look into.

    blip profile pretrain --artifacts artifacts
    blip profile pretrain --params configs/vit-b16.yaml --batch-size 8

A training runs through the very loop of the stage (train.fit), watched from outside; captions and scores through the stage's own
functions. First come steps that are only warmed up, then some whose parts are timed, then some that are traced: a trace slows small
operators down, so no time is taken from it. Without `artifacts`, pictures and texts are made up, and `data` is the time to make them.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from blip_core.capfilt.med import caption_images, score_texts, set_threads
from blip_core.compute.distributed import device
from blip_core.compute.pixels import read_resized
from blip_core.compute.precision import resolved
from blip_core.config.params import Params
from blip_core.config.training import OptimConfig
from blip_core.model.blip import Blip
from blip_core.model.inference import for_inference
from blip_core.preview.made_up import NEVER, MadeUp, made_up_texts, made_up_tokenizer, objective_of
from blip_core.preview.watch import TRACED, WARM, Watch, Watched, operator_lines, part_lines, watching
from blip_core.tables.shards import ShardImages
from blip_core.tokenizer.folders import load_tokenizer
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.training.batches import Batches, Rows, batch_shares
from blip_core.training.loop import fit
from blip_core.weights.checkpoint import load_model, new_model

TRAININGS = ("pretrain", "tune_captioner", "tune_filter")
PROFILED = (*TRAININGS, "caption", "score")
TEXTS_PER_IMAGE = 6  # that are scored, when they are made up


class Work(NamedTuple):
    """What is profiled: `run` does the steps 0 to `steps` - 1, telling the watch where it is and when a step has ended."""

    title: str
    images: int  # in a step
    run: Callable[[Watch, int], None]


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
    text = "\n".join([work.title, "", *part_lines(watch, work.images), "", *operator_lines(watch), "", f"trace: {trace}"])
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
        model = new_model(params.med("profile"), tokenizer, seed=params.seed)
        objective = objective_of(stage, params, model, tokenizer)
        source = _real_batches(stage, params, artifacts, tokenizer, fixed) if artifacts else MadeUp(params, tokenizer, fixed)
        with tempfile.TemporaryDirectory() as folder, watching(watch, objective):
            read, name = Watched(source, watch), f"profile {stage}"
            fit(model, objective, read, fixed, name=name, folder=Path(folder), seed=params.seed, report=None)

    return Work(_title(stage, params, cfg.batch_size, cfg.precision, cfg.threads, artifacts), cfg.batch_size, run)


def _real_batches(stage: str, params: Params, artifacts: Path, tokenizer: Tokenizer, cfg: OptimConfig) -> Batches:
    sources = ["human", "web"] if stage == "pretrain" else ["human"]
    rows = Rows.of(artifacts / "generations/g0", sources)
    shares = batch_shares(rows, human=params.pretrain.human_share, synthetic=params.pretrain.synthetic_share)
    images, size = ShardImages(artifacts / "shards"), params.med("profile").vision.image_size
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
                for writer in (w for w in cfg.writers if w.fuses is None):
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
        model = new_model(params.med("profile"), tokenizer, seed=params.seed)
    return for_inference(model.to(device()), resolved(params.section(stage).precision)), tokenizer


Pictured = tuple[list[str], list[np.ndarray], list[list[str]]]  # of a step: keys, pictures, texts of each


def _pictures(params: Params, artifacts: Path | None, tokenizer: Tokenizer) -> Callable[[int, int], Pictured]:
    side = params.med("profile").vision.image_size
    if artifacts is None:

        def made_up(step: int, count: int) -> Pictured:
            pictures = list(np.random.default_rng(step).integers(0, 256, (count, side, side, 3), dtype=np.uint8))
            texts = made_up_texts(tokenizer, count * TEXTS_PER_IMAGE, seed=step)
            return [f"made-up-{i}" for i in range(count)], pictures, [texts[i::count] for i in range(count)]

        return made_up
    rows, images = Rows.of(artifacts / "generations/g0", ["web"]), ShardImages(artifacts / "shards")

    def real(step: int, count: int) -> Pictured:
        shards, keys, texts = rows.at(np.arange(step * count, (step + 1) * count) % len(rows.image_id))
        return keys, [read_resized(images, s, k, side) for s, k in zip(shards, keys, strict=True)], [[text] for text in texts]

    return real


def _tokenizer(params: Params, artifacts: Path | None) -> Tokenizer:
    if artifacts is not None:
        return load_tokenizer(artifacts / "tokenizer.json")
    return made_up_tokenizer(params.ingest.vocab_size)


def _title(stage: str, params: Params, size: int, precision: str, threads: int, artifacts: Path | None) -> str:
    v, where = (
        params.med("profile").vision,
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {threads or 'all'} thread(s)",
    )
    data = f"pictures of {artifacts}" if artifacts else "made-up pictures"
    return f"{stage}: {size} images a step, {v.image_size} pixels, ViT {v.width} x {v.depth}, {resolved(precision)}, {data}; {where}"

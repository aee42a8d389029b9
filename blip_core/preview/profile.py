"""Where the time of a stage's work goes: a few real steps, their parts by the clock, the dearest operators, a trace to look into.

    blip profile pretrain --artifacts artifacts
    blip profile pretrain --params configs/vit-b16.yaml --batch-size 8

A training runs through the very loop of the stage (training/loop.py), watched from outside; captions and scores through the stage's own
functions. First come steps that are only warmed up, then some whose parts are timed, then some that are traced: a trace slows small
operators down, so no time is taken from it. Without `artifacts`, pictures and texts are made up, and `data` is the time to make them.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from blip_core.capfilt.med import caption_images, score_texts, set_threads
from blip_core.compute.distributed import device
from blip_core.compute.pixels import read_resized
from blip_core.compute.precision import resolved
from blip_core.config.model import Blip2Config
from blip_core.config.params import Params
from blip_core.config.training import OptimConfig
from blip_core.model.blip2 import Blip2, ImageText
from blip_core.model.inference import for_inference
from blip_core.preview.frozens import Frozens, MadeUpFeatures, real_batches
from blip_core.preview.made_up import NEVER, STAGE_2, Training, made_up_texts, made_up_tokenizer, made_up_training, optim_of
from blip_core.preview.watch import TRACED, WARM, Watch, Watched, operator_lines, part_lines, watching
from blip_core.tables.shards import ShardImages
from blip_core.tokenizer.folders import load_tokenizer
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.training.batches import Batches, Rows, batch_shares
from blip_core.training.loop import Source, fit
from blip_core.weights.checkpoint import new_model
from blip_core.weights.models import load_any

TRAININGS = ("pretrain", STAGE_2, "tune_captioner", "tune_filter")
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
    if stage != STAGE_2 and getattr(params.section(stage), "lora", None):
        raise ValueError(
            f"{stage}.lora: only trainings of BLIP are profiled; leave lora out of the parameter file to see that of the round"
        )
    cfg = optim_of(stage, params)
    quiet = {"checkpoint_every": NEVER, "log_every": NEVER, "health": "off"}
    cfg = cfg.model_copy(update=quiet | {"batch_size": batch_size or cfg.batch_size})

    def run(watch: Watch, steps: int) -> None:
        fixed = cfg.model_copy(update={"steps": steps})
        made = made_up_training(stage, params, _tokenizer(params, artifacts), fixed)
        model, objective, source = made
        source = _real_batches(stage, params, artifacts, made, fixed) if artifacts else source
        if isinstance(made.batches, MadeUpFeatures):
            _telling(watch, made.batches.encoder, then="data")
        with tempfile.TemporaryDirectory() as folder, watching(watch, objective):
            read, name = Watched(source, watch), f"profile {stage}"
            fit(model, objective, read, fixed, name=name, folder=Path(folder), seed=params.seed, report=None)

    return Work(_title(stage, params, cfg.batch_size, cfg.precision, cfg.threads, artifacts), cfg.batch_size, run)


def _real_batches(stage: str, params: Params, artifacts: Path, made: Training, cfg: OptimConfig) -> Source:
    sources = ["human"] if stage.startswith("tune") else ["human", "web"]
    rows, images = Rows.of(artifacts / "generations/g0", sources), ShardImages(artifacts / "shards")
    shares = batch_shares(rows, human=params.pretrain.human_share, synthetic=params.pretrain.synthetic_share)
    options: dict[str, Any] = {"shares": shares, "cfg": cfg, "seed": params.seed}
    if isinstance(params.model, Blip2Config):
        return real_batches(stage, params.model.features, made, rows, images, **options)
    tokenizer = _tokenizer(params, artifacts)
    return Batches(rows, images, tokenizer, image_size=params.model.vision.image_size, prompt="", **options)


def _encoder(model: nn.Module) -> nn.Module:
    return model.encoder if isinstance(model, Blip2) else model.vit  # type: ignore[return-value]


def _telling(watch: Watch, encoder: nn.Module, *, then: str) -> list[RemovableHandle]:
    """Hooks that tell the watch when the image encoder begins, and that `then` follows."""
    began = encoder.register_forward_pre_hook(lambda *_: watch.enter("image encoder"))
    return [began, encoder.register_forward_hook(lambda *_: watch.enter(then))]


def _reading(stage: str, params: Params, artifacts: Path | None, batch_size: int | None) -> Work:
    """Captions or scores: the stage's own function on batches of pictures."""
    cfg = params.section(stage)
    size = batch_size or cfg.batch_size

    def run(watch: Watch, steps: int) -> None:
        set_threads(cfg.threads)
        model, tokenizer = _reader(stage, params, artifacts)
        source = _pictures(params, artifacts, tokenizer, model.image_size)
        hooks = _telling(watch, _encoder(model), then="words")
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


def _reader(stage: str, params: Params, artifacts: Path | None) -> tuple[ImageText, Tokenizer]:
    """The first round's own model where there is one: a random one ends no caption before its limit."""
    folder = artifacts and artifacts / "rounds" / next(iter(params.rounds)) / {"caption": "captioner", "score": "filter"}[stage]
    if folder is not None and folder.exists():
        model, tokenizer = load_any(folder)
    else:
        tokenizer = _tokenizer(params, artifacts)
        if isinstance(params.model, Blip2Config):
            model = Frozens.of(params).reader(params, tokenizer)
        else:
            model = new_model(params.model, tokenizer, seed=params.seed)
    return for_inference(model.to(device()), resolved(params.section(stage).precision)), tokenizer


Pictured = tuple[list[str], list[np.ndarray], list[list[str]]]  # of a step: keys, pictures, texts of each


def _pictures(params: Params, artifacts: Path | None, tokenizer: Tokenizer, side: int) -> Callable[[int, int], Pictured]:
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
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {threads or 'all'} thread(s)"
    if isinstance(params.model, Blip2Config):
        network = f"Q-Former {params.model.qformer.width} x {params.model.qformer.depth} upon {params.model.encoder}"
    else:
        network = f"{params.model.vision.image_size} pixels, ViT {params.model.vision.width} x {params.model.vision.depth}"
    data = f"pictures of {artifacts}" if artifacts else "made-up pictures"
    return f"{stage}: {size} images a step, {network}, {resolved(precision)}, {data}; {where}"

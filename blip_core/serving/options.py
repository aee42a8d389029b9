"""What a request may choose: the task and how captions are made. The settings that a model is packed with are its defaults."""

import json
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails

from blip_core.config.base import Config, Precision
from blip_core.config.capfilt import SamplerConfig
from blip_core.config.delivery import ServingConfig
from blip_core.config.intake import ImageLimits, TextLimits
from blip_core.config.params import Params

Task = Literal["caption", "match", "embed", "answer"]
CALIBRATION = "calibration.json"  # beside a filter
ANSWER = 64  # tokens of a caption by a model of others: it was not taught how short ours are
RENAMED = {"sampler": "name"}  # a field of SamplerConfig that goes by another name in a request


class BadRequest(ValueError):
    """What a client asked can't be done; the message tells it what was got and what was expected."""


class Settings(Config):
    """Packed with a served model: images and texts as ingest takes them, captions as evaluate made those of the metrics."""

    sampler: SamplerConfig
    precision: Precision
    batch_size: int = Field(ge=1)
    seed: int = Field(ge=0)
    prompt: str | None = Field(description="null: what the model was tuned or taught with")
    question: str = Field(description="to a model that judges by answering")
    max_tokens: int | None = Field(ge=4, description="a text is cut to this many, as in training; null: to what the model has places for")
    images: ImageLimits
    short_side: int | None
    quality: int
    format: Literal["keep", "jpeg"]
    texts: TextLimits
    limits: ServingConfig


class Options(Config):
    """Of one request, checked."""

    task: Task
    sampler: SamplerConfig
    num_captions: int = Field(ge=1)
    seed: int = Field(ge=0, lt=2**63)
    explain: bool


def packed_settings(model: Path, params: Params) -> Settings:
    """Those of a model folder and a params.yaml; one of its writers has the words for its captioner. ValueError when there is no such
    folder."""
    if not (model / "config.json").exists():
        raise ValueError(f"{model}: no config.json, so this is no model folder; name one that a stage made, as artifacts/models/g1")
    facts = json.loads((model / "config.json").read_text())
    writer = next((writer for writer in params.caption.writers if writer.captioner == str(model)), None)
    ours = "model" in facts or "task_model" in facts
    sampler = params.evaluate.sampler if ours else params.evaluate.sampler.model_copy(update={"max_tokens": ANSWER})
    return Settings(
        sampler=writer.sampler if writer else sampler,
        precision=params.evaluate.precision,
        batch_size=params.evaluate.batch_size,
        seed=params.seed,
        prompt=writer.prompt if writer else facts.get("prompt"),
        question=params.score.question,
        max_tokens=facts.get("max_tokens"),
        images=params.ingest.images,
        short_side=params.ingest.short_side,
        quality=params.ingest.quality,
        format=params.ingest.format,
        texts=params.ingest.texts,
        limits=params.register_.serving,
    )


def defaults(settings: Settings) -> dict[str, str | int | float | bool]:
    """Every name that a request may set, with the value that it has otherwise."""
    sampler = settings.sampler.model_dump()
    own = {name: sampler.pop(field) for name, field in RENAMED.items()}
    return {"task": "caption", **own, "num_captions": 1, **sampler, "seed": settings.seed, "explain": False}


def choose(asked: dict[str, Any], settings: Settings) -> Options:
    """Defaults overridden by what was asked. BadRequest names each value that can't be."""
    known = defaults(settings)
    if unknown := sorted(set(asked) - set(known)):
        raise BadRequest(f"params: {', '.join(unknown)}: unknown; known are {', '.join(known)}")
    values = known | asked
    sampler = {field: values[name] for name, field in _sampler_fields().items()}
    try:
        own = {name: values[name] for name in ("task", "num_captions", "seed", "explain")}
        options = Options(sampler=sampler, **own)
    except ValidationError as e:
        raise BadRequest("; ".join(_explain(fault) for fault in e.errors())) from None
    _check_work(options, settings.limits)
    return options


def _check_work(options: Options, limits: ServingConfig) -> None:
    sampler, most = options.sampler, limits.max_captions
    for name, value in (("num_captions", options.num_captions), ("beams", sampler.beams)):
        if value > most:
            raise BadRequest(f"params: {name}: {value}, at most {most} are allowed")
    if options.task == "caption" and sampler.name == "beam" and options.num_captions > sampler.beams:
        raise BadRequest(f"params: num_captions: {options.num_captions} of a search with {sampler.beams} beams; ask for more beams")
    if options.explain and options.task == "embed":
        raise BadRequest("params: explain: task embed says nothing of a pair that a map could show; expected task caption, match or answer")
    if sampler.min_tokens > sampler.max_tokens:
        raise BadRequest(f"params: min_tokens: {sampler.min_tokens} is more than max_tokens, {sampler.max_tokens}")


def _sampler_fields() -> dict[str, str]:
    """Name in a request to field of SamplerConfig."""
    other = {field: name for name, field in RENAMED.items()}
    return {other.get(field, field): field for field in SamplerConfig.model_fields}


def _explain(fault: ErrorDetails) -> str:
    field = str(fault["loc"][-1])
    name = next((n for n, f in RENAMED.items() if f == field), field)
    expected = f"one of {', '.join(get_args(Task))}" if name == "task" else fault["msg"]
    return f"params: {name}: got {fault['input']!r}; {expected}"

"""The sections `evaluate`, `decide` and `compare`: what a model is worth, and what follows."""

from typing import Annotated

from pydantic import Field

from blip_core.config.base import SLICES, THREADS, Config, Positive, Precision
from blip_core.config.capfilt import SamplerConfig

CAPTION_METRICS = ("cider", "rouge_l", "bleu1", "bleu2", "bleu3", "bleu4")
VAL_METRICS = (*(f"{way}_r{k}" for way in ("tr", "ir") for k in (1, 5, 10)), *CAPTION_METRICS)  # retrieval by ITC
METRICS = (*VAL_METRICS, *(f"itm_{metric}" for metric in VAL_METRICS if metric not in CAPTION_METRICS))  # of test: by ITM as well


class EvaluateConfig(Config):
    sampler: SamplerConfig
    rerank: Positive = Field(description="the k best by ITC that ITM ranks anew")
    batch_size: Positive
    bootstrap: Positive = Field(description="resamples of the images for the confidence intervals")
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    slices: tuple[str, ...] = Field(description=SLICES)
    precision: Precision
    threads: int = Field(ge=0, description=THREADS)
    timeout: Positive = Field(description="seconds that one of several processes waits for the others before it gives up")


class DecideConfig(Config):
    """Whether another round is run: a paired gain on val beyond its interval in one of the metrics at least, and such a loss in none.

    Captions that have collapsed, or a retrieval at chance, leave a gain in captions alone without weight (evaluation/alarms.py)."""

    metrics: tuple[str, ...] = Field(
        min_length=1, description="of evaluate on val: retrieval by ITC, CIDEr, ROUGE-L, BLEU; or of a task, as vqa.accuracy"
    )
    bootstrap: Positive
    confidence: Annotated[float, Field(gt=0.5, lt=1)]


class CompareConfig(Config):
    """When a challenger is better."""

    metrics: tuple[str, ...] = Field(
        min_length=1, description="of evaluate, or of a task, as vqa.accuracy: the paired gain must be beyond its interval in each"
    )
    margin: dict[str, float] = Field(description="metrics that may fall by this much at most")
    bootstrap: Positive
    confidence: Annotated[float, Field(gt=0.5, lt=1)]

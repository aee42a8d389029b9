"""The section `tasks`: the downstream tasks on which every model of the chain is tuned and measured; empty by default."""

from typing import Annotated, Literal

from pydantic import Field

from blip_core.config.base import THREADS, Config, Positive, Precision, Share
from blip_core.config.training import OptimConfig


class MeasureConfig(Config):
    """How a task is measured."""

    batch_size: Positive = Field(100, description="examples at a time")
    bootstrap: Positive = Field(1000, description="resamples of the pictures for the confidence intervals")
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    precision: Precision = "auto"
    threads: int = Field(1, ge=0, description=THREADS)
    slices: tuple[str, ...] = Field((), description="columns of the task's files: each of their values gets metrics of its own")


class VqaConfig(Config):
    """Questions about pictures (paper section 5.4; blip_core/tasks/vqa.py)."""

    kind: Literal["vqa"]
    optim: OptimConfig = Field(description="laid over training.optim; max_tokens is that of a question")
    label_smoothing: Share = 0.1
    max_answer_tokens: Annotated[int, Field(ge=3)] = Field(12, description="[DEC] and [SEP] included")
    answers: Literal["rank", "generate"] = Field(
        "rank", description="rank the answers that train has (or those in answers.txt, one a line), or write one freely"
    )
    best: Positive = Field(128, description="rank: so many answers, by their first token, are scored whole")
    beams: Positive = Field(3, description="generate: of the search")
    rules: Literal["2021", "2017"] = Field("2021", description="of the official accuracy (blip_core/evaluation/answers.py)")
    measure: MeasureConfig = MeasureConfig()


TaskConfig = VqaConfig

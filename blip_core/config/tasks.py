"""The section `tasks`: the downstream tasks on which every model of the chain is tuned and measured; empty by default.

METRICS of a kind: what `compare` and `decide` may name of it, as NAME.accuracy.
"""

from typing import Annotated, ClassVar, Literal

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

    METRICS: ClassVar = ("accuracy",)
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


class ClassifyConfig(Config):
    """Pictures told by the names of their classes, without tuning (blip_core/tasks/classify.py)."""

    METRICS: ClassVar = ("top1", "top5", "mean_class_recall", "map")
    kind: Literal["classify"]
    templates: tuple[Annotated[str, Field(pattern=r"\{\}")], ...] = Field(
        ("a photo of a {}.",), min_length=1, description="prompts of each class, its name at {}; a class may have its own in classes.csv"
    )
    max_tokens: Annotated[int, Field(ge=3)] = Field(35, description="of a prompt, [CLS] and [SEP] included")
    rerank: int = Field(0, ge=0, description="so many classes of each picture, the best by ITC, are ranked anew by ITM; 0: none")
    timeout: Positive = Field(600, description="seconds that one of several processes waits for the others before it gives up")
    measure: MeasureConfig = MeasureConfig()


class NlvrConfig(Config):
    """Whether a sentence is true of two pictures (paper section 5.5; blip_core/tasks/nlvr.py)."""

    METRICS: ClassVar = ("accuracy", "consistency")
    kind: Literal["nlvr"]
    optim: OptimConfig = Field(description="laid over training.optim")
    swap: Share = Field(
        0.5, description="share of the pairs of a training step whose pictures change places, with left and right in the text"
    )
    measure: MeasureConfig = MeasureConfig()


TaskConfig = Annotated[VqaConfig | ClassifyConfig | NlvrConfig, Field(discriminator="kind")]

"""The section `tasks`: the downstream tasks on which every model of the chain is tuned and measured; empty by default.

METRICS of a kind: what `compare` and `decide` may name of it, as NAME.accuracy.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from blip_core.config.base import THREADS, Config, Positive, Precision, Share
from blip_core.config.contrast import ContrastConfig
from blip_core.config.training import OptimConfig


def _recalls(*ways: str) -> tuple[str, ...]:
    """By ITC and by ITM."""
    return tuple(f"{prefix}{way}_r{k}" for prefix in ("", "itm_") for way in ways for k in (1, 5, 10))


def _untuned(metrics: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"zero_shot_{metric}" for metric in metrics)


_RECALLS, _CAPTION_METRICS = _recalls("tr", "ir"), ("cider", "rouge_l", "bleu4")


class MeasureConfig(Config):
    """How a task is measured."""

    batch_size: Positive = Field(100, description="examples at a time")
    bootstrap: Positive = Field(1000, description="resamples of the pictures for the confidence intervals")
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    precision: Precision = "auto"
    threads: int = Field(1, ge=0, description=THREADS)
    slices: tuple[str, ...] = Field((), description="columns of the task's files: each of their values gets metrics of its own")


class TunedConfig(Config):
    """What every kind has that tunes a model."""

    optim: OptimConfig = Field(description="laid over training.optim; max_tokens is that of a question, sentence or caption")
    image_size: Positive | None = Field(
        None, description="side of the pictures in pixels, the position embeddings interpolated as the authors do; null: that of the model"
    )
    measure: MeasureConfig = MeasureConfig()


class AnswersConfig(TunedConfig):
    """How questions are answered."""

    METRICS: ClassVar = ("accuracy",)
    label_smoothing: Share = 0.1
    max_answer_tokens: Annotated[int, Field(ge=3)] = Field(12, description="[DEC] and [SEP] included")
    answers: Literal["rank", "generate"] = Field(
        "rank", description="rank the answers that train has (or those in answers.txt, one a line), or write one freely"
    )
    best: Positive = Field(128, description="rank: so many answers, by their first token, are scored whole")
    beams: Positive = Field(3, description="generate: of the search")
    rules: Literal["2021", "2017"] = Field("2021", description="of the official accuracy (blip_core/evaluation/answers.py)")


class VqaConfig(AnswersConfig):
    """Questions about pictures (paper section 5.4; blip_core/tasks/vqa.py)."""

    kind: Literal["vqa"]


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


class NlvrConfig(TunedConfig):
    """Whether a sentence is true of two pictures (paper section 5.5; blip_core/tasks/nlvr.py)."""

    METRICS: ClassVar = ("accuracy", "consistency")
    kind: Literal["nlvr"]
    swap: Share = Field(
        0.5, description="share of the pairs of a training step whose pictures change places, with left and right in the text"
    )


class RetrievalConfig(TunedConfig):
    """Texts found by a picture and pictures by a text (paper section 5.1; blip_core/tasks/retrieval.py)."""

    METRICS: ClassVar = (*_RECALLS, *_untuned(_RECALLS))
    kind: Literal["retrieval"]
    contrast: ContrastConfig = Field(description="laid over training.contrast")
    rerank: Positive = Field(128, description="so many, the best by ITC, are ranked anew by ITM, both ways; the paper has 256 for COCO")


class CaptioningConfig(TunedConfig):
    """Captions of pictures (paper section 5.2; blip_core/tasks/caption.py)."""

    METRICS: ClassVar = (*_CAPTION_METRICS, *_untuned(_CAPTION_METRICS))
    kind: Literal["caption"]
    prompt: str = Field("a picture of ", description="put before each caption; its tokens are masked in the loss")
    label_smoothing: Share = 0.1
    beams: Positive = 3
    min_tokens: int = Field(1, ge=0, description="new tokens; the authors' least length of 5 counts the prompt's four")
    max_tokens: Positive = Field(16, description="new tokens; likewise their 20")
    repetition_penalty: Annotated[float, Field(ge=1)] = Field(
        1.0, description="of what is written already; the authors have 1.1 for NoCaps"
    )


FRAMES = "of each video, those in the middle of so many equal parts"


class VideoMeasureConfig(MeasureConfig):
    """How a retrieval among videos is measured."""

    batch_size: Positive = Field(8, description="videos at a time, each with all its frames")


class VideoRetrievalConfig(Config):
    """Texts found by a video and videos by a text, without tuning (paper section 5.7; blip_core/tasks/video_retrieval.py)."""

    METRICS: ClassVar = (*_recalls("v2t", "t2v"), "v2t_mdr", "t2v_mdr", "itm_v2t_mdr", "itm_t2v_mdr")
    kind: Literal["video_retrieval"]
    frames: Positive = Field(8, description=FRAMES)
    max_tokens: Annotated[int, Field(ge=3)] = Field(35, description="of a text, [CLS] and [SEP] included")
    rerank: Positive = Field(128, description="so many, the best by ITC, are ranked anew by ITM, both ways")
    timeout: Positive = Field(600, description="seconds that one of several processes waits for the others before it gives up")
    measure: VideoMeasureConfig = VideoMeasureConfig()


class VideoQaConfig(AnswersConfig):
    """Questions about videos, learned from pictures (paper section 5.7; blip_core/tasks/video_qa.py)."""

    kind: Literal["video_qa"]
    frames: Positive = Field(16, description=FRAMES)


TaskConfig = Annotated[
    VqaConfig | ClassifyConfig | NlvrConfig | RetrievalConfig | CaptioningConfig | VideoRetrievalConfig | VideoQaConfig,
    Field(discriminator="kind"),
]

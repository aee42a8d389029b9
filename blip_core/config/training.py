"""The sections `training`, `pretrain`, `tune_captioner` and `tune_filter`."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from blip_core.config.base import MODELS, OFF, THREADS, Config, Positive, Precision, Question, Share
from blip_core.config.contrast import ContrastConfig
from blip_core.config.reading import Place, laid_over

# part of the section `training` to the sections that take it; what a section says itself wins, key by key
SHARED = {
    "optim": ("pretrain", "tune_captioner", "tune_filter"),
    "contrast": ("pretrain", "tune_filter"),
    "language": ("pretrain", "tune_captioner"),
}
MOST_LENGTHS = 8  # graphs of one function that torch.compile keeps by default


class RandAugmentConfig(Config):
    """RandAugment as the public BLIP has it (blip_core/training/augment.py). The paper: 2 operations, magnitude 5."""

    operations: Positive = Field(description="that are drawn for each picture; each is done with probability one half")
    magnitude: float = Field(ge=0, le=10, description="10: turned by 30 degrees, sheared by 0.3, moved by 10 pixels, brightness x 1.9")


class AugmentConfig(Config):
    crop: tuple[Share, Share] = Field(description="area range of the random resized crop; [1, 1] keeps the whole picture")
    shift: int = Field(ge=0, description="random shift in pixels of the resized image, edges repeated")
    brightness: Share = Field(description="each image is scaled by 1 +- this, and each colour channel by half of it")
    flip: bool = Field(description="mirror half of the images; wrong where captions say left and right")
    randaugment: RandAugmentConfig | None = Field(description="null: none")


class OptimConfig(Config):
    steps: Positive
    batch_size: Annotated[int, Field(ge=2)] = Field(description="images per step over all processes and micro-batches")
    accumulate: Positive = Field(
        description="micro-batches that make a step, one after the other; ITC and ITM see the pairs of one at a time"
    )
    recompute: int = Field(
        ge=0,
        description="last blocks of the ViT that keep no activations but compute them twice: less memory, equal gradients. Of `lora` "
        "any number but 0 means every block of the model",
    )
    lr: float = Field(gt=0, description="peak learning rate")
    min_lr: float = Field(ge=0)
    warmup: Share = Field(description="share of the steps with a linearly rising rate; never cut short")
    schedule: Literal["cosine", "step"] = Field(description="after the warm-up: cosine to min_lr, or the paper's decay in steps")
    decay_rate: float = Field(gt=0, le=1, description="schedule step: factor of the rate; the paper has 0.85")
    decay_every: Positive = Field(description="schedule step: steps between two decays; the paper decays once per epoch")
    weight_decay: float = Field(ge=0)
    betas: tuple[Share, Share]
    clip_norm: float = Field(gt=0, description="of the gradient, over all parameters")
    max_tokens: Annotated[int, Field(ge=4)] = Field(description="a text is cut to this many, special tokens included")
    precision: Precision = Field(
        description="bf16 is autocast on CPU or CUDA, weights stay fp32; auto: bf16 where the device has instructions for it"
    )
    compile: bool | Literal["step"] = Field(
        description="torch.compile, of each block (true) or of a whole step, forwards and backwards (`step`: pretrain without `optional`, "
        "tune_captioner and tune_filter of a BLIP); minutes at the start, other last bits; benchmarks/speed/gpu.py measures what it gains"
    )
    pad_to: Positive = Field(
        8, description="compile step: texts are padded to a multiple of so many tokens, or max_tokens; each length is compiled for itself"
    )
    threads: int = Field(ge=0, description=THREADS)
    workers: int | None = Field(
        ge=0, description="data loading processes; null takes the cores that `threads` leaves. The samples do not depend on it"
    )
    checkpoint_every: Positive = Field(description="steps between checkpoints of a running training")
    log_every: Positive = Field(description="steps between lines of the history")
    health: Annotated[Literal["warn", "stop", "off"], OFF] = Field(
        description="when a training learns nothing (blip_core/training/health.py): say so, end it, or neither"
    )
    timeout: Positive = Field(description="seconds that one of several processes waits for the others before it gives up")
    augment: AugmentConfig

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr is {self.min_lr:g}, more than lr, {self.lr:g}")
        if self.compile == "step" and len(self.lengths) > MOST_LENGTHS:
            raise ValueError(
                f"compile is step, pad_to {self.pad_to}, max_tokens {self.max_tokens}: {len(self.lengths)} lengths of texts to compile, "
                f"and torch.compile takes {MOST_LENGTHS}; set pad_to to {math.ceil(self.max_tokens / MOST_LENGTHS)} or more"
            )
        return self

    @property
    def lengths(self) -> tuple[int, ...]:
        """Those that texts are padded to where whole steps are compiled."""
        return (*range(self.pad_to, self.max_tokens, self.pad_to), self.max_tokens)


class LanguageConfig(Config):
    """LM (paper section 3.2)."""

    label_smoothing: Share
    prompt: str = Field(
        description="put before each caption; its tokens are masked in the loss. Of `lora`: the instruction or task token; '' is to "
        "describe the picture in one sentence"
    )


class InitFromConfig(Config):
    """Weights to begin with, as the paper does (blip_core/weights/load.py), or what the texts say; the rest stays random."""

    vit: Path | None = Field(description="folder of transformers with an ImageNet ViT or DeiT, or DeiT's .pth file")
    bert: Path | None = Field(description="folder of transformers with BERT; its tokenizer must be ingest.vocab")
    words: bool = Field(
        False, description="token embeddings begin as what the training's texts say of which words go together: where texts are few"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.words and self.bert is not None:
            raise ValueError(f"words is true and bert names {self.bert}: both begin the token embeddings; leave one of them out")
        return self


class ContrastiveDecodingConfig(Config):
    """NCD: the decoder must find a caption more probable than noisy copies of it (blip_core/training/optional.py)."""

    weight: float = Field(gt=0, description="of the loss in the sum")
    copies: Positive = Field(description="noisy copies of each caption; each costs a pass of the decoder")
    replaced: float = Field(gt=0, le=1, description="share of the words of a copy that others of the batch stand for, at least one")


class DistillationConfig(Config):
    """A large MED teaches this one (blip_core/training/distil.py)."""

    teacher: Path = Field(description=f"{MODELS[: MODELS.rindex(', or')]}; of the same vocabulary")
    itc: float = Field(ge=0, description="weight of the loss by the teacher's similarities; 0 leaves it out")
    itm: float = Field(ge=0, description="likewise, by its logits of pair or no pair")
    lm: float = Field(ge=0, description="likewise, by its logits of each next token")

    @model_validator(mode="after")
    def _teaches(self) -> Self:
        if not self.itc + self.itm + self.lm:
            raise ValueError("itc, itm and lm are all 0, so the teacher teaches nothing; expected one above 0, or distillation: null")
        return self


class OptionalConfig(Config):
    """Objectives that the paper does not have, each off by default."""

    masked_tokens: Share = Field(0.0, description="share of a text's tokens that are [MASK] where ITC and ITM read it; LM reads it whole")
    contrastive_decoding: ContrastiveDecodingConfig | None = None
    distillation: DistillationConfig | None = None


class PretrainConfig(Config):
    """ITC + ITM + LM, from random weights or `init_from`."""

    init_from: InitFromConfig
    optim: OptimConfig
    stage_2: OptimConfig | None = Field(None, description="of BLIP-2's stage 2, where model.language is set: what differs from `optim`")
    contrast: ContrastConfig
    language: LanguageConfig
    optional: OptionalConfig | None = Field(None, description="further objectives; null: none (docs/objectives.md)")
    human_share: Share = Field(description="of each batch; the rest comes from the crawl's images")
    synthetic_share: Share = Field(description="of the rest: synthetic and fused texts by their numbers, where the generation holds any")


class LoraConfig(Config):
    """An adapter upon a frozen model of others: to each of some layers a product of two thin matrices is added (LoRA, Hu et al. 2021)."""

    base: Path = Field(description="folder of any model that transformers lists for image-text-to-text")
    rank: Positive = Field(description="of the product, in each layer")
    alpha: float = Field(gt=0, description="the product is scaled by alpha / rank")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(description="of what the product is applied to")
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="linear layers that get one: all but the output layer, or those with these names, as [q_proj, v_proj]"
    )


class JudgeLoraConfig(LoraConfig):
    question: Question = Field(description="what the judge learns to answer of each {text}, and is asked from then on")


class _Tuned(Config):
    """A tuning of the round's model, or of an adapter."""

    optim: OptimConfig
    lora: LoraConfig | None = None

    @model_validator(mode="after")
    def _compiles_blocks_of_ours(self) -> Self:
        if self.lora is not None and self.optim.compile:
            raise ValueError("compile is set, but it compiles a BLIP alone, and lora.base is none; set optim.compile: false here")
        return self


class CaptionerConfig(_Tuned):
    """Fine-tuning with LM alone on the clean set (paper section 3.3)."""

    language: LanguageConfig
    lora: LoraConfig | None = Field(None, description="null: the round's BLIP is tuned; else an adapter upon another model is")


class FilterConfig(_Tuned):
    """Fine-tuning with ITC and ITM on the clean set (paper section 3.3)."""

    contrast: ContrastConfig
    lora: JudgeLoraConfig | None = Field(
        None, description="null: the round's BLIP is tuned; else an adapter upon another model, by true and false pairs; without `contrast`"
    )


class SharedConfig(Config):
    """What the trainings have in common. Checked as a part of each: a value may be missing here where every training names its own."""

    optim: dict[str, Any] = Field({}, description="of OptimConfig")
    contrast: dict[str, Any] = Field({}, description="of ContrastConfig")
    language: dict[str, Any] = Field({}, description="of LanguageConfig")


def with_shared(values: dict[str, Any]) -> dict[str, Any]:
    """The values of params.yaml with each training's own laid over those of `training`. Nothing is changed in place."""
    shared = values.get("training")
    if not isinstance(shared, dict):
        return values
    filled = dict(values)
    if isinstance(tasks := values.get("tasks"), dict):
        filled["tasks"] = {name: _shared_by_task(task, shared) for name, task in tasks.items()}
    for part, sections in SHARED.items():
        for name in sections:
            section = filled.get(name)
            if isinstance(shared.get(part), dict) and isinstance(section, dict) and isinstance(section.get(part, {}), dict):
                filled[name] = {**section, part: laid_over(shared[part], section.get(part, {}))}
    return filled


def with_stage_2(values: dict[str, Any]) -> dict[str, Any]:
    """The values with `pretrain.stage_2` laid over `pretrain.optim`."""
    section = values.get("pretrain")
    if not isinstance(section, dict) or not all(isinstance(section.get(part), dict) for part in ("optim", "stage_2")):
        return values
    return {**values, "pretrain": {**section, "stage_2": laid_over(section["optim"], section["stage_2"])}}


def _shared_by_task(task: object, shared: dict[str, Any]) -> object:
    """A task's own optim laid over what the trainings share, and a retrieval's contrast; a task that trains nothing names no optim."""
    if not isinstance(task, dict) or not isinstance(task.get("optim"), dict):
        return task
    parts = ("optim", "contrast") if task.get("kind") == "retrieval" else ("optim",)
    laid = {p: laid_over(shared[p], own) for p in parts if isinstance(shared.get(p), dict) and isinstance(own := task.get(p, {}), dict)}
    return {**task, **laid}


def shared_place(values: dict[str, Any], place: Place) -> Place:
    """Where a value that a training has at `place` stands in the file: in its own section, or in `training`."""
    if len(place) < 3 or place[0] not in SHARED.get(str(place[1]), ()):
        return place
    own = values[place[0]].get(place[1], {}) if isinstance(values.get(place[0]), dict) else {}
    return (
        place if _holds(own, place[2:]) or not _holds(values.get("training", {}).get(place[1], {}), place[2:]) else ("training", *place[1:])
    )


def _holds(values: object, place: Place) -> bool:
    for key in place:
        if not isinstance(values, dict) or key not in values:
            return False
        values = values[key]
    return True

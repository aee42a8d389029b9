"""Every parameter of params.yaml: its type, its bounds and what it means. Values live in params.yaml alone.

The classes are frozen and refuse unknown keys, so a misspelt parameter stops a run before it starts. Nothing here imports
torch: each verb checks the whole file in milliseconds.
"""

import difflib
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from blip_core.runtime.cores import loading_workers

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Source = Literal["web", "human", "synthetic"]
WebKind = Literal["clean", "terse", "mismatch", "boilerplate", "partial", "general"]  # of the sample's web texts
Screen = Annotated[Literal["off", "mark", "drop"], BeforeValidator(lambda v: "off" if v is False else v)]  # YAML reads off as false
Place = str | tuple[str, ...]
Engine = Literal["local", "ray"]
Precision = Literal["auto", "fp32", "bf16"]  # blip_core/compute/precision.py
CalibrationMethod = Literal["logistic", "temperature", "isotonic"]
MODELS = "the folder of a BLIP, ours or of transformers, a .pth file of the authors, or models:/NAME/VERSION of the registry"
Format = Literal["webdataset", "karpathy", "salesforce", "coco", "imagefolder", "parquet", "table", "sidecar"]  # blip_core/intake/formats

# of every stage that computes with tensors. The demo has 1: a file that several machines share must not mean another sum on each
THREADS = (
    "CPU threads; 0 takes every core that the process may use (blip_core/runtime/cores.py). Their number changes sums in their last bits, "
    "so bit-equal reruns need an equal one, and 0 may mean another on another machine"
)
ENGINE = "local: one shard after the other, here; ray: over the machines of a Ray cluster (docs/scale.md), to the same bytes"


class Config(BaseModel):
    """Frozen settings that refuse unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


AnyConfig = TypeVar("AnyConfig", bound=Config)


class SampleConfig(Config):
    """The built-in sample world (blip_core/sample/write.py)."""

    seed: int = Field(ge=0, description="another seed is another world sample")
    num_web: Positive
    num_train: Positive
    num_val: Positive
    num_test: Positive
    web_kinds: dict[WebKind, Share] = Field(
        description="shares of the crawl's texts: clean and terse are true, the others noise of these kinds (scene_texts.py)"
    )

    @field_validator("web_kinds")
    @classmethod
    def _whole(cls, kinds: dict[str, float]) -> dict[str, float]:
        if abs(sum(kinds.values()) - 1) > 1e-6:
            raise ValueError(f"the shares add up to {sum(kinds.values()):g}, expected 1")
        return kinds


class ImageLimits(Config):
    """What ingest accepts as an image; checked on the header, before any pixel is decoded."""

    min_side: Positive = Field(description="pixels; smaller images are set aside as too_small")
    max_side: Positive = Field(description="pixels")
    max_pixels: Positive = Field(description="width x height; more is set aside as bomb")
    max_aspect: float = Field(ge=1, description="long side / short side")
    max_bytes: Positive = Field(description="of the encoded file")


class TextLimits(Config):
    """What ingest accepts as a text, and how it is normalised."""

    max_chars: Positive
    rule: Literal["keep", "paper"] = Field(description="keep: NFC and single spaces; paper: BLIP's pre_caption on top of that")
    max_words: Positive = Field(description="the paper's rule cuts a caption to this many words")


class ScreensConfig(Config):
    """Texts that say nothing of their picture, told without a look at it (blip_core/texts/screens.py).

    off: nobody looks, the column stays empty. mark: the text's column says whether the screen hits. drop: such a text also is
    neither scored nor trained on; its row stays, with the screen's name for a reason. Human texts are not screened."""

    boilerplate: Screen = Field(description="the same text at many images")
    file_name: Screen = Field(description="IMG_1234.jpg, a number, an id and no more")
    markup: Screen = Field(description="HTML tags and entities, URLs, e-mail addresses")
    repeats: Screen = Field(description="a loop: up to four words that stand several times in a row")
    language: Screen = Field(description="each text is tagged with its language; a text in one that `languages` lacks is hit")
    languages: tuple[Annotated[str, Field(pattern="^[a-z]{2}$")], ...] | None = Field(
        description="ISO 639-1 codes of those that stay; null: any. A text too short to tell (und) stays in any case"
    )
    min_confidence: Share = Field(description="of the language's tag; a text with less is und")

    @model_validator(mode="after")
    def _fits(self):
        if self.language == "drop" and not self.languages:
            raise ValueError("language is drop, but languages names none that stay; list their ISO 639-1 codes, as [en]")
        return self


class WebScreensConfig(ScreensConfig):
    max_images: Positive | None = Field(description="boilerplate: the same text at more images than this; null leaves it to max_share")
    max_share: Share = Field(description="boilerplate: the same text at more than this share of the images, and at two at least")
    max_repeat: int = Field(ge=2, description="repeats: so many times in a row")


class FieldsConfig(Config):
    """Columns or keys by name, where the names in use (blip_core/intake/formats/columns.py) do not find the right ones; null searches."""

    image: str | None
    text: str | None
    split: str | None


class NearCopiesConfig(Config):
    """Copies of a picture whose bytes differ: encoded anew, resized, cropped a little (blip_core/intake/duplicates.py).

    Distances are the bits that may differ in each of two hashes of 64: the more, the more copies are found and the more pictures that
    are none."""

    heldout_distance: int | None = Field(
        ge=0, le=16, description="copies of held-out pictures, mirrored ones too, leave the training side; null: only equal bytes do"
    )
    web: Screen = Field(
        description="copies within the crawl, all but the first of each. mark: they count as one picture (image_id), so that their texts "
        "are never each other's negatives; drop: they are set aside with their texts; copies of the same bytes stay in any case"
    )
    web_distance: int = Field(ge=0, le=16)

    @property
    def look(self) -> bool:
        return self.heldout_distance is not None or self.web != "off"


class SplitConfig(Config):
    """Train, val and test of the clean set."""

    by: Literal["declared", "dealt"] = Field(
        description="declared: by field, file or folder name, and images without a word of it are dealt; dealt: all are"
    )
    train: float = Field(gt=0, description="share of the images that are dealt; all texts of an image go together")
    val: float = Field(gt=0)
    test: float = Field(gt=0)
    seed: int = Field(ge=0, description="another seed deals otherwise")


class RemoteConfig(Config):
    """How objects are fetched from S3 (storage.py) and elsewhere (elsewhere.py). Endpoint and credentials come from the environment."""

    attempts: Positive = Field(description="of a request, and of an answer that breaks before its first byte; waits grow exponentially")
    timeout: Positive = Field(description="seconds without a byte")
    connections: Positive = Field(description="ranges that a process fetches side by side")


class IngestConfig(Config):
    web: Place = Field(description="the noisy crawl: a folder below the data folder, s3://… or another URL, or tars (sources.py)")
    clean: Place = Field(description="the clean set with human captions, likewise")
    web_format: Format | None = Field(description="of the crawl; null takes the first format that recognises its files")
    clean_format: Format | None = Field(description="of the clean set; null as above")
    web_fields: FieldsConfig
    clean_fields: FieldsConfig
    split: SplitConfig
    shard_images: Positive = Field(description="images in a shard at most")
    short_side: Positive | None = Field(description="larger images are resized to this short side; null keeps their size")
    format: Literal["keep", "jpeg"] = Field(
        description="keep: what needs no change keeps its pixels, as JPEG, PNG or WebP; jpeg: PNG and WebP become JPEG (images.py)"
    )
    quality: int = Field(ge=50, le=100, description="of JPEGs that must be encoded anew")
    images: ImageLimits
    texts: TextLimits
    screens: WebScreensConfig
    near_copies: NearCopiesConfig
    remote: RemoteConfig
    max_rejected: Share = Field(description="a larger share set aside in quarantine, of either part, fails the stage")
    vocab: Path | None = Field(description="a BERT vocab.txt; null builds one from the ingested texts")
    vocab_size: int = Field(ge=50, description="entries of a vocabulary that is built, at most")


class ValidateConfig(Config):
    min_images: Positive = Field(description="of each source, web and human")
    min_heldout_images: Positive = Field(description="of each held-out split, val and test")
    max_empty: Share = Field(description="share of texts without a single letter or digit")
    max_duplicate: Share = Field(description="share of web images whose bytes occur more than once")


class VisionConfig(Config):
    """ViT (Dosovitskiy et al. 2021), pre-norm."""

    image_size: Positive
    patch_size: Positive
    width: Positive
    depth: Positive
    heads: Positive
    mlp_ratio: float = Field(gt=0)
    activation: Literal["gelu", "relu"]
    norm_eps: float = Field(gt=0)
    drop_path: Share = Field(description="stochastic depth rate of the last block, linear from 0")

    @model_validator(mode="after")
    def _fits(self):
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self


class TextConfig(Config):
    """The BERT-shaped text transformer of MED, post-norm."""

    width: Positive
    depth: Positive
    heads: Positive
    mlp_width: Positive
    max_positions: Positive
    activation: Literal["gelu", "relu"]
    norm_eps: float = Field(gt=0)
    dropout: Share

    @model_validator(mode="after")
    def _fits(self):
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self


class InitConfig(Config):
    """Standard deviations of the random initialisation (BERT and ViT use 0.02 throughout)."""

    weight: float = Field(gt=0)
    patch: float = Field(gt=0, description="patch embedding")
    image_position: float = Field(gt=0)
    token: float = Field(gt=0)
    text_position: float = Field(gt=0)


class ModelConfig(Config):
    """Sizes of BLIP. The vocabulary's size is not here: it comes with the tokenizer."""

    vision: VisionConfig
    text: TextConfig
    embed_dim: Positive = Field(description="of the ITC space (256 in the paper)")
    init: InitConfig


class AugmentConfig(Config):
    crop: tuple[Share, Share] = Field(description="area range of the random resized crop; [1, 1] keeps the whole picture")
    shift: int = Field(ge=0, description="random shift in pixels of the resized image, edges repeated")
    brightness: Share = Field(description="each image is scaled by 1 +- this, and each colour channel by half of it")
    flip: bool = Field(description="mirror half of the images; wrong where captions say left and right")


class OptimConfig(Config):
    steps: Positive
    batch_size: Annotated[int, Field(ge=2)] = Field(description="images per step over all processes and micro-batches")
    accumulate: Positive = Field(
        description="micro-batches that make a step, one after the other; ITC and ITM see the pairs of one at a time"
    )
    recompute: int = Field(
        ge=0, description="last blocks of the ViT that keep no activations but compute them twice: less memory, equal gradients"
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
    compile: bool = Field(
        description="torch.compile of each block: minutes at the start, other last bits; benchmarks/speed/gpu.py measures what it gains"
    )
    threads: int = Field(ge=0, description=THREADS)
    workers: int = Field(
        ge=0, description="data loading processes; null takes the cores that `threads` leaves. The samples do not depend on it"
    )
    checkpoint_every: Positive = Field(description="steps between checkpoints of a running training")
    log_every: Positive = Field(description="steps between lines of the history")
    health: Literal["warn", "stop", "off"] = Field(
        description="when a training learns nothing (blip_core/training/health.py): say so, end it, or neither"
    )
    timeout: Positive = Field(description="seconds that one of several processes waits for the others before it gives up")
    augment: AugmentConfig

    @field_validator("workers", mode="before")
    @classmethod
    def _cores_left(cls, workers: object, info: ValidationInfo) -> object:
        return loading_workers(threads=info.data.get("threads", 1)) if workers is None else workers


class ContrastConfig(Config):
    """ITC and ITM (paper section 3.2; momentum, queue and soft labels as in ALBEF, section 3.2 there)."""

    queue_size: int = Field(ge=0, description="features of past batches kept as further negatives")
    momentum: Share = Field(description="of the exponential moving average that makes the momentum encoder")
    alpha: Share = Field(description="weight of the momentum encoder's soft targets")
    alpha_ramp: Share = Field(description="alpha rises linearly from 0 over this share of the steps")
    hardness_ramp: Share = Field(
        description="ITM negatives go from uniform to proportional to similarity over this share of the steps; 0: hard at once (paper)"
    )
    temperature: float = Field(gt=0, description="initial value; learned within temperature_range")
    temperature_range: tuple[float, float]


class LanguageConfig(Config):
    """LM (paper section 3.2)."""

    label_smoothing: Share
    prompt: str = Field(description="put before each caption; its tokens are masked in the loss")


class InitFromConfig(Config):
    """Weights to begin with, as the paper does; null stays random (blip_core/weights/load.py)."""

    vit: Path | None = Field(description="folder of transformers with an ImageNet ViT or DeiT, or DeiT's .pth file")
    bert: Path | None = Field(description="folder of transformers with BERT; its vocab.txt must be ingest.vocab")


class PretrainConfig(Config):
    """ITC + ITM + LM, from random weights or `init_from`."""

    init_from: InitFromConfig
    optim: OptimConfig
    contrast: ContrastConfig
    language: LanguageConfig
    human_share: Share = Field(description="of each batch; the rest comes from the crawl's images")
    synthetic_share: Share = Field(description="of the rest: synthetic texts, where the generation holds any")


class CaptionerConfig(Config):
    """Fine-tuning with LM alone on the clean set (paper section 3.3)."""

    optim: OptimConfig
    language: LanguageConfig


class FilterConfig(Config):
    """Fine-tuning with ITC and ITM on the clean set (paper section 3.3)."""

    optim: OptimConfig
    contrast: ContrastConfig


class CalibrateConfig(Config):
    """What the filters' scores mean, by half of the held-out val pairs and what people said (blip_core/selection/calibration.py)."""

    method: CalibrationMethod = Field(
        description="logistic: on ITM and ITC together; temperature: the ITM logit divided by one number; isotonic: logistic made monotone"
    )
    target_precision: Share = Field(description="for which a threshold is found: assemble.threshold: calibrated takes it")
    bootstrap: Positive = Field(description="resamples of the pictures for the intervals of AUC, ECE, precision and recall")
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    controls_per_image: Positive = Field(description="pairs of each kind, true and false, made per held-out image")
    label_share: Share = Field(
        description="weight of people's labels in the calibration, where there are any (docs/review.md); the planted pairs have the rest"
    )
    min_labels: Positive = Field(description="right ones and wrong ones of a source, each; with fewer the source's labels don't count")


class SamplerConfig(Config):
    name: Literal["nucleus", "beam"]
    # beyond these bounds the numbers of fp32 end and a token's probability is none
    p: float = Field(ge=0.001, le=1, description="nucleus: the smallest set of tokens with this much probability; 1 leaves all to top_k")
    top_k: int = Field(ge=0, description="nucleus: only so many of the most probable tokens; 0: any")
    temperature: float = Field(ge=0.001, le=1000, description="nucleus: of the softmax; below 1 is surer, above 1 more diverse")
    beams: Positive
    min_tokens: int = Field(ge=0, description="new tokens, prompt not counted")
    max_tokens: Positive
    repetition_penalty: float = Field(ge=0.001, le=1000)

    @property
    def label(self) -> str:
        """As the candidates carry it."""
        if self.name == "beam":
            return f"beam {self.beams}"
        shape = [f"p={self.p}"] + [f"k={self.top_k}"] * (self.top_k > 0) + [f"t={self.temperature}"] * (self.temperature != 1)
        return " ".join(["nucleus", *shape])


class WriterConfig(Config):
    """A captioner and how it writes."""

    captioner: str = Field(description=f"tuned: the round's own; else {MODELS}")
    prompt: str | None = Field(description="put before each caption, and no part of it; null: the one it was tuned with, if that is known")
    sampler: SamplerConfig
    num_candidates: Positive = Field(description="captions per image")

    @model_validator(mode="after")
    def _fits(self):
        if self.sampler.name == "beam" and self.num_candidates > self.sampler.beams:
            raise ValueError(
                f"num_candidates is {self.num_candidates}, but a search with {self.sampler.beams} beams finds no more captions"
            )
        return self


class RayConfig(Config):
    """The workers of a Ray cluster. Each holds the models once and takes one shard at a time; none of it changes a result."""

    workers: Positive = Field(description="at most; there are as many as the cluster has room for")
    cpus: Positive = Field(description="of a worker: as many as `threads`, and one or two that decode pictures")
    gpus: float = Field(ge=0, description="of a worker: 1 on GPUs, a part where several workers share one, 0 on the CPU")


class CaptionConfig(Config):
    engine: Engine = Field(description=ENGINE)
    ray: RayConfig
    writers: tuple[WriterConfig, ...] = Field(min_length=1, description="their candidates are numbered one after the other")
    batch_size: Positive = Field(description="images at a time")
    precision: Precision
    threads: int = Field(ge=0, description=THREADS)


class ScoreConfig(Config):
    engine: Engine = Field(description=ENGINE)
    ray: RayConfig
    filters: tuple[str, ...] = Field(
        min_length=1,
        description=f"tuned: the round's own; else {MODELS}, or a CLIP or SigLIP folder of transformers. The scores of the first stand in "
        "itm and itc, the others are opinions",
    )
    controls_per_image: Positive = Field(description="pairs of each kind, true and false, planted per held-out image")
    batch_size: Positive = Field(description="images at a time")
    precision: Precision
    threads: int = Field(ge=0, description=THREADS)


class AssembleConfig(Config):
    """Which candidates make the next generation."""

    score: Literal["match", "itm", "itc"] = Field(
        description="match: calibrated P(match); itm: the raw ITM probability, as the authors; itc: cosine"
    )
    threshold: dict[Literal["web", "synthetic"], float | Literal["calibrated"]] = Field(
        description="a candidate below is dropped; calibrated: the filter's own for calibrate.target_precision, a P(match)"
    )
    votes: Positive = Field(description="so many of score.filters must find a text at its threshold or above; 1 with a single filter")
    keep_best: Positive | None = Field(
        description="of those that pass, only so many of an image, by score; null: all. With thresholds of 0 it is BLIP-2's way"
    )
    sources: tuple[Literal["web", "synthetic"], ...] = Field(description="which candidates take part")
    screens: ScreensConfig = Field(
        description="of synthetic texts; drop also takes web texts that ingest has marked. Loops and overused texts of a captioner "
        "are dropped in any case"
    )
    max_repeat: int = Field(ge=2, description="a synthetic text is a loop when one to four words stand in it this many times in a row")
    max_share: Share = Field(description="a synthetic text given to more than this share of the images is overused")

    @model_validator(mode="after")
    def _fits(self):
        if "calibrated" in self.threshold.values() and self.score != "match":
            raise ValueError(f"threshold is calibrated, which is a P(match), but score is {self.score}; expected score: match")
        return self


class GateConfig(Config):
    """Limits on the next generation. A value beyond its limit stops retraining, promotion and the next round."""

    max_noise: dict[Literal["web", "synthetic"], Share] = Field(
        description="share of the source's texts that the filter rejected (the paper's noise ratio)"
    )
    max_residual_noise: Share = Field(
        description="upper confidence bound of the noise left in the kept web texts, estimated from planted controls"
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    min_coverage: Share = Field(description="share of the crawl's images that keep a text")
    min_distinct: Share = Field(description="different texts / kept synthetic texts")
    max_degenerate: Share = Field(description="share of the synthetic candidates that are empty, loops, truncated or overused")
    min_controls: Positive = Field(description="planted pairs of each truth; fewer prove nothing")


class DescribeConfig(Config):
    """What is told of a round's texts (blip_core/explain/describe.py). Nothing is decided by it."""

    rare_images: Positive = Field(description="a word that stands at so many of the crawl's images at most is rare")
    sample_words: Positive = Field(
        description="of each source's kept texts, for distinct-1 and distinct-2, which fall with the size of what they are of; "
        "the source with the fewest gives the number"
    )
    examples: Positive = Field(description="words of each kind that are shown, the most frequent ones")


class EvaluateConfig(Config):
    sampler: SamplerConfig
    rerank: Positive = Field(description="the k best by ITC that ITM ranks anew")
    batch_size: Positive
    bootstrap: Positive = Field(description="resamples of the images for the confidence intervals")
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    precision: Precision
    threads: int = Field(ge=0, description=THREADS)
    timeout: Positive = Field(description="seconds that one of several processes waits for the others before it gives up")


class CompareConfig(Config):
    """When a challenger is better."""

    metrics: tuple[str, ...] = Field(min_length=1, description="of evaluate: the paired gain must be beyond its interval in each")
    margin: dict[str, float] = Field(description="metrics that may fall by this much at most")
    bootstrap: Positive
    confidence: Annotated[float, Field(gt=0.5, lt=1)]


class ServingConfig(Config):
    """Limits of the served model; those of an image and a text are ingest's (images, texts)."""

    max_rows: Positive = Field(description="of a request")
    max_captions: Positive = Field(description="captions, or beams, of an image")


class DecideConfig(Config):
    """Whether another round is run: a paired gain on val beyond its interval in one of the metrics at least, and such a loss in none."""

    metrics: tuple[str, ...] = Field(min_length=1, description="of evaluate on val: retrieval by ITC, CIDEr, ROUGE-L, BLEU")
    bootstrap: Positive
    confidence: Annotated[float, Field(gt=0.5, lt=1)]


class RegisterConfig(Config):
    name: str = Field(min_length=1, description="of the registered model in MLflow")
    approval: bool = Field(description="a better model becomes `candidate`; a person makes it champion by the verb approve")
    serving: ServingConfig


class ReportConfig(Config):
    examples: Positive = Field(description="images on the sheet of examples")
    review: int = Field(ge=0, description="texts on a review sheet of each round, beside the report (docs/review.md); 0: none")


class RoundConfig(Config):
    base: str = Field(description="the generation that the round starts from: g0, or one that a round before it makes")
    model: str = Field(
        description="of `models`: captioner and filter are tuned from it. The newest by then, that of base, as the paper does; or the first"
    )
    next: str = Field(description="the generation that it makes; a model in `models` has the same name and trains on it")
    labels: str = Field(
        min_length=1, description="folder of what people said of texts (docs/review.md), for the calibration of its filter; it may be empty"
    )


class PretrainedConfig(Config):
    generation: str = Field(description="that the model trains on")
    sources: str = Field(description="the generation's sources that it may use, comma-separated")
    round: str = Field(description="the MLflow parent run it belongs to")


class Params(Config):
    """The whole of params.yaml."""

    seed: int = Field(ge=0, description="of everything that is drawn after ingest")
    rounds: dict[str, RoundConfig]
    models: dict[str, PretrainedConfig]
    challenger: str = Field(
        description="of `models`; it is registered when it is better. Where the rounds stop before it, the newest that was trained is"
    )
    baselines: str = Field(description="the models it is compared with, comma-separated")
    sample: SampleConfig
    ingest: IngestConfig
    validate_: ValidateConfig = Field(alias="validate")
    model: ModelConfig
    pretrain: PretrainConfig
    tune_captioner: CaptionerConfig
    tune_filter: FilterConfig
    calibrate: CalibrateConfig
    caption: CaptionConfig
    score: ScoreConfig
    assemble: AssembleConfig
    gate: GateConfig
    describe: DescribeConfig
    evaluate: EvaluateConfig
    decide: DecideConfig
    compare: CompareConfig
    register_: RegisterConfig = Field(alias="register")
    report: ReportConfig

    def section(self, stage: str) -> Config:
        """The settings of one stage, by its name."""
        return getattr(self, {"validate": "validate_", "register": "register_"}.get(stage, stage))

    @model_validator(mode="after")
    def _sound_rounds(self):
        """Each round starts from what is there by then, and the two models that `decide` compares have the names it knows them by."""
        made = {"g0": "ingest"}  # generation to what makes it
        for name, r in self.rounds.items():
            before = f"before it there are {', '.join(made)}"
            if r.base not in made:
                raise ValueError(f"rounds.{name}.base is {r.base!r}, which neither ingest nor a round above it makes; {before}")
            if r.model not in self.models:
                raise ValueError(f"rounds.{name}.model is {r.model!r}; models has {sorted(self.models)}")
            if (learned := self.models[r.model].generation) not in made:
                raise ValueError(f"rounds.{name}.model is {r.model!r}, which trains on {learned!r}, not made by then; {before}")
            if r.next in made:
                raise ValueError(f"rounds.{name}.next is {r.next!r}, which {made[r.next]} makes already; name another generation")
            made[r.next] = f"round {name}"
            for g in (r.base, r.next):
                if g not in self.models or self.models[g].generation != g:
                    raise ValueError(
                        f"rounds.{name} needs a model that trains on {g!r} and has its name: models.{g}: {{generation: {g}, …}}"
                    )
        return self

    @model_validator(mode="after")
    def _known_names(self):
        for name in [self.challenger, *self.baselines.split(",")]:
            if name not in self.models:
                raise ValueError(f"challenger and baselines name model {name!r}; models has {sorted(self.models)}")
        known = {"g0"} | {r.next for r in self.rounds.values()}
        for name, model in self.models.items():
            if model.generation not in known:
                raise ValueError(f"models.{name}.generation is {model.generation!r}; the rounds make {sorted(known)}")
        if len(self.rounds) > 1 and not any(self.models[m].generation == "g0" for m in self.baselines.split(",")):
            raise ValueError(f"baselines is {self.baselines!r}; expected a model on g0 among them, since rounds may stop before the others")
        if self.assemble.votes > len(self.score.filters):
            raise ValueError(f"assemble.votes is {self.assemble.votes}, but score.filters has {len(self.score.filters)}")
        return self


def load_params(path: Path) -> Params:
    """Read and check params.yaml. ValueError lists every fault with its key, what was got and what was expected."""
    return checked(Params, read_values(path), path)


def read_values(path: Path) -> dict:
    """A YAML file of sections, unchecked."""
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; run from the project's root or name the file with --params") from None
    except yaml.YAMLError as e:
        raise ValueError(f"{path}: not valid YAML: {e}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of sections, got {type(values).__name__}")
    return values


def checked(cls: type[AnyConfig], values: dict, where: Path | str) -> AnyConfig:
    """ValueError lists every fault with its key, what was got and what was expected."""
    try:
        return cls(**values)
    except ValidationError as e:
        raise ValueError("\n".join(_explain(where, cls, values, fault) for fault in e.errors())) from None


def _explain(path: Path | str, cls: type[Config], values: dict, fault: dict) -> str:
    """One line for one pydantic error: where, what was got, what to do."""
    where = ".".join(str(p) for p in fault["loc"])
    if fault["type"] == "extra_forbidden":
        *parents, key = fault["loc"]
        close = difflib.get_close_matches(str(key), _known_keys(cls, parents), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"{path}: {where}: unknown key{hint}"
    if fault["type"] == "missing":
        return f"{path}: {where}: missing"
    text = isinstance(fault["input"], str) and fault["type"] == "float_parsing" and "e" in fault["input"]
    hint = " (YAML reads 3e-4 as text: write 3.0e-4)" if text else ""
    got = "" if isinstance(fault["input"], dict) else f", got {fault['input']!r}"
    return f"{path}: {where or 'file'}: {fault['msg']}{got}{hint}"


def _known_keys(cls: type, parents: list) -> list[str]:
    """The keys that the class at this path of `cls` accepts; none where the path leaves the classes."""
    for name in parents:
        field = next((f for n, f in getattr(cls, "model_fields", {}).items() if name in (n, f.alias)), None)
        cls = field.annotation if field and isinstance(field.annotation, type) else object
    return [f.alias or n for n, f in getattr(cls, "model_fields", {}).items()]

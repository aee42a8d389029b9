"""The sections `caption` and `score`: who writes, who judges, and how."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from blip_core.config.base import ENDPOINT, ENGINE, MODELS, THREADS, Config, Engine, Positive, Precision, Question


class SamplerConfig(Config):
    name: Literal["nucleus", "beam"]
    # beyond these bounds the numbers of fp32 end and a token's probability is none
    p: float = Field(ge=0.001, le=1, description="nucleus: the smallest set of tokens with this much probability; 1 leaves all to top_k")
    top_k: int = Field(ge=0, description="nucleus: only so many of the most probable tokens; 0: any")
    temperature: float = Field(ge=0.001, le=1000, description="nucleus: of the softmax; below 1 is surer, above 1 more diverse")
    beams: Positive
    min_tokens: int = Field(ge=0, description="new tokens, prompt not counted")
    max_tokens: int = Field(gt=0, le=512, description="new tokens")
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

    captioner: str = Field(
        description=f"tuned: the round's own; else {MODELS}, or the folder of any model that transformers lists for image-text-to-text"
    )
    prompt: str | None = Field(
        description="of a BLIP: put before each caption, and no part of it; null: the one it was tuned with, if that is known. Of another "
        "model: the instruction or task token; null: to describe the picture in one sentence"
    )
    fuses: int | None = Field(
        ge=0,
        description="null: it writes of the picture; else the number of a writer before it, from 0: of each of that one's captions and the "
        "web text it makes one text, which has the source fused. Its captioner is the folder of any model that transformers lists for text "
        "generation, or a server; its prompt has {web} and {caption} in it",
    )
    sentences: Literal["all", "first", "split"] = Field(
        description="all: an answer is one text; first: its first sentence; split: each of its sentences is a candidate of its own"
    )
    sampler: SamplerConfig
    num_candidates: Positive = Field(description="captions per image; of one that fuses: per caption")

    @property
    def label(self) -> str:
        """Of the sampler, as the candidates carry it."""
        return self.sampler.label + ", not repeatable" * self.captioner.startswith(ENDPOINT)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.captioner.startswith(ENDPOINT):
            self._fits_endpoint()
        if self.fuses is not None and self.prompt is not None and any(self.prompt.count(place) != 1 for place in ("{web}", "{caption}")):
            raise ValueError(f"the prompt of a writer that fuses: expected {{web}} and {{caption}} in it, each once, got {self.prompt!r}")
        if self.sampler.name == "beam" and self.num_candidates > self.sampler.beams:
            raise ValueError(
                f"num_candidates is {self.num_candidates}, but a search with {self.sampler.beams} beams finds no more captions"
            )
        return self

    def _fits_endpoint(self) -> None:
        """What OpenAI's API has no word for, and a server might pass over in silence."""
        have = {"name": "nucleus", "min_tokens": 0, "repetition_penalty": 1.0}
        if wrong := [
            f"{name} is {getattr(self.sampler, name)}, expected {value}"
            for name, value in have.items()
            if getattr(self.sampler, name) != value
        ]:
            raise ValueError(f"the sampler of {self.captioner}: a server can't be asked for that: {'; '.join(wrong)}")


class RayConfig(Config):
    """The workers of a Ray cluster. Each holds the models once and takes one shard at a time; none of it changes a result."""

    workers: Positive = Field(description="at most; there are as many as the cluster has room for")
    cpus: Positive = Field(description="of a worker: as many as `threads`, and one or two that decode pictures")
    gpus: float = Field(ge=0, description="of a worker: 1 on GPUs, a part where several workers share one, 0 on the CPU")


class EndpointConfig(Config):
    """How a server is asked that openai:URL#MODEL names; none of it changes a result."""

    in_flight: Positive = Field(description="pictures that it is asked about at once")
    timeout: float = Field(gt=0, description="seconds that an answer may take")
    patience: float = Field(ge=0, description="seconds that it is asked again for while it is busy or away")
    max_requests: Positive | None = Field(description="so many answers are paid for in a run, with all its attempts; null: any number")
    max_tokens_total: Positive | None = Field(
        description="likewise so many tokens, of prompts, pictures and answers; those in flight may come on top"
    )


class _Work(Config):
    """How a stage gets through its tables."""

    engine: Engine = Field(description=ENGINE)
    ray: RayConfig
    endpoint: EndpointConfig

    @property
    def workers(self) -> int:
        """Processes at work, at most."""
        return self.ray.workers if self.engine == "ray" else 1


class CaptionConfig(_Work):
    writers: tuple[WriterConfig, ...] = Field(min_length=1, description="their candidates are numbered one after the other")
    batch_size: Positive = Field(description="images at a time")
    precision: Precision
    threads: int = Field(ge=0, description=THREADS)

    @field_validator("writers")
    @classmethod
    def _fuse_what_is_there(cls, writers: tuple[WriterConfig, ...]) -> tuple[WriterConfig, ...]:
        for number, writer in enumerate(writers):
            if writer.fuses is not None and writer.fuses not in (n for n, w in enumerate(writers[:number]) if w.fuses is None):
                raise ValueError(f"writer {number} fuses {writer.fuses}, expected the number of a writer before it that writes of pictures")
        return writers


class ScoreConfig(_Work):
    filters: tuple[str, ...] = Field(
        min_length=1,
        description=f"tuned: the round's own; else {MODELS}; a folder of transformers: CLIP and its family, BLIP-2, or a model that "
        "answers questions; or sieve:CAPTIONER#ENCODER. The scores of the first stand in itm and itc, the others are opinions",
    )
    question: Question = Field(description="what a model that answers questions is asked of each {text}; its score is the log-odds of yes")
    controls_per_image: Positive = Field(description="pairs of each kind, true and false, planted per held-out image")
    batch_size: Positive = Field(description="images at a time")
    precision: Precision
    threads: int = Field(ge=0, description=THREADS)

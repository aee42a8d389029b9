"""The whole of params.yaml: its sections, and what must fit between them. Values live in params.yaml alone.

The classes are frozen and refuse unknown keys, so a misspelt parameter stops a run before it starts. Nothing here imports
torch: each verb checks the whole file in milliseconds.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from blip_core.config.base import Config
from blip_core.config.capfilt import CaptionConfig, ScoreConfig
from blip_core.config.delivery import RegisterConfig, ReportConfig
from blip_core.config.evaluation import METRICS, VAL_METRICS, CompareConfig, DecideConfig, EvaluateConfig
from blip_core.config.intake import IngestConfig, ValidateConfig
from blip_core.config.model import AnyModelConfig, Blip2Config
from blip_core.config.reading import checked, read_values
from blip_core.config.sample import SampleConfig
from blip_core.config.selection import AssembleConfig, CalibrateConfig, DescribeConfig, GateConfig
from blip_core.config.tasks import TaskConfig, TunedConfig
from blip_core.config.training import CaptionerConfig, FilterConfig, PretrainConfig, SharedConfig, shared_place, with_shared, with_stage_2


class RoundConfig(Config):
    base: str = Field(description="the generation that the round starts from: g0, or one that a round before it makes")
    model: str = Field(
        description="of `models`: captioner and filter are tuned from it. The newest by then, that of base, as the paper does; or the first"
    )
    next: str = Field(description="the generation that it makes; a model in `models` has the same name and trains on it")
    labels: str = Field(
        min_length=1,
        description="folder of what people said of texts (docs/review.md), for the calibration of its filter and its gate; it may be empty",
    )


class PretrainedConfig(Config):
    generation: str = Field(description="that the model trains on")
    sources: str = Field(description="the generation's sources that it may use, comma-separated")
    round: str = Field(description="the round that it belongs to, or base")


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
    model: AnyModelConfig
    training: SharedConfig = Field(SharedConfig(), exclude=True, description="what the trainings share; their own sections have it by now")
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
    tasks: dict[Annotated[str, Field(pattern=r"^\w[\w-]*$")], TaskConfig] = Field(
        {}, description="downstream tasks by name; the files of task NAME lie in tasks/NAME (docs/tasks.md)"
    )

    def task(self, name: str) -> TaskConfig:
        """The settings of one task. ValueError when there is none of that name."""
        if name not in self.tasks:
            raise ValueError(f"no task {name!r} in the section tasks; it has {', '.join(self.tasks) or 'none'}")
        return self.tasks[name]

    def section(self, stage: str) -> Any:
        """The settings of one stage, by its name; each has a class of its own, and the stages of tasks have those of all tasks."""
        names = {"validate": "validate_", "register": "register_", "tune_task": "tasks", "evaluate_task": "tasks", "register_task": "tasks"}
        return getattr(self, names.get(stage, stage))

    @model_validator(mode="before")
    @classmethod
    def _share(cls, values: object) -> object:
        return with_stage_2(with_shared(values)) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _sound_rounds(self) -> Self:
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
    def _sound_limits(self) -> Self:
        """What a stage would else say hours later."""
        part, text = ("qformer", self.model.qformer) if isinstance(self.model, Blip2Config) else ("text", self.model.text)
        trained = {stage: self.section(stage) for stage in ("pretrain", "tune_captioner", "tune_filter")}
        trained |= {f"tasks.{name}": task for name, task in self.tasks.items() if isinstance(task, TunedConfig)}
        for name, cfg in trained.items():
            tokens, most = cfg.optim.max_tokens, text.max_positions
            if tokens > most and getattr(cfg, "lora", None) is None:
                raise ValueError(f"{name}.optim.max_tokens is {tokens}, but model.{part}.max_positions is {most}")
        if lacking := [source for source in self.assemble.sources if source not in self.gate.max_noise]:
            raise ValueError(f"gate.max_noise says nothing of {' and '.join(lacking)}, which assemble.sources has; add a limit")
        return self

    @model_validator(mode="after")
    def _sound_stages(self) -> Self:
        """A language model and the training that it is for come together."""
        language = isinstance(self.model, Blip2Config) and self.model.language is not None
        if language != (self.pretrain.stage_2 is not None):
            there, lacking = ("model.language", "pretrain.stage_2") if language else ("pretrain.stage_2", "model.language")
            raise ValueError(f"{there} is set and {lacking} is not; stage 2 of a BLIP-2 needs both, stage 1 alone neither (docs/blip2.md)")
        return self

    @model_validator(mode="after")
    def _known_metrics(self) -> Self:
        """Those that `evaluate` or a task measures: else a stage would say it at the end of the chain."""
        of_tasks = [f"{task}.{metric}" for task, cfg in self.tasks.items() for metric in cfg.METRICS]
        places = {"compare.metrics": METRICS, "compare.margin": METRICS, "decide.metrics": VAL_METRICS}
        for place, measured in places.items():
            section, key = place.split(".")
            for metric in getattr(self.section(section), key):
                known = [*measured, *of_tasks]
                if metric not in known:
                    close = difflib.get_close_matches(metric, known, n=1)
                    hint = f"did you mean {close[0]!r}?" if close else f"expected {', '.join(measured)}, or that of a task, as vqa.accuracy"
                    raise ValueError(f"{place} names {metric!r}, which is not measured; {hint}")
        return self

    @model_validator(mode="after")
    def _known_names(self) -> Self:
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
    return check_params(read_values(path), path)


def check_params(values: dict[str, Any], where: Path | str) -> Params:
    """The same of values that are read already."""
    return checked(Params, values, where, place=lambda place: shared_place(values, place))

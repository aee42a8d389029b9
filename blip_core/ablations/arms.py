"""The arms of an ablation: what ablations.yaml says of each, and the values that follow for its chain."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from blip_core.config.base import Config
from blip_core.config.params import check_params
from blip_core.config.reading import checked, laid_over, read_values


class InPaper(Config):
    """In the paper's units; by the names of results.METRICS."""

    tr_r1: float = Field(description="text R@1 on COCO, percent")
    ir_r1: float = Field(description="image R@1, percent")
    cider: float = Field(description="points")


class Arm(Config):
    """The chain of dvc.yaml under other values."""

    says: str = Field(description="what it is, in the tables")
    paper: str = Field("", description="where the paper has the like")
    in_paper: InPaper | None = Field(None, description="what the paper has there; none: nothing that could be set beside it")
    params: dict[str, Any] = Field({}, description="laid over params.yaml: mappings are merged, all else is replaced")
    times: dict[str, float] = Field(
        {}, description="numbers of params.yaml by their path, as pretrain.optim.steps, to what multiplies them"
    )
    against: tuple[str, ...] = Field((), description="rows, besides the baselines, that it is compared with; of arms above it, or its own")
    rows: dict[str, str] = Field({}, description="row of the tables to the model it is of; none: the arm's name, g1")
    stages: dict[str, dict[str, Any]] = Field({}, description="further stages, as dvc.yaml would have them")
    keep: tuple[str, ...] = Field((), description="stages that are taken from the default chain although their values differ")
    instead: dict[str, str] = Field({}, description="path that the chain reads to the one that it reads here")


class Arms(Config):
    """The whole of ablations.yaml."""

    baselines: tuple[str, ...] = Field(min_length=1, description="rows that all others are compared with, each the only row of its arm")
    arms: dict[Annotated[str, Field(pattern=r"^\w[\w-]*$")], Arm]  # a name is a folder's too

    @model_validator(mode="after")
    def _known_baselines(self) -> Self:
        for name in self.baselines:
            if name not in self.arms or list(rows(name, self.arms[name])) != [name]:
                raise ValueError(f"baselines: {name!r} is no arm with one row of that name; arms has {sorted(self.arms)}")
        seen: dict[str, str] = {}
        for name, arm in self.arms.items():
            for row in rows(name, arm):
                if row in seen:
                    raise ValueError(f"arms.{name}: has a row {row!r}, as {seen[row]} has; name it otherwise")
                seen[row] = name
            if unknown := set(arm.against) - set(seen):
                raise ValueError(f"arms.{name}.against: no arm above has a row {', '.join(sorted(unknown))}; they have {sorted(seen)}")
        return self


def rows(name: str, arm: Arm) -> dict[str, str]:
    """Row of the tables to model."""
    return arm.rows or {name: "g1"}


def read_arms(path: Path) -> Arms:
    """ValueError lists every fault with its key."""
    return checked(Arms, read_values(path), path)


def chosen(arms: Arms, names: list[str] | None) -> dict[str, Arm]:
    """The named arms, all where none is named; the first baseline always. ValueError for a name that is not there."""
    for name in names or ():
        if name not in arms.arms:
            close = difflib.get_close_matches(name, arms.arms, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; ablations.yaml has {', '.join(arms.arms)}"
            raise ValueError(f"arms: no arm {name!r}{hint}")
    wanted = {arms.baselines[0], *(names or arms.arms)}
    order = [*arms.baselines, *(name for name in arms.arms if name not in arms.baselines)]  # what others are compared with comes first
    return {name: arms.arms[name] for name in order if name in wanted}


def arm_values(name: str, arm: Arm, values: dict[str, Any]) -> dict[str, Any]:
    """Every value of the arm's chain. ValueError names the arm and the key that does not fit, or the row whose model is not there."""
    merged = laid_over(values, arm.params)
    for path, factor in arm.times.items():
        merged = laid_over(merged, _multiplied(merged, path, factor, f"ablations.yaml: arms.{name}.times"))
    params = check_params(merged, f"ablations.yaml: arms.{name}.params")
    for row, model in rows(name, arm).items():
        if model not in params.models:
            raise ValueError(f"ablations.yaml: arms.{name}.rows: {row!r} is of model {model!r}; models has {sorted(params.models)}")
    return merged


def _multiplied(values: dict[str, Any], path: str, factor: float, where: str) -> dict[str, Any]:
    """The number at this path times the factor, to lay over the values; a whole number stays one."""
    found: Any = values
    for key in path.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ValueError(f"{where}: {path}: expected the path of a number of params.yaml, there is {found!r}")
    over: Any = round(found * factor) if isinstance(found, int) else found * factor
    for key in reversed(path.split(".")):
        over = {key: over}
    return over

"""The part `contrast` of the section `training` and of the trainings that have one: how ITC and ITM learn."""

from typing import Any, Literal

from pydantic import Field, model_validator

from blip_core.config.base import Config, Share


def _temperature_fits(cfg: Any) -> Any:
    low, high = cfg.temperature_range
    if not 0 < low <= cfg.temperature <= high:
        raise ValueError(f"temperature is {cfg.temperature:g}, temperature_range [{low:g}, {high:g}]; expected it within, above 0")
    return cfg


class ContrastConfig(Config):
    """ITC and ITM (paper section 3.2; momentum, queue and soft labels as in ALBEF, section 3.2 there)."""

    queue_size: int = Field(ge=0, description="features of past batches kept as further negatives")
    momentum: Share = Field(description="of the exponential moving average that makes the momentum encoder")
    twin_precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="of the momentum encoder's weights; bf16 halves their memory, rounded at random (blip_core/training/rounding.py)",
    )
    alpha: Share = Field(description="weight of the momentum encoder's soft targets")
    alpha_ramp: Share = Field(description="alpha rises linearly from 0 over this share of the steps")
    hardness_ramp: Share = Field(
        description="ITM negatives go from uniform to proportional to similarity over this share of the steps; 0: hard at once (paper)"
    )
    temperature: float = Field(gt=0, description="initial value; learned within temperature_range")
    temperature_range: tuple[float, float]

    _fits = model_validator(mode="after")(_temperature_fits)


class QueryContrastConfig(Config):
    """ITC and ITM of a Q-Former (Li et al. 2023, section 3.1): the pairs of the batch alone, no momentum, no queue."""

    label_smoothing: Share = Field(description="share of the target that goes to all candidates alike; the authors' code has 0.1")
    hardness_ramp: Share = Field(description="as in ContrastConfig")
    temperature: float = Field(gt=0, description="initial value; learned within temperature_range")
    temperature_range: tuple[float, float]

    _fits = model_validator(mode="after")(_temperature_fits)


def query_contrast(cfg: ContrastConfig, *, label_smoothing: float) -> QueryContrastConfig:
    """What a Q-Former takes of the settings of a training."""
    shared = {name: getattr(cfg, name) for name in ("hardness_ramp", "temperature", "temperature_range")}
    return QueryContrastConfig(label_smoothing=label_smoothing, **shared)

"""The sections `calibrate`, `assemble`, `gate` and `describe`: which texts stay, and what is told of it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from blip_core.config.base import SLICES, Config, Positive, Share
from blip_core.config.screens import ScreensConfig

Crawled = Literal["web", "synthetic", "fused"]  # the sources of the texts that a filter judges
CalibrationMethod = Literal["logistic", "temperature", "isotonic"]


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
    slices: tuple[str, ...] = Field(description=SLICES)


class AssembleConfig(Config):
    """Which candidates make the next generation."""

    score: Literal["match", "itm", "itc"] = Field(
        description="match: calibrated P(match); itm: the raw ITM probability, as the authors; itc: cosine"
    )
    threshold: dict[Crawled, float | Literal["calibrated"]] = Field(
        description="a candidate below is dropped; calibrated: the filter's own for calibrate.target_precision, a P(match)"
    )
    votes: Positive = Field(description="so many of score.filters must find a text at its threshold or above; 1 with a single filter")
    keep_best: Positive | None = Field(
        description="of those that pass, only so many of an image, by score; null: all. With thresholds of 0 it is BLIP-2's way"
    )
    sources: tuple[Crawled, ...] = Field(description="which candidates take part")
    screens: ScreensConfig = Field(
        description="of synthetic and fused texts; drop also takes web texts that ingest has marked. Loops and overused texts of a "
        "captioner are dropped in any case"
    )
    max_repeat: int = Field(ge=2, description="a text of a captioner is a loop when one to four words stand in it this many times in a row")
    max_share: Share = Field(description="a text of a captioner given to more than this share of the images is overused")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if "calibrated" in self.threshold.values() and self.score != "match":
            raise ValueError(f"threshold is calibrated, which is a P(match), but score is {self.score}; expected score: match")
        low, what = (-1, "a cosine") if self.score == "itc" else (0, "a probability")
        for source, limit in self.threshold.items():
            if limit != "calibrated" and not low <= limit <= 1:
                raise ValueError(f"threshold.{source} is {limit:g}, but {self.score} is {what}; expected {low} to 1")
        if lacking := [source for source in self.sources if source not in self.threshold]:
            raise ValueError(f"threshold says nothing of {' and '.join(lacking)}, which sources has; add a number")
        return self


class SliceLimits(Config):
    """Limits of the texts with one value of a column, or with each of its values that has no limits of its own."""

    column: str
    value: str | None = Field(None, description="null: each value")
    max_noise: dict[Crawled, Share] = Field({}, description="as that of the gate; a source without one has no limit here")
    max_residual_noise: Share | None = Field(None, description="as that of the gate; null: no limit")


class GateConfig(Config):
    """Limits on the next generation. A value beyond its limit stops retraining, promotion and the next round."""

    max_noise: dict[Crawled, Share] = Field(description="share of the source's texts that the filter rejected (the paper's noise ratio)")
    max_residual_noise: Share = Field(
        description="upper confidence bound of the noise left in a source's kept texts: by people's labels; without, web's by planted pairs"
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    min_coverage: Share = Field(description="share of the crawl's images that keep a text")
    min_distinct: Share = Field(description="different texts / kept texts, of synthetic ones, and of fused ones")
    max_degenerate: Share = Field(
        description="share of the synthetic candidates, and of the fused ones, that are empty, marks alone, refusals, loops, truncated or "
        "overused"
    )
    min_controls: Positive = Field(description="planted pairs of each truth; fewer prove nothing")
    min_texts: Positive = Field(
        description="texts of a source that a slice needs to be judged by itself; smaller ones count at their worst (docs/slices.md)"
    )
    min_labels: Positive = Field(description="kept texts of a source that people judged; with fewer their labels bound nothing")
    slices: tuple[SliceLimits, ...] = Field(description="limits by a column, on top of the others")

    @model_validator(mode="after")
    def _once(self) -> Self:
        named = [(s.column, s.value) for s in self.slices]
        if again := [f"{c}, {v}" for c, v in dict.fromkeys(named) if named.count((c, v)) > 1]:
            raise ValueError(f"slices has limits of {again[0]} twice; expected one entry for each column and value")
        return self


class DescribeConfig(Config):
    """What is told of a round's texts (blip_core/explain/describe.py). Nothing is decided by it."""

    rare_images: Positive = Field(description="a word that stands at so many of the crawl's images at most is rare")
    sample_words: Positive = Field(
        description="of each source's kept texts, for distinct-1 and distinct-2, which fall with the size of what they are of; "
        "the source with the fewest gives the number"
    )
    examples: Positive = Field(description="words of each kind that are shown, the most frequent ones")

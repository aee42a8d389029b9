"""The section `sample`: the built-in sample world (blip_core/sample/write.py)."""

from typing import Literal

from pydantic import Field, field_validator

from blip_core.config.base import Config, Positive, Share

SampleLanguage = Literal["en", "es", "zh"]
WebKind = Literal["clean", "terse", "mismatch", "boilerplate", "partial", "general"]  # of the sample's web texts


class SampleConfig(Config):
    """The built-in sample world (blip_core/sample/write.py)."""

    seed: int = Field(ge=0, description="another seed is another world sample")
    language: SampleLanguage = Field(description="of its texts: English, Spanish, Chinese; the pictures say the same in each")
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

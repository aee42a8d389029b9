"""Screens of texts, in the sections `ingest` and `assemble`, and of pictures, in `ingest`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from blip_core.config.base import OFF, Config, Positive, Precision, Share

Screen = Annotated[Literal["off", "mark", "drop"], OFF]


class ScreensConfig(Config):
    """Texts that say nothing of their picture, told without a look at it (blip_core/texts/screens.py).

    off: nobody looks, the column stays empty. mark: the text's column says whether the screen hits. drop: such a text also is
    neither scored nor trained on; its row stays, with the screen's name for a reason. Human texts are not screened."""

    boilerplate: Screen = Field(description="the same text at many images")
    file_name: Screen = Field(description="IMG_1234.jpg, a number, an id and no more")
    email: Screen = Field(description="personal data: an e-mail address")
    phone: Screen = Field(description="personal data: a phone number")
    card: Screen = Field(description="personal data: the number of a payment card")
    markup: Screen = Field(description="HTML tags and entities, URLs, e-mail addresses")
    repeats: Screen = Field(description="a loop: up to four words that stand several times in a row")
    language: Screen = Field(description="each text is tagged with its language; a text in one that `languages` lacks is hit")
    languages: tuple[Annotated[str, Field(pattern="^[a-z]{2}$")], ...] | None = Field(
        description="ISO 639-1 codes of those that stay; null: any. A text too short to tell (und) stays in any case"
    )
    min_confidence: Share = Field(description="of the language's tag; a text with less is und")
    phone_regions: tuple[Annotated[str, Field(pattern="^[A-Z]{2}$")], ...] = Field(
        (), description="countries (ISO 3166, as [US, GB]) whose phone numbers are found without +country code before them too"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.language == "drop" and not self.languages:
            raise ValueError("language is drop, but languages names none that stay; list their ISO 639-1 codes, as [en]")
        return self


class WebScreensConfig(ScreensConfig):
    max_images: Positive | None = Field(description="boilerplate: the same text at more images than this; null leaves it to max_share")
    max_share: Share = Field(description="boilerplate: the same text at more than this share of the images, and at two at least")
    max_repeat: int = Field(ge=2, description="repeats: so many times in a row")


class PictureScreen(Config):
    """Pictures of the crawl whose field is beyond a limit, in a list or outside of it, or a URL of certain hosts (blip_core/screens).

    mark: the field `screens` of the picture names the screen. drop: the picture is also set aside, with its texts, as picture_NAME."""

    name: str = Field(pattern="^[a-z][a-z0-9_]*$")
    field: str = Field(min_length=1, description="of the source, measured_… where `measure` is true, or CLASSIFIER_LABEL")
    above: float | None = Field(None, description="numbers above this are hit; texts that are a number count as one")
    below: float | None = Field(None, description="numbers below this")
    among: tuple[str | bool | int | float, ...] | None = Field(
        None, description="one of these values, case, signs and spaces aside: a block-list, or flags of those who opt out"
    )
    outside: tuple[str | bool | int | float, ...] | None = Field(
        None, description="any other value than these: an allow-list, as of licences"
    )
    hosts: tuple[str, ...] | None = Field(None, min_length=1, description="a URL of one of these domains or of one below it")
    missing: Literal["keep", "drop"] = Field("keep", description="pictures that have no such field, null, or a value of another type")
    then: Screen

    @model_validator(mode="after")
    def _fits(self) -> Self:
        limits = self.above is not None or self.below is not None
        if [limits, self.among is not None, self.outside is not None, self.hosts is not None].count(True) != 1:
            raise ValueError(f"the screen {self.name} of {self.field}: expected one of above and below, among, outside, or hosts")
        return self


class ClassifierConfig(Config):
    """An image classifier, on the GPU where there is one (blip_core/screens/classifier.py)."""

    model: Path = Field(description="folder of transformers: any image classifier with its processor; DVC watches frozen/")
    batch_size: Positive
    precision: Precision


class PicturesConfig(Config):
    measure: bool = Field(False, description="brightness, entropy, sharpness and aspect become fields of each picture of the crawl")
    classifiers: dict[Annotated[str, Field(pattern="^[a-z][a-z0-9]*$")], ClassifierConfig] = Field(
        {}, description="by name; each gives its pictures the fields NAME_LABEL, P(label)"
    )
    screens: tuple[PictureScreen, ...] = Field((), description="of several that drop a picture the first is the reason")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        names = [screen.name for screen in self.screens]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"screens: {', '.join(twice)} stands there more than once; expected a name for each")
        for screen in self.screens:
            if screen.field.startswith("measured_") and not self.measure:
                raise ValueError(f"the screen {screen.name} wants {screen.field}; expected measure: true")
        return self

    def of_sources(self) -> Iterator[PictureScreen]:
        """Screens of fields that only a source can have."""
        own = ("measured_", *(f"{name}_" for name in self.classifiers))
        return (screen for screen in self.screens if screen.then != "off" and not screen.field.startswith(own))

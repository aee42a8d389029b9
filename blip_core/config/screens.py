"""Screens of texts, in the sections `ingest` and `assemble`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from blip_core.config.base import OFF, Config, Positive, Share

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

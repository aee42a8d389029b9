"""The sections `register` and `report`: what becomes of the result."""

from pydantic import Field

from blip_core.config.base import Config, Positive


class ServingConfig(Config):
    """Limits of the served model; those of an image and a text are ingest's (images, texts)."""

    max_rows: Positive = Field(description="of a request")
    max_captions: Positive = Field(description="captions, or beams, of an image")


class RegisterConfig(Config):
    name: str = Field(pattern=r"""^[^/:.%"'@]+$""", description="of the registered model in MLflow, without the characters that it refuses")
    approval: bool = Field(description="a better model becomes `candidate`; a person makes it champion by the verb approve")
    serving: ServingConfig


class ReportConfig(Config):
    examples: Positive = Field(description="images on the sheet of examples")
    review: int = Field(ge=0, description="texts on a review sheet of each round, beside the report (docs/review.md); 0: none")

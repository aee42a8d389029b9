"""How a list is fetched."""

from typing import Annotated

from pydantic import Field

from blip_core.config.base import Config, Positive

KIND = "blip-fetch"  # the name by which robots.txt and headers speak to us


class FetchConfig(Config):
    """Options of `blip fetch`."""

    url: str | None = Field(None, description="column of the URLs; null searches")
    text: str | None = Field(None, description="column of the texts; null searches")
    rows_per_shard: Annotated[int, Field(ge=1, le=10_000)] = 10_000
    short_side: Positive | None = 512
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    in_flight: Positive = 256
    per_host: Positive = 8
    attempts: Positive = 3
    timeout: Annotated[float, Field(gt=0)] = 30.0
    max_bytes: Positive = 20_000_000
    most_wait: Annotated[float, Field(ge=0)] = Field(60.0, description="seconds that a host may ask for; if it wants more, its rows fail")
    robots: bool = True
    private: bool = Field(False, description="addresses that are not public, as those of one's own network, are asked too")
    min_yield: Annotated[float, Field(ge=0, le=1)] = 0.0
    again: tuple[str, ...] = Field((), description="reasons of failure that are tried again, besides those that may pass")
    ray_workers: Annotated[int, Field(ge=0)] = Field(0, description="processes of a Ray cluster that share the shards; 0: this one alone")

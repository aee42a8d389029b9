"""What came of a row."""

import hashlib
from dataclasses import dataclass

from blip_core.config.intake import ImageLimits
from blip_core.fetch.settings import FetchConfig
from blip_core.files.rejected import Rejected
from blip_core.pictures.images import MOST_PIXELS, admit


@dataclass(frozen=True)
class Outcome:
    """`data`: the picture as it is stored, None where there is none; then `reason` says why."""

    data: bytes | None = None
    reason: str = ""
    detail: str = ""
    width: int | None = None
    height: int | None = None
    sha256: str = ""  # of the bytes that came


def stored(came: bytes, cfg: FetchConfig) -> Outcome:
    """The picture as it is kept, its type told by its bytes; what ingest could not take either is none."""
    limits = ImageLimits(min_side=1, max_side=65_535, max_pixels=MOST_PIXELS, max_aspect=65_535, max_bytes=cfg.max_bytes)
    digest = hashlib.sha256(came).hexdigest()
    try:
        picture = admit(came, limits, short_side=cfg.short_side, quality=cfg.quality, format="keep")
    except Rejected as e:
        return Outcome(reason="not_a_picture", detail=str(e), sha256=digest)
    return Outcome(picture.data, width=picture.width, height=picture.height, sha256=digest)

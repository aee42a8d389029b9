"""Pictures in any form that a notebook has them in, decoded ahead of the model."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from blip_core.compute.ahead import read_ahead
from blip_core.config.intake import ImageLimits
from blip_core.files.rejected import REASONS, Rejected
from blip_core.pictures.images import MOST_PIXELS, admit, to_rgb

Picture = str | Path | bytes | Image.Image | np.ndarray
Prepared = TypeVar("Prepared")

# ingest has limits by which a crawl is judged; a picture that somebody chose need only be one that can be decoded
_LIMITS = ImageLimits(min_side=1, max_side=MOST_PIXELS, max_pixels=MOST_PIXELS, max_aspect=MOST_PIXELS, max_bytes=sys.maxsize)


def read_pictures(images: Sequence[Picture], prepare: Callable[[np.ndarray], Prepared], *, batch_size: int) -> Iterator[list[Prepared]]:
    """What `prepare` makes of each picture, uint8 H x W x 3, in batches. ValueError names the place of one that can't be read."""
    if isinstance(images, str | Path | bytes | Image.Image) or not len(images):
        raise ValueError(f"images: expected a list of one or more pictures, got {images!r:.80}; of a single one write [picture]")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected 1 or more")

    def read(number: int) -> Prepared:
        try:
            return prepare(np.require(pixels(pictures[number]), requirements=["C", "W"]))  # torch takes no other
        except (ValueError, OSError) as e:
            why = f"{e} ({REASONS[e.reason]})" if isinstance(e, Rejected) else e
            raise ValueError(f"images[{number}]: {why}") from None

    pictures = list(images)
    numbers = list(range(len(pictures)))
    batches = (numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size))
    return (prepared for _, prepared in read_ahead(read, batches))


def pixels(image: Picture) -> np.ndarray:
    """uint8 H x W x 3, upright and opaque, as ingest reads a picture before it stores it. ValueError when it is none."""
    if isinstance(image, str | os.PathLike):
        if not os.path.isfile(image):
            raise ValueError(f"{image}: no such file; expected the path of a JPEG, PNG, WebP or GIF (a URL is not fetched)")
        image = Path(image).read_bytes()
    if isinstance(image, bytes):
        return admit(image, _LIMITS, short_side=None, quality=100, format="keep").pixels
    if isinstance(image, Image.Image):
        return np.asarray(to_rgb(ImageOps.exif_transpose(image))[0])
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"expected a path, the bytes of a file, a PIL image, or an array uint8 (height, width, 3); got {got}")
    return image

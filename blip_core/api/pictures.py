"""Pictures in any form that a notebook has them in, decoded ahead of the model."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeGuard, TypeVar

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


def is_picture(images: "Picture | Sequence[Picture]") -> TypeGuard[Picture]:
    """Whether it is one picture, and no list of them. An array of three dimensions is one."""
    return isinstance(images, str | os.PathLike | bytes | Image.Image) or (isinstance(images, np.ndarray) and images.ndim < 4)


def read_each(
    images: Sequence[Picture], prepare: Callable[[np.ndarray], Prepared], *, batch_size: int
) -> Iterator[list[Prepared | ValueError]]:
    """What `prepare` makes of each picture, uint8 H x W x 3, in batches; for one that can't be read, why."""
    if is_picture(images) or not len(images):
        raise ValueError(f"images: expected a list of one or more pictures, got {images!r:.80}; of a single one write [picture]")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected 1 or more")

    def read(picture: Picture) -> Prepared | ValueError:
        try:
            array = np.require(pixels(picture), requirements=["C", "W"])  # torch takes no other
        except (ValueError, OSError) as e:
            return ValueError(f"{e} ({REASONS[e.reason]})" if isinstance(e, Rejected) else str(e))
        return prepare(array)

    pictures = list(images)
    batches = (pictures[start : start + batch_size] for start in range(0, len(pictures), batch_size))
    return (read for _, read in read_ahead(read, batches))


def read_pictures(images: Sequence[Picture], prepare: Callable[[np.ndarray], Prepared], *, batch_size: int) -> Iterator[list[Prepared]]:
    """The same where all must be readable: ValueError names the place of one that is not."""
    done = 0
    for batch in read_each(images, prepare, batch_size=batch_size):
        yield [require_read(found, number) for number, found in enumerate(batch, start=done)]
        done += len(batch)


def require_read(found: Prepared | ValueError, number: int) -> Prepared:
    """ValueError when picture `number` could not be read."""
    if isinstance(found, ValueError):
        raise ValueError(f"images[{number}]: {found}")
    return found


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

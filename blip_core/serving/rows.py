"""The rows of a request: an image, a text or both, all checked before any of them costs the model anything."""

import base64
import binascii
import hashlib
import io
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from blip_core.compute.pixels import resized
from blip_core.files.rejected import REASONS, Rejected
from blip_core.pictures.images import admit, decode_rgb, to_rgb
from blip_core.serving.options import BadRequest, Settings, Task
from blip_core.serving.urls import fetch, is_url
from blip_core.texts.clean import clean_text

FORMATS = "a JPEG, PNG, WebP or GIF file"
PICTURE = f"{FORMATS} as base64 text; a program of one's own may also give its path, its bytes, a PIL image or an array"


@dataclass(frozen=True)
class Row:
    """`number`: its place in the request, which messages name. `image`: the file; `picture`: uint8 H x W x 3, once it is decoded."""

    number: int
    image: bytes | None = None
    text: str | None = None
    picture: np.ndarray | None = None

    @property
    def key(self) -> str:
        """What a sampled caption depends on: the picture, not its neighbours."""
        assert self.image is not None
        return hashlib.sha256(self.image).hexdigest()[:16]


def read_rows(images: list[Any], texts: list[Any], task: Task, settings: Settings, *, paths: bool) -> list[Row]:
    """Rows of what a request holds for each, None where it has nothing. Equally many of either. BadRequest names the row at fault.

    `paths`: an image may also be named by its path, which is for a program of one's own. Bytes, PIL images and arrays come of such
    a program alone: no request over a network holds any."""
    assert len(images) == len(texts)
    if not images:
        raise BadRequest("no row: expected at least one, with `image` or `text` (columns of any other name are not read)")
    if len(images) > settings.limits.max_rows:
        raise BadRequest(f"{len(images)} rows, at most {settings.limits.max_rows} are allowed; send several requests")
    rows = []
    for number, (image, text) in enumerate(zip(images, texts, strict=True)):
        image, text = _present(image), _present(text)
        _check_presence(number, task, image, text)
        try:
            file = None if image is None else _file(image, settings.images.max_bytes, paths=paths)
        except BadRequest as e:
            raise BadRequest(f"row {number}: image: {e}") from None
        rows.append(Row(number, file, None if text is None else _text(number, text, settings)))
    return rows


def decoded(row: Row, settings: Settings, size: int) -> Row:
    """With its picture as training saw it, at the model's size, so that large files do not add up."""
    if row.image is None:
        return row
    return replace(row, picture=resized(whole(row, settings), size))


def whole(row: Row, settings: Settings) -> np.ndarray:
    """Its picture at its own size: uint8 H x W x 3."""
    return decode_rgb(admitted(row, settings))


def admitted(row: Row, settings: Settings) -> bytes:
    """What ingest would store of its image. BadRequest says why it would set it aside."""
    assert row.image is not None
    try:
        return admit(row.image, settings.images, short_side=settings.short_side, quality=settings.quality, format=settings.format).data
    except Rejected as e:
        raise BadRequest(f"row {row.number}: image: {e} ({REASONS[e.reason]}); expected {FORMATS} within the limits") from None


def _present(value: object) -> object:
    """None for what stands in a table where nothing was sent."""
    return None if value is None or (isinstance(value, float) and value != value) else value


def _check_presence(number: int, task: Task, image: object, text: object) -> None:
    needed = {"caption": ("image",), "match": ("image", "text"), "answer": ("image", "text"), "embed": ()}[task]
    for name, value in (("image", image), ("text", text)):
        if name in needed and value is None:
            raise BadRequest(f"row {number}: no {name}; task {task} needs {' and '.join(needed)} in every row")
    if task == "caption" and text is not None:
        raise BadRequest(f"row {number}: a text, which task caption does not read; leave it out, or ask for task match or embed")
    if image is None and text is None:
        raise BadRequest(f"row {number}: neither image nor text; task embed needs one of them, or both, in every row")


def _file(value: object, max_bytes: int, *, paths: bool) -> bytes:
    """The file that a value holds or names, or a PNG of its pixels."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, Image.Image | np.ndarray):
        return _png(value)
    if not isinstance(value, str | Path):
        raise BadRequest(f"expected {PICTURE}; got {type(value).__name__} {str(value)[:60]!r}")
    value = str(value)
    if is_url(value):
        return fetch(value, max_bytes=max_bytes)
    if len(value) > 4 * max_bytes // 3 + 4:
        raise BadRequest(f"too_many_bytes: {len(value)} characters of base64, at most {max_bytes} bytes of a file are allowed")
    try:
        if paths and os.path.isfile(value):
            return Path(value).read_bytes()
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        expected = "base64 text, or the path of a file" if paths else "base64 text; paths are not taken here"
        raise BadRequest(f"expected {FORMATS} as {expected}; got {value[:80]!r}") from None


def _png(picture: Image.Image | np.ndarray) -> bytes:
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise BadRequest(f"expected an array uint8 (height, width, 3), got {picture.dtype} {picture.shape}")
        picture = Image.fromarray(picture)
    file = io.BytesIO()
    to_rgb(ImageOps.exif_transpose(picture))[0].save(file, "PNG", compress_level=1)
    return file.getvalue()


def _text(number: int, value: object, settings: Settings) -> str:
    """As ingest would store it, and training saw it."""
    if not isinstance(value, str):
        raise BadRequest(f"row {number}: text: expected a string, got {type(value).__name__} {str(value)[:60]!r}")
    try:
        return clean_text(value, settings.texts)
    except Rejected as e:
        raise BadRequest(f"row {number}: text: {e} ({REASONS[e.reason]})") from None

"""What ingest lets in as an image, and how training reads it.

Stored is always a JPEG in RGB, YCbCr or grey, upright, without metadata. A JPEG that is upright and small enough keeps its pixels
exactly: only its EXIF, colour profile, comments and whatever follows the end mark are cut out, segment by segment. Everything else
(PNG, WebP, GIF, CMYK, turned by EXIF, too large) is encoded anew. Colour profiles are ignored, as the public code and img2dataset do.
There is no choice of another form: to read WebP costs three times the time of a JPEG for a quarter fewer bytes, PNG is many times
larger, and with one form training has one decoder.

What a hostile file can cost is bounded: its sizes are judged by its header before a pixel is decoded. See also bounds.py.
"""

import io
import re
import struct
import warnings
import zlib
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

from blip_core.config import ImageLimits
from blip_core.rejected import Rejected

MOST_PIXELS = 178_956_970  # Pillow refuses more; 0.5 GB as RGB
_MOST_SCANS = 100  # of a progressive JPEG: ten are usual, each costs a pass over all pixels
_STORED = ("YCbCr", "RGB", "Gray")  # colour spaces of a JPEG that may be kept as it is
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
# what Pillow's decoders raise on damaged input
_DAMAGE = (OSError, SyntaxError, ValueError, LookupError, TypeError, ArithmeticError, EOFError, struct.error, zlib.error)
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Admitted(NamedTuple):
    """An image as it is stored. `pixels`: uint8 [height, width, 3], of what was encoded where it had to be encoded anew."""

    jpeg: bytes
    width: int
    height: int
    pixels: np.ndarray


def admit(data: bytes, limits: ImageLimits, *, short_side: int | None, quality: int) -> Admitted:
    """The image as it is stored. Rejected says what is wrong with it.

    Sizes are judged by the header before a pixel is decoded. `short_side` bounds the shorter side, in pixels; `quality` is that of
    images that must be encoded anew."""
    if len(data) > limits.max_bytes:
        raise Rejected("too_many_bytes", f"{len(data)} bytes, at most {limits.max_bytes} are allowed")
    try:
        return _admit(data, limits, short_side=short_side, quality=quality)
    except MemoryError:
        raise Rejected("bomb", "decoding takes more memory than any image within the limits") from None


def decode_rgb(jpeg: bytes) -> np.ndarray:
    """A stored image as uint8 [height, width, 3]. ValueError when it is damaged or its header announces too many pixels."""
    height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
    if height * width > MOST_PIXELS:
        raise ValueError(f"a JPEG of {width} x {height} pixels; ingest stores at most {MOST_PIXELS}")
    return simplejpeg.decode_jpeg(jpeg, "RGB")


def check_size(width: int, height: int, limits: ImageLimits) -> None:
    short, long = sorted((width, height))
    size = f"{width} x {height} pixels"
    if width * height > min(limits.max_pixels, MOST_PIXELS):
        raise Rejected("bomb", f"{size}, at most {min(limits.max_pixels, MOST_PIXELS)} in all are allowed")
    if long > limits.max_side:
        raise Rejected("too_large", f"{size}, at most {limits.max_side} a side are allowed")
    if short < limits.min_side:
        raise Rejected("too_small", f"{size}, at least {limits.min_side} a side are needed")
    if long > limits.max_aspect * short:
        raise Rejected("extreme_aspect", f"{size}, a ratio of at most {limits.max_aspect:g} is allowed")


def _admit(data: bytes, limits: ImageLimits, *, short_side: int | None, quality: int) -> Admitted:
    if data[:3] == b"\xff\xd8\xff":
        space, width, height = _jpeg_header(data)
        if space:
            check_size(width, height, limits)
            return _admit_jpeg(data, space, width, height, short_side=short_side, quality=quality)
        _strip(data)  # tells a file that ends in its header
    return _encode(_decode_any(data, limits), short_side=short_side, quality=quality)


def _jpeg_header(data: bytes) -> tuple[str, int, int]:
    """Colour space, width and height; an unknown space where simplejpeg can't read the header, but Pillow might."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        return space, width, height
    except ValueError:
        return "", 0, 0


def _admit_jpeg(data: bytes, space: str, width: int, height: int, *, short_side: int | None, quality: int) -> Admitted:
    data, exif = _strip(data)
    if data.count(b"\xff\xda") > _MOST_SCANS:
        raise Rejected("bomb", f"{data.count(bytes((0xFF, 0xDA)))} scans in a JPEG, at most {_MOST_SCANS} are allowed")
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB")
    except ValueError as e:
        raise Rejected("truncated" if "Premature end" in str(e) else "corrupt", str(e)) from None
    turn = _exif_turn(exif)
    if turn is None and space in _STORED and not (short_side and min(width, height) > short_side):
        return Admitted(data, width, height, pixels)
    image = Image.fromarray(pixels) if space in _STORED else _cmyk_to_rgb(data)
    return _encode(image if turn is None else image.transpose(turn), short_side=short_side, quality=quality)


def _cmyk_to_rgb(data: bytes) -> Image.Image:
    """By Pillow, which heeds what the Adobe segment says: whether the values are inverted."""
    try:
        return Image.open(io.BytesIO(data), formats=("JPEG",)).convert("RGB")
    except _DAMAGE as e:
        raise Rejected("corrupt", f"{type(e).__name__}: {e}") from None


def _strip(data: bytes) -> tuple[bytes, bytes]:
    """The JPEG without metadata and without what follows its end mark; and its EXIF block, empty where it has none."""
    kept, kept_from, exif, at = bytearray(), 0, b"", 2
    while True:
        due = at
        start, marker, at = _marker(data, due)
        if start > due:  # 0xff that fill
            kept += data[kept_from:due]
            kept_from = start
        if marker == 0xD9:
            return bytes(kept + data[kept_from:at]), exif
        end = at + int.from_bytes(data[at : at + 2], "big")
        if end < at + 2 or end > len(data):
            raise Rejected("truncated", f"the segment {marker:#04x} at byte {start} reaches beyond the end of the file")
        body = data[at + 2 : end]
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            exif = exif or body
        if marker == 0xDA:
            end = _end_of_scan(data, end)
        # JFIF and Adobe segments say how the colours are coded; the other APPn and the comments are metadata
        if (0xE0 <= marker <= 0xEF or marker == 0xFE) and not body.startswith((b"JFIF\0", b"Adobe")):
            kept += data[kept_from:start]
            kept_from = end
        at = end


def _marker(data: bytes, at: int) -> tuple[int, int, int]:
    """Where the marker that is due at `at` starts (0xff may be repeated before it), its code, and where its segment goes on."""
    if at >= len(data) - 1:
        raise Rejected("truncated", f"no end mark in {len(data)} bytes")
    if data[at] != 0xFF:
        raise Rejected("corrupt", f"byte {at} is {data[at]:#04x} where a JPEG marker is due")
    while at < len(data) - 2 and data[at + 1] == 0xFF:
        at += 1
    return at, data[at + 1], at + 2


_SCAN_END = re.compile(rb"\xff[^\xff\x00\xd0-\xd7]")  # within a scan, 0xff is followed by 0 or a restart mark


def _end_of_scan(data: bytes, at: int) -> int:
    found = _SCAN_END.search(data, at)
    if not found:
        raise Rejected("truncated", f"the scan that begins at byte {at} has no end")
    return at + len(data[at : found.start()].rstrip(b"\xff"))


def _exif_turn(exif: bytes) -> Image.Transpose | None:
    """How to turn the image upright. EXIF that can't be read says nothing, as in every viewer."""
    if not exif:
        return None
    tags = Image.Exif()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tags.load(exif)
            return _TURN.get(tags.get(ExifTags.Base.Orientation))
        except _DAMAGE:
            return None


def _decode_any(data: bytes, limits: ImageLimits) -> Image.Image:
    """Upright RGB by Pillow: the first frame, transparency on white, 16 bit scaled to 8."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # our own limits decide about large images; damaged metadata is not stored
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except UnidentifiedImageError:
            raise Rejected("not_an_image", f"{len(data)} bytes that begin with {data[:16]!r}") from None
        except Image.DecompressionBombError as e:
            raise Rejected("bomb", str(e)) from None
        except _DAMAGE as e:
            raise Rejected("corrupt", f"{type(e).__name__}: {e}") from None
        check_size(*image.size, limits)
        try:
            image.load()
            upright = _exif_turn(image.info.get("exif", b""))
            return _to_rgb(image) if upright is None else _to_rgb(image).transpose(upright)
        except _DAMAGE as e:
            reason = "truncated" if "truncated" in str(e) else "corrupt"
            raise Rejected(reason, f"{image.format}: {type(e).__name__}: {e}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # convert() would clip 16 bit at 255
        pixels = np.asarray(image)
        pixels = pixels if pixels.dtype == np.uint16 else pixels.clip(0, 65535)
        return Image.fromarray((pixels // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:  # convert("RGB") would show the hidden colours
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _encode(image: Image.Image, *, short_side: int | None, quality: int) -> Admitted:
    scale = min(1.0, short_side / min(image.size)) if short_side else 1.0
    if scale < 1:
        image = image.resize(tuple(max(1, round(side * scale)) for side in image.size), Image.Resampling.BICUBIC)
    # the accurate DCT gives the same bytes with any instruction set
    pixels = np.ascontiguousarray(image)
    jpeg = simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="420", fastdct=False)
    return Admitted(jpeg, *image.size, pixels)

"""What ingest lets in as an image, and how training reads it.

Stored is a JPEG (RGB, YCbCr or grey), a PNG or a WebP: upright, opaque, of at most 8 bits a channel, without metadata. What is so already
and small enough keeps the bytes that make its pixels; metadata and colour profiles are cut out (containers.py), and so is all of an
animated PNG but its first frame. What must change (turned by EXIF, transparent, 16 bit, CMYK, GIF, animated WebP, too large) is encoded
anew: what came without loss (PNG, GIF, lossless WebP) as PNG, the rest, which has lost some already, as JPEG, which reads faster than WebP.
That is `keep`. `jpeg` makes JPEGs of PNG and WebP in any case: one quick decoder for a long training, and far smaller files than PNG.
Which files are let in is the same for both.

What a hostile file can cost is bounded: its sizes are judged by its header before a pixel is decoded. See also bounds.py.
"""

import io
import struct
import warnings
import zlib
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

from blip_core.config.intake import ImageLimits
from blip_core.files.rejected import Rejected
from blip_core.pictures.containers import Bare, bare_jpeg, bare_png, bare_webp, is_png, is_webp

_FILTER = Image.Resampling.HAMMING  # for making smaller alone: about as sharp as bicubic there, in two thirds of its time
MOST_PIXELS = 178_956_970  # Pillow refuses more; 0.5 GB as RGB
_MOST_SCANS = 100  # of a progressive JPEG: ten are usual, each costs a pass over all pixels
_STORED = ("YCbCr", "RGB", "Gray")  # colour spaces of a JPEG that may be kept as it is
_BARE = ("PNG", "WEBP")
_FORMATS = (*_BARE, "JPEG", "GIF")
# what Pillow's decoders raise on damaged input
_DAMAGE = (OSError, SyntaxError, ValueError, LookupError, TypeError, ArithmeticError, AssertionError, EOFError, struct.error, zlib.error)
_TURN: dict[object, Image.Transpose] = {
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

    data: bytes
    width: int
    height: int
    pixels: np.ndarray


def admit(data: bytes, limits: ImageLimits, *, short_side: int | None, quality: int, format: Literal["keep", "jpeg"]) -> Admitted:
    """The image as it is stored. Rejected says what is wrong with it; `format` has no say in that.

    Sizes are judged by the header before a pixel is decoded. `short_side` bounds the shorter side, in pixels; `quality` is that of JPEGs
    that must be encoded anew."""
    if len(data) > limits.max_bytes:
        raise Rejected("too_many_bytes", f"{len(data)} bytes, at most {limits.max_bytes} are allowed")
    try:
        if data[:3] == b"\xff\xd8\xff":
            return _admit_jpeg(data, limits, short_side=short_side, quality=quality)
        return _admit_other(data, limits, short_side=short_side, quality=quality, keep=format == "keep")
    except MemoryError:
        raise Rejected("bomb", "decoding takes more memory than any image within the limits") from None


def decode_rgb(data: bytes) -> np.ndarray:
    """A stored image as uint8 [height, width, 3]. ValueError when it is damaged or its header announces too many pixels."""
    if data[:2] != b"\xff\xd8":
        return _decode_stored(data)
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    if height * width > MOST_PIXELS:
        raise ValueError(f"a JPEG of {width} x {height} pixels; ingest stores at most {MOST_PIXELS}")
    return simplejpeg.decode_jpeg(data, "RGB")


def _decode_stored(data: bytes) -> np.ndarray:
    """A PNG or WebP. All that ingest stores are opaque, so an alpha channel has nothing to say."""
    try:
        return np.array(Image.open(io.BytesIO(data), formats=_BARE).convert("RGB"))
    except (*_DAMAGE, Image.DecompressionBombError) as e:
        raise ValueError(f"{type(e).__name__}: {e}") from None


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


def _admit_jpeg(data: bytes, limits: ImageLimits, *, short_side: int | None, quality: int) -> Admitted:
    space, width, height = _jpeg_header(data)
    if space:
        check_size(width, height, limits)
    bare, exif = bare_jpeg(data)  # before Pillow as well: it tells a file that ends in its header
    turn = _exif_turn(exif)
    if not space:
        return _encode(_turned(_decode(bare, limits)[0], turn), short_side=short_side, quality=quality)
    if bare.count(b"\xff\xda") > _MOST_SCANS:
        raise Rejected("bomb", f"{bare.count(bytes((0xFF, 0xDA)))} scans in a JPEG, at most {_MOST_SCANS} are allowed")
    try:
        pixels = simplejpeg.decode_jpeg(bare, "RGB")
    except ValueError as e:
        raise Rejected("truncated" if "Premature end" in str(e) else "corrupt", str(e)) from None
    if turn is None and space in _STORED and not (short_side and min(width, height) > short_side):
        return Admitted(bare, width, height, pixels)
    image = Image.fromarray(pixels) if space in _STORED else _cmyk_to_rgb(bare)
    return _encode(_turned(image, turn), short_side=short_side, quality=quality)


def _admit_other(data: bytes, limits: ImageLimits, *, short_side: int | None, quality: int, keep: bool) -> Admitted:
    bare = _bare(data)
    image, opaque = _decode(bare.data, limits)
    turn = _exif_turn(bare.exif)
    if keep and bare.exact and opaque and turn is None and not (short_side and min(image.size) > short_side):
        return Admitted(bare.data, *image.size, np.asarray(image))
    return _encode(_turned(image, turn), short_side=short_side, quality=quality, lossless=keep and bare.lossless)


def _bare(data: bytes) -> Bare:
    """What is neither PNG nor WebP can only be a GIF, or nothing that is let in."""
    if is_png(data):
        return bare_png(data)
    return bare_webp(data) if is_webp(data) else Bare(data, b"", lossless=True, exact=False)


def _jpeg_header(data: bytes) -> tuple[str, int, int]:
    """Colour space, width and height; an unknown space where simplejpeg can't read the header, but Pillow might."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        return space, width, height
    except ValueError:
        return "", 0, 0


def _cmyk_to_rgb(data: bytes) -> Image.Image:
    """By Pillow, which heeds what the Adobe segment says: whether the values are inverted."""
    try:
        return Image.open(io.BytesIO(data), formats=("JPEG",)).convert("RGB")
    except _DAMAGE as e:
        raise Rejected("corrupt", f"{type(e).__name__}: {e}") from None


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


def _turned(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    return image if turn is None else image.transpose(turn)


def _decode(data: bytes, limits: ImageLimits) -> tuple[Image.Image, bool]:
    """RGB by Pillow, of the first frame; and whether no pixel was transparent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # our own limits decide about large images; damaged metadata is not stored
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except UnidentifiedImageError:
            known = is_png(data) or is_webp(data)
            raise Rejected("corrupt" if known else "not_an_image", f"{len(data)} bytes that begin with {data[:16]!r}") from None
        except Image.DecompressionBombError as e:
            raise Rejected("bomb", str(e)) from None
        except _DAMAGE as e:
            raise Rejected("corrupt", f"{type(e).__name__}: {e}") from None
        check_size(*image.size, limits)
        try:
            image.load()
            return to_rgb(image)
        except _DAMAGE as e:
            reason = "truncated" if "truncated" in str(e) else "corrupt"
            raise Rejected(reason, f"{image.format}: {type(e).__name__}: {e}") from None


def to_rgb(image: Image.Image) -> tuple[Image.Image, bool]:
    """Transparency on white, 16 bit scaled to 8; and whether no pixel was transparent."""
    if image.mode.startswith("I"):  # convert() would clip 16 bit at 255
        pixels = np.asarray(image)
        pixels = pixels if pixels.dtype == np.uint16 else pixels.clip(0, 65535)
        return Image.fromarray((pixels // 257).astype(np.uint8)).convert("RGB"), True
    if not image.has_transparency_data:
        return image.convert("RGB"), True
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema()[0] == 255:
        return image.convert("RGB"), True
    # convert("RGB") would show the hidden colours
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"), False


def _encode(image: Image.Image, *, short_side: int | None, quality: int, lossless: bool = False) -> Admitted:
    scale = min(1.0, short_side / min(image.size)) if short_side else 1.0
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), _FILTER)
    pixels = np.ascontiguousarray(image)
    if lossless:
        return Admitted(_png(image, pixels), *image.size, pixels)
    # the accurate DCT gives the same bytes with any instruction set
    jpeg = simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="420", fastdct=False)
    return Admitted(jpeg, *image.size, pixels)


def _png(image: Image.Image, pixels: np.ndarray) -> bytes:
    """What is grey, as scans and X-rays are, takes one channel."""
    grey = (pixels == pixels[..., :1]).all()
    buffer = io.BytesIO()
    (image.getchannel(0) if grey else image).save(buffer, "PNG")
    return buffer.getvalue()

"""What ingest lets in as an image, what it stores, and what it sets aside."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from blip_core.config.intake import ImageLimits
from blip_core.files.rejected import Rejected
from blip_core.pictures.images import admit, decode_rgb

LIMITS = ImageLimits(min_side=32, max_side=16384, max_pixels=40_000_000, max_aspect=5.0, max_bytes=33_554_432)
QUADRANTS = {"red": (0, 0), "green": (0, 1), "blue": (1, 0), "white": (1, 1)}  # row, column


def picture(width: int = 96, height: int = 64) -> Image.Image:
    """Four quadrants of known colours, so that a turned or mirrored picture shows."""
    image = Image.new("RGB", (width, height))
    for colour, (row, column) in QUADRANTS.items():
        image.paste(colour, (column * width // 2, row * height // 2, (column + 1) * width // 2, (row + 1) * height // 2))
    return image


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def stored(data: bytes, short_side: int | None = None) -> np.ndarray:
    """What training reads of an admitted image; checks that the announced size is true."""
    image = admit(data, LIMITS, short_side=short_side, quality=90, format="keep")
    pixels = decode_rgb(image.data)
    assert pixels.shape == image.pixels.shape == (image.height, image.width, 3)
    return pixels


def reason(data: bytes, limits: ImageLimits = LIMITS, *, format: str = "keep") -> str:
    with pytest.raises(Rejected) as e:
        admit(data, limits, short_side=None, quality=90, format=format)
    return e.value.reason


def looks_like(pixels: np.ndarray, image: Image.Image, tolerance: float = 12) -> bool:
    """The middles of the four quadrants have the same colours."""
    a, b = (np.asarray(im.resize((2, 2), Image.Resampling.BOX), dtype=float) for im in (Image.fromarray(pixels), image.convert("RGB")))
    return pixels.shape[:2] == image.size[::-1] and abs(a - b).max() < tolerance


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}])
def test_a_plain_jpeg_keeps_its_bytes(options):
    data = encoded(picture(), quality=80, **options)
    assert admit(data, LIMITS, short_side=None, quality=90, format="keep")[:3] == (data, 96, 64)
    assert admit(data, LIMITS, short_side=64, quality=90, format="keep")[0] == data


def test_quality_is_that_of_what_is_encoded_anew():
    """Of a PNG and of a JPEG that is too large, not of one that may stay as it is."""
    kept, png, large = encoded(picture(), quality=80), encoded(NOISE, "PNG"), encoded(NOISE.resize((300, 200)))
    for data, changes in ((kept, False), (png, True), (large, True)):
        low, high = (admit(data, LIMITS, short_side=100, quality=quality, format="jpeg").data for quality in (50, 95))
        assert len(low) < len(high) if changes else low == high == data


def test_fill_bytes_go():
    """0xff may be repeated before any marker, also before the one that ends a scan; nothing else changes."""
    data = encoded(NOISE, restart_marker_rows=1, comment=b"x")
    plain = encoded(NOISE, restart_marker_rows=1)
    at, scan = data.index(b"\xff\xdb"), data.index(b"\xff\xda")
    filled = data[:at] + b"\xff" * 9 + data[at:scan] + b"\xff" * 3 + data[scan:-2] + b"\xff" * 5 + data[-2:]
    assert admit(filled, LIMITS, short_side=None, quality=90, format="keep").data == plain


def test_a_grey_jpeg_keeps_its_bytes_and_reads_as_rgb():
    data = encoded(picture().convert("L"))
    jpeg, *_ = admit(data, LIMITS, short_side=None, quality=90, format="keep")
    assert jpeg == data
    assert decode_rgb(jpeg).shape == (64, 96, 3)


@pytest.mark.parametrize("progressive", [False, True])
def test_metadata_goes_and_pixels_stay(progressive):
    exif = Image.Exif()
    exif[0x010F], exif[0x8825] = "Camera", {1: "N", 2: (48.0, 8.0, 0.0)}
    plain = encoded(picture(), progressive=progressive)
    metadata = dict(exif=exif, comment=b"taken at home", icc_profile=b"x" * 3000, xmp=b"<x:xmpmeta/>")
    rich = encoded(picture(), progressive=progressive, **metadata)
    assert metadata.keys() <= Image.open(io.BytesIO(rich)).info.keys()
    jpeg, *_ = admit(rich + b"a film follows", LIMITS, short_side=None, quality=90, format="keep")
    assert jpeg == plain
    assert not metadata.keys() & Image.open(io.BytesIO(jpeg)).info.keys()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied_once(orientation, kind):
    """The stored picture is upright for a reader that ignores EXIF, and holds no EXIF that would turn it again."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that turns upright into as-stored
    taken = picture() if orientation == 1 else picture().transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(taken, kind, exif=exif)
    assert looks_like(stored(data), picture())
    assert not Image.open(io.BytesIO(admit(data, LIMITS, short_side=None, quality=90, format="keep")[0])).getexif()


def test_broken_exif_is_no_reason_to_lose_a_picture():
    data = encoded(picture())
    broken = data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + 14) + b"Exif\0\0MM\0*\xff\xff\xff\xff" + data[2:]
    assert admit(broken, LIMITS, short_side=None, quality=90, format="keep")[0] == data


@pytest.mark.parametrize("size", [(200, 100), (100, 200)])
def test_short_side_shrinks_and_never_enlarges(size):
    data = encoded(picture(*size))
    assert sorted(stored(data, short_side=50).shape[:2]) == [50, 100]
    assert looks_like(stored(data, short_side=50), picture(*size).resize((size[0] // 2, size[1] // 2)))
    assert admit(data, LIMITS, short_side=500, quality=90, format="keep")[0] == data


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "P"), ("PNG", "L"), ("PNG", "1"), ("WEBP", "RGB"), ("GIF", "RGB")]
)
def test_other_kinds_become_rgb_jpeg(kind, mode):
    image = picture().convert(mode)
    jpeg, *_ = admit(encoded(image, kind), LIMITS, short_side=None, quality=90, format="jpeg")
    assert simplejpeg.decode_jpeg_header(jpeg)[2] == "YCbCr"
    assert looks_like(decode_rgb(jpeg), image)


def test_sixteen_bit_is_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    pixels = stored(encoded(Image.fromarray(ramp), "PNG"))
    assert 125 < pixels.mean() < 130
    assert pixels[0, 0].max() < 8 and pixels[-1, -1].min() > 247


def test_transparent_is_white_whatever_colour_is_hidden_there():
    image = picture().convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    palette = Image.new("P", (64, 64), 0)
    palette.putpalette([255, 0, 0] + [0, 0, 255] * 255)
    for data in (encoded(image, "PNG"), encoded(image, "WEBP", lossless=True)):
        assert stored(data).min() > 250
    for kind in ("PNG", "GIF"):
        assert stored(encoded(palette, kind, transparency=0)).min() > 250
    assert stored(encoded(image.convert("LA"), "PNG")).min() > 250


def test_of_an_animation_the_first_frame():
    for kind in ("GIF", "WEBP", "PNG"):
        data = encoded(picture(), kind, save_all=True, append_images=[Image.new("RGB", (96, 64), "black")] * 3)
        assert looks_like(stored(data), picture())


JPEG = encoded(NOISE, quality=95)
EXIF_JPEG = encoded(picture(), exif=b"Exif\0\0" + bytes(100))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "not_an_image"),
        (b"<html><body>404</body></html>", "not_an_image"),
        (b"\xff\xd8", "not_an_image"),
        (b"\xff\xd8\xff", "truncated"),
        (JPEG[:300], "truncated"),
        (encoded(picture(), "BMP"), "not_an_image"),
        (encoded(picture(), "TIFF"), "not_an_image"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (JPEG[:-2], "truncated"),
        (EXIF_JPEG[:-2], "truncated"),
        (encoded(NOISE, "PNG")[:-40], "truncated"),
        (encoded(picture(), "WEBP")[:-40], "truncated"),
        (JPEG[:2000] + bytes(64) + JPEG[2064:], "corrupt"),
        (encoded(NOISE.convert("CMYK"))[:-300], "truncated"),
        (encoded(picture(31, 100)), "too_small"),
        (encoded(picture(31, 100), "PNG"), "too_small"),
        (encoded(picture(400, 79)), "extreme_aspect"),
    ],
)
def test_set_aside(data, expected):
    assert reason(data) == expected


def test_limits_are_inclusive():
    limits = ImageLimits(min_side=40, max_side=200, max_pixels=200 * 40, max_aspect=5.0, max_bytes=10**6)
    admit(encoded(picture(200, 40)), limits, short_side=None, quality=90, format="keep")
    assert reason(encoded(picture(200, 42)), limits) == "bomb"
    assert reason(encoded(picture(202, 40)), limits) == "bomb"
    assert reason(encoded(picture(202, 40)), limits.model_copy(update={"max_pixels": 10**6})) == "too_large"
    data = encoded(picture(100, 50))
    assert reason(data, limits.model_copy(update={"max_bytes": len(data) - 1})) == "too_many_bytes"


def jpeg_that_announces(width: int, height: int) -> bytes:
    """A small JPEG whose header was edited: decoding it would take 12 GB and 39 s."""
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", height, width) + JPEG[at + 4 :]


def png_that_announces(width: int, height: int) -> bytes:
    """A valid PNG of one colour, some kilobytes large."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    packer = zlib.compressobj(1)
    rows = b"".join([packer.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)] + [packer.flush()])
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("announce", [jpeg_that_announces, png_that_announces])
@pytest.mark.parametrize("side", [7000, 15000])
def test_a_bomb_is_known_by_its_header(announce, side):
    data = announce(side, side)
    start = time.process_time()
    assert reason(data) == "bomb"
    assert time.process_time() - start < 0.1


def test_a_jpeg_of_a_thousand_scans_is_a_bomb():
    """Each scan costs a pass over all pixels, however little it holds."""
    data = encoded(picture(), progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert reason(data[:-2] + scan * 1000 + data[-2:]) == "bomb"


def test_a_jpeg_of_a_million_segments_is_a_bomb():
    data = encoded(picture())
    few, many = (data[:2] + b"\xff\xfe\0\2" * count + data[2:] for count in (1000, 1_000_000))
    assert admit(few, LIMITS, short_side=None, quality=90, format="keep").data == data and reason(many) == "bomb"


def test_reading_guards_the_header_too():
    with pytest.raises(ValueError, match="65000 x 65000"):
        decode_rgb(jpeg_that_announces(65000, 65000))


def test_admitting_what_is_stored_changes_nothing():
    """A shard can be ingested again, byte by byte."""
    for data in (encoded(picture(), "PNG"), encoded(picture().convert("CMYK")), encoded(picture(300, 200))):
        jpeg, *_ = admit(data, LIMITS, short_side=128, quality=90, format="keep")
        assert admit(jpeg, LIMITS, short_side=128, quality=90, format="keep")[0] == jpeg

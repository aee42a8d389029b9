"""PNG and WebP that stay as they are: which do, and what goes of them."""

import io
import struct
import tarfile
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from blip_core.files.rejected import Rejected
from blip_core.pictures.containers import kind_of
from blip_core.pictures.images import Admitted, admit, decode_rgb
from tests.pictures.test_images import LIMITS, NOISE, encoded, looks_like, picture, reason

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">where it was taken</x:xmpmeta>'


def kept(data: bytes, *, short_side: int | None = None, format: str = "keep") -> Admitted:
    """As it is stored; checks that this reads as announced, comes out alike from the same bytes, and is admitted again as it stands."""
    image = admit(data, LIMITS, short_side=short_side, quality=90, format=format)
    assert decode_rgb(image.data).shape == image.pixels.shape == (image.height, image.width, 3)
    for again in (data, image.data):
        assert admit(again, LIMITS, short_side=short_side, quality=90, format=format).data == image.data
    if kind_of(image.data) != "jpg" or image.data in data:
        assert np.array_equal(decode_rgb(image.data), image.pixels)
    return image


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_chunks(data: bytes) -> list[bytes]:
    """By name, in order."""
    names, at = [], 8
    while at < len(data):
        names.append(data[at + 4 : at + 8])
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return names


def webp_chunks(data: bytes) -> list[bytes]:
    names, at = [], 12
    while at < len(data):
        names.append(data[at : at + 4])
        at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        at += at & 1
    assert at == len(data) == 8 + int.from_bytes(data[4:8], "little")
    return names


def with_orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = value, "Camera"
    return exif


@pytest.mark.parametrize("mode", ["RGB", "P", "L", "1", "RGBA", "LA"])
def test_a_png_keeps_its_bytes(mode):
    """Also one with an alpha channel that hides nothing."""
    data = encoded(NOISE.convert(mode), "PNG")
    image = kept(data, short_side=64)
    assert image.data == data and (image.width, image.height) == (96, 64)
    assert np.array_equal(image.pixels, pixels(data))


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"quality": 30, "method": 0}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_webp_keeps_its_bytes(options, mode):
    data = encoded(NOISE.convert(mode), "WEBP", **options)
    image = kept(data, short_side=64)
    assert image.data == data and np.array_equal(image.pixels, pixels(data))


def test_an_interlaced_png_and_one_of_few_bits_keep_their_pixels():
    for bits in (1, 2, 4):
        data = encoded(NOISE.quantize(2**bits), "PNG", bits=bits)
        assert data[24] == bits and kept(data).data == data
    rows = bytes(NOISE.tobytes())
    sevenths = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]  # of Adam7
    grid, packed = np.frombuffer(rows, np.uint8).reshape(64, 96, 3), b""
    for left, top, right, down in sevenths:
        packed += b"".join(b"\0" + row.tobytes() for row in grid[top::down, left::right])
    head = struct.pack(">IIBBBBB", 96, 64, 8, 2, 0, 0, 1)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(packed)) + chunk(b"IEND", b"")
    image = kept(data)
    assert image.data == data and np.array_equal(image.pixels, grid)


def test_of_a_png_goes_all_that_makes_no_pixel():
    texts = PngInfo()
    texts.add_text("Comment", "taken at home")
    texts.add_text("Author", "Ada", zip=True)
    texts.add_itxt("XML:com.adobe.xmp", XMP.decode())
    plain = encoded(NOISE, "PNG")
    more = dict(exif=with_orientation(1), icc_profile=b"x" * 3000, dpi=(300, 300), pnginfo=texts)
    rich = encoded(NOISE, "PNG", **more)
    gamma = chunk(b"gAMA", struct.pack(">I", 100_000)) + chunk(b"cHRM", bytes(32)) + chunk(b"tIME", bytes(7)) + chunk(b"prVt", b"secret")
    rich = rich[:33] + gamma + rich[33:-12] + chunk(b"tEXt", b"Comment\0after the pixels") + rich[-12:]
    assert {b"eXIf", b"iCCP", b"tEXt", b"zTXt", b"iTXt", b"pHYs", b"gAMA", b"prVt"} <= set(png_chunks(rich))
    image = kept(rich + b"a film follows")
    assert image.data == plain and set(png_chunks(image.data)) == {b"IHDR", b"IDAT", b"IEND"}
    assert np.array_equal(image.pixels, np.asarray(NOISE))


@pytest.mark.parametrize("lossless", [False, True])
def test_of_a_webp_goes_all_that_makes_no_pixel(lossless):
    plain = encoded(NOISE, "WEBP", lossless=lossless)
    rich = encoded(NOISE, "WEBP", lossless=lossless, exif=with_orientation(1), icc_profile=b"x" * 3001, xmp=XMP)
    assert {b"EXIF", b"ICCP", b"XMP ", b"VP8X"} <= set(webp_chunks(rich))
    image = kept(rich + b"a film follows")
    assert not {b"EXIF", b"ICCP", b"XMP "} & set(webp_chunks(image.data)) and image.data[20] & ~0x10 == 0
    assert not Image.open(io.BytesIO(image.data)).info.keys() & {"exif", "icc_profile", "xmp"}
    assert np.array_equal(image.pixels, pixels(plain)) and np.array_equal(pixels(image.data), pixels(rich))


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize(("kind", "options", "becomes"), [("PNG", {}, "png"), ("WEBP", {"lossless": True}, "png"), ("WEBP", {}, "jpg")])
def test_what_exif_turns_is_stored_upright(orientation, kind, options, becomes):
    """Without loss where it came without."""
    data = encoded(picture(), kind, exif=with_orientation(orientation), **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    image = kept(data)
    assert kind_of(image.data) == becomes and not Image.open(io.BytesIO(image.data)).getexif()
    assert looks_like(image.pixels, upright)
    assert becomes == "jpg" or np.array_equal(image.pixels, np.asarray(upright))


def test_exif_behind_the_pixels_of_a_png_turns_too():
    data = encoded(picture(), "PNG")
    data = data[:-12] + chunk(b"eXIf", with_orientation(6).tobytes().removeprefix(b"Exif\0\0")) + data[-12:]
    assert looks_like(kept(data).pixels, picture().transpose(Image.Transpose.ROTATE_270))


FRAMES = dict(save_all=True, append_images=[Image.new("RGB", (96, 64), "black")] * 3)


@pytest.mark.parametrize(
    ("data", "becomes"),
    [
        (encoded(picture(), "GIF"), "png"),
        (encoded(picture(), "GIF", **FRAMES), "png"),
        (encoded(NOISE, "WEBP", **FRAMES), "jpg"),
        (encoded(NOISE, "WEBP", lossless=True, **FRAMES), "png"),
        (encoded(NOISE, "PNG", **FRAMES), "png"),
        (encoded(NOISE.convert("CMYK")), "jpg"),
        (encoded(NOISE.resize((300, 200)), "PNG"), "png"),
        (encoded(NOISE.resize((300, 200)), "WEBP"), "jpg"),
        (encoded(NOISE.resize((300, 200)), "WEBP", lossless=True), "png"),
        (encoded(Image.fromarray(np.arange(96 * 64, dtype=np.uint16).reshape(64, 96) * 10), "PNG"), "png"),
    ],
)
def test_what_came_without_loss_stays_without(data, becomes):
    image = kept(data, short_side=100)
    assert kind_of(image.data) == becomes and min(image.width, image.height) <= 100
    assert kind_of(kept(data, short_side=100, format="jpeg").data) == "jpg"


def test_an_animated_png_leaves_its_first_frame():
    data = encoded(NOISE, "PNG", **FRAMES)
    assert {b"acTL", b"fdAT"} <= set(png_chunks(data))
    image = kept(data)
    assert set(png_chunks(image.data)) == {b"IHDR", b"IDAT", b"IEND"} and np.array_equal(image.pixels, np.asarray(NOISE))


def test_transparent_pixels_are_white_and_opaque_ones_exact():
    """By an alpha channel, a palette's entry or one colour; and what names a colour that no pixel has hides none."""
    rgba = NOISE.convert("RGBA")
    rgba.paste((1, 2, 3, 0), (0, 0, 48, 64))
    palette = NOISE.quantize(16)
    grey = NOISE.convert("L").point(lambda v: max(v, 1))
    for data in (encoded(rgba, "PNG"), encoded(rgba, "WEBP", lossless=True), encoded(palette, "PNG", transparency=3)):
        image, whole = kept(data), Image.open(io.BytesIO(data)).convert("RGBA")
        shown, solid = image.pixels, np.asarray(whole)[..., 3] == 255
        assert kind_of(image.data) == "png" and (shown[~solid] == 255).all() and (~solid).any()
        assert np.array_equal(shown[solid], np.asarray(whole)[solid][:, :3])
    assert kind_of(kept(encoded(rgba, "WEBP")).data) == "jpg"
    data = encoded(grey, "PNG", transparency=0)
    assert b"tRNS" in png_chunks(data) and kept(data).data == data


def test_grey_takes_one_channel():
    ramp = Image.fromarray(np.linspace(0, 65535, 96 * 64).astype(np.uint16).reshape(64, 96))
    image = kept(encoded(ramp, "PNG"))
    assert image.data[24:26] == b"\x08\x00" and len(np.unique(image.pixels)) == 256


def png_with(*parts: bytes) -> bytes:
    """A PNG with these chunks behind its header."""
    data = encoded(NOISE, "PNG")
    return data[:33] + b"".join(parts) + data[33:]


def spoilt(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


PNG, WEBP = encoded(NOISE, "PNG"), encoded(NOISE, "WEBP")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (spoilt(PNG, len(PNG) // 2, b"\0\0\0\0"), "corrupt"),  # pixels that do not match their checksum
        (spoilt(PNG, 29, b"\0\0\0\0"), "corrupt"),  # the header's checksum
        (PNG[:-12], "truncated"),
        (PNG[:-1], "truncated"),
        (PNG[:20], "truncated"),
        (PNG[:8] + PNG[33:], "corrupt"),  # no header
        (png_with(PNG[8:33]), "corrupt"),  # two headers
        (png_with(chunk(b"CgBI", bytes(4))), "corrupt"),
        (png_with(spoilt(chunk(b"tEXt", b"x"), 0, b"\xff\xff\xff\xff")), "truncated"),
        (png_with(chunk(b"tEXt", b"") * 110_000), "bomb"),
        (spoilt(PNG, 8, chunk(b"IHDR", struct.pack(">IIBBBBB", 65000, 65000, 8, 2, 0, 0, 0))), "bomb"),
        (spoilt(PNG, 8, chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 0, 8, 2, 0, 0, 0))), "corrupt"),
        (WEBP[:20], "truncated"),
        (spoilt(WEBP, 4, struct.pack("<I", len(WEBP))), "truncated"),
        (spoilt(WEBP, 4, struct.pack("<I", len(WEBP) - 40)), "corrupt"),
        (spoilt(WEBP, 4, bytes(4)), "corrupt"),
        (spoilt(WEBP, 4, b"\xff\xff\xff\xff"), "truncated"),
        (spoilt(WEBP, 12, b"VPXX"), "corrupt"),
        (b"RIFF" + struct.pack("<I", 4 + 8 * 110_000) + b"WEBP" + (b"JUNK" + bytes(4)) * 110_000, "bomb"),
        (b"RIFF\x0e\0\0\0WEBPVP8X\0\0\0\0\0\0", "corrupt"),
        (b"RIFF\x24\0\0\0WAVEfmt " + bytes(28), "not_an_image"),
    ],
)
def test_damage_is_told_whatever_the_format(data, expected):
    assert reason(data) == reason(data, format="jpeg") == expected


def test_damage_of_what_goes_anyway_costs_nothing():
    data = png_with(spoilt(chunk(b"tEXt", b"hello"), 9, b"J"), spoilt(chunk(b"eXIf", b"MM\0*" + b"\xff" * 20), 8, b"?"))
    assert kept(data).data == PNG


def test_a_webp_whose_header_announces_other_pixels_is_corrupt():
    data = encoded(NOISE, "WEBP", exif=with_orientation(1))
    assert data[12:16] == b"VP8X"
    assert reason(spoilt(data, 24, b"\xff\xff\x00")) in ("corrupt", "bomb", "extreme_aspect", "too_large")


def test_reading_guards_the_header_of_every_kind():
    """Of files that changed since ingest."""
    large = chunk(b"IHDR", struct.pack(">IIBBBBB", 65000, 65000, 8, 2, 0, 0, 0))
    for data in (spoilt(PNG, 8, large), PNG[:200], WEBP[:200], b"<html>", b"", encoded(picture(), "GIF")):
        with pytest.raises(ValueError):
            decode_rgb(data)


def test_real_pictures(shared):
    """Of a crawl, with its metadata; each tenth also as a PNG and as WebP."""
    files, seen = [], Counter()
    for path in sorted((shared / "real/web_alt").glob("*.tar")):
        with tarfile.open(path) as tar:
            files += [tar.extractfile(m).read() for m in tar.getmembers() if m.name.endswith("jpg")]
    for i, data in enumerate(files):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        more = [encoded(image, kind, exif=with_orientation(1), xmp=XMP) for kind in ("PNG", "WEBP") if not i % 10]
        for file in (data, *more):
            try:
                taken = kept(file)
            except Rejected as e:
                seen[e.reason] += 1
                continue
            assert not Image.open(io.BytesIO(taken.data)).info.keys() & {"exif", "icc_profile", "xmp", "comment"}
            assert file is data or np.array_equal(taken.pixels, pixels(file))
            assert kind_of(file) == kind_of(taken.data)
            seen[kind_of(file)] += 1
    assert min(seen[kind] for kind in ("jpg", "png", "webp")) > 20, seen

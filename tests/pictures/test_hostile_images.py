"""Whatever bytes come as an image, ingest admits it or says why not, at a bounded cost; nothing else ever happens."""

import io
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import textwrap
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from blip_core.config.intake import ImageLimits
from blip_core.files.rejected import Rejected
from blip_core.intake.bounds import bounded, survive
from blip_core.pictures.images import admit, decode_rgb

LIMITS = ImageLimits(min_side=8, max_side=2000, max_pixels=1_000_000, max_aspect=5.0, max_bytes=33_554_432)
MB = 1 << 20


def originals() -> list[bytes]:
    """One of each kind that a crawl holds, with the metadata and the ways of coding that decoders stumble over."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))
    smooth = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera"
    icc, frames = b"\0" * 200, dict(save_all=True, append_images=[smooth, noise], duration=10)
    kinds = [
        *[("JPEG", smooth, options) for options in ({}, dict(progressive=True), dict(exif=exif, icc_profile=icc, comment=b"x"))],
        *[("JPEG", noise.convert(mode), dict(restart_marker_rows=1)) for mode in ("L", "CMYK")],
        *[("PNG", noise.convert(mode), {}) for mode in ("RGB", "RGBA", "P", "1", "I;16")],
        ("PNG", noise.quantize(16), dict(transparency=3)),
        ("PNG", smooth, dict(exif=exif, icc_profile=icc, **frames)),
        *[("WEBP", noise, options) for options in ({}, dict(lossless=True), dict(exif=exif, icc_profile=icc), frames)],
        *[("GIF", noise.convert(mode), frames) for mode in ("L", "P")],
    ]
    return [encoded(image, kind, **options) for kind, image, options in kinds]


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, overwritten, doubled or cut out, mostly in the header, or the end cut off."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(min(len(data), rng.choice((64, 400, len(data)))) or 1)
        match rng.randrange(6):
            case 0 | 1 if data:
                data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
            case 2:
                data[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", rng.randbytes(4)))
            case 3:
                data[at:at] = data[at : at + rng.randrange(200)]
            case 4:
                del data[at : at + rng.randrange(20)]
            case 5 if rng.random() < 0.3:
                del data[at:]
    return bytes(data)


def admitted(data: bytes, **limits) -> bool:
    """Whether the image is taken; what is stored then reads as it says and is admitted again as it stands."""
    try:
        image = admit(data, LIMITS.model_copy(update=limits), short_side=32, quality=90, format="keep")
    except Rejected:
        return False
    assert decode_rgb(image.data).shape == (image.height, image.width, 3) == image.pixels.shape
    assert admit(image.data, LIMITS, short_side=32, quality=90, format="keep").data == image.data
    return True


def test_damaged_images_are_admitted_or_rejected_and_nothing_else():
    """Random damage by a fixed seed. A crash of a decoder would end the test run, a rejection for lack of memory would hide one."""
    rng, files = random.Random(0), originals()
    assert all(map(admitted, files))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with bounded(LIMITS):
        taken = [admitted(damaged(file, rng)) for _ in range(40) for file in files]
    assert 0.1 < np.mean(taken) < 0.9, "neither harmless nor hopeless"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # kB


def jpeg(width: int = 64, height: int = 64, **options) -> bytes:
    return encoded(Image.new("RGB", (width, height)), "JPEG", **options)


def png(width: int, height: int, idat: bytes, *chunks: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", idat) + chunk(b"IEND", b"")


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def zeros(count: int) -> bytes:
    """So many zero bytes, packed a thousandfold."""
    packer = zlib.compressobj(9)
    return b"".join([packer.compress(bytes(MB)) for _ in range(count // MB)] + [packer.compress(bytes(count % MB)), packer.flush()])


def gif_with_a_frame_of(side: int) -> bytes:
    data = bytearray(encoded(Image.new("L", (64, 64)), "GIF"))
    at = data.index(b"!") if b"!" in data[13:] else 13
    at = data.index(b",", at)
    data[at + 5 : at + 9] = struct.pack("<HH", side, side)
    return bytes(data)


def webp_with(chunks: bytes) -> bytes:
    data = encoded(Image.new("RGB", (64, 64)), "WEBP")
    return data[:4] + struct.pack("<I", len(data) - 8 + len(chunks)) + data[8:] + chunks


PIXELS = zlib.compress(bytes(64 * (64 * 3 + 1)))
HOSTILE = {
    "pixels that inflate to 256 MB": lambda: png(64, 64, zeros(256 * MB)),
    "a text that inflates to 256 MB": lambda: png(64, 64, PIXELS, chunk(b"zTXt", b"a\0\0" + zeros(256 * MB))),
    "100 texts of 0.9 MB": lambda: png(64, 64, PIXELS, *[chunk(b"zTXt", b"%d\0\0" % i + zeros(900_000)) for i in range(100)]),
    "a colour profile of 256 MB": lambda: png(64, 64, PIXELS, chunk(b"iCCP", b"a\0\0" + zeros(256 * MB))),
    "EXIF of 8 MB": lambda: png(64, 64, PIXELS, chunk(b"eXIf", b"MM\0*" + random.Random(0).randbytes(8 * MB))),
    "a million chunks": lambda: png(64, 64, PIXELS, chunk(b"tEXt", b"") * 1_000_000),
    "pixels in 90 000 chunks": lambda: png(64, 64, PIXELS, chunk(b"IDAT", b"") * 90_000),
    "pixels that 8 MB of zeros follow": lambda: png(64, 64, PIXELS + bytes(8 * MB)),
    "400 frames of a PNG": lambda: encoded(Image.new("L", (64, 64)), "PNG", **frames(400)),
    "a million chunks of a WebP": lambda: webp_with((b"JUNK" + bytes(4)) * 1_000_000),
    "8 MB of colour profile": lambda: webp_with(b"ICCP" + struct.pack("<I", 8 * MB) + bytes(8 * MB)),
    "a frame larger than its GIF": lambda: gif_with_a_frame_of(65535),
    "2000 frames": lambda: encoded(Image.new("L", (64, 64)), "GIF", **frames(2000)),
    "200 frames": lambda: encoded(Image.new("RGB", (64, 64)), "WEBP", **frames(200)),
    "a million segments": lambda: jpeg()[:2] + b"\xff\xc4\0\2" * 1_000_000 + jpeg()[2:],
    "a million comments": lambda: jpeg()[:2] + b"\xff\xfe\0\2" * 1_000_000 + jpeg()[2:],
    "EXIF in 300 segments": lambda: jpeg()[:2] + (b"\xff\xe1\xff\xff" + b"Exif\0\0" + bytes(65527)) * 300 + jpeg()[2:],
    "8 MB of fill bytes": lambda: jpeg()[:2] + b"\xff" * 8 * MB + jpeg()[2:],
    "8 MB behind the last scan": lambda: jpeg()[:-2] + b"\xff\xd0" * 4 * MB + jpeg()[-2:],
    "8 MB of fill bytes in a scan": lambda: jpeg()[:-2] + b"\xff" * 8 * MB + b"\0" + jpeg()[-2:],
    "a TIFF by another name": lambda: encoded(Image.new("RGB", (64, 64)), "TIFF"),
    "all pixels that are allowed": lambda: encoded(Image.new("RGBA", (1000, 1000)), "WEBP", lossless=True),
}


def frames(count: int) -> dict:
    return dict(save_all=True, append_images=[Image.new("L", (64, 64), i % 256) for i in range(count)])


@pytest.mark.parametrize("name", HOSTILE)
def test_the_cost_of_a_hostile_image_is_bounded(name):
    """In memory and processor time, far below what its author hoped for."""
    data = HOSTILE[name]()
    read, write = os.pipe()
    if (child := os.fork()) == 0:  # a process of its own, so that its peak memory is that of this image
        before, start = memory_now(), time.process_time()
        admitted(data)
        cost = np.array([memory_peak() - before, time.process_time() - start])
        os.write(write, cost.tobytes())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    memory, seconds = np.frombuffer(os.read(read, 16))
    os.close(read), os.close(write)
    assert memory < 80 * MB and seconds < 2


def memory_now() -> int:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak counts from here
    return memory_peak()


def memory_peak() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def test_a_palette_png_without_its_palette_is_corrupt():
    """Pillow fails an assertion of its own."""
    data = encoded(Image.new("P", (64, 64)), "PNG")
    at = data.index(b"PLTE") - 4
    size = 12 + int.from_bytes(data[at : at + 4], "big")
    with pytest.raises(Rejected, match="corrupt"):
        admit(data[:at] + data[at + size :], LIMITS, short_side=None, quality=90, format="keep")


def test_bounds_of_memory():
    """What asks for more memory than any image takes is told so. In a fresh process: one that has freed much may be given that again."""
    code = """
        from blip_core.intake.bounds import bounded
        from blip_core.config.intake import ImageLimits

        with bounded(ImageLimits(min_side=8, max_side=2000, max_pixels=1_000_000, max_aspect=5.0, max_bytes=33_554_432)):
            bytearray(100 << 20)
            try:
                bytearray(400 << 20)
            except MemoryError:
                print("refused")
        bytearray(400 << 20)
        """
    assert subprocess.check_output([sys.executable, "-c", textwrap.dedent(code)], text=True) == "refused\n"


def test_what_hangs_is_ended_by_the_kernel(monkeypatch):
    monkeypatch.setattr("blip_core.intake.bounds._MOST_SECONDS", 0.1)

    def hang():
        with bounded(LIMITS):
            while True:
                pass

    with pytest.raises(Rejected, match="decoder_crash: the decoder ended its process by SIGPROF"):
        survive(hang)


def test_only_a_signal_is_a_crash():
    def fail():
        raise ValueError("the caller meets it himself")

    survive(fail)
    with pytest.raises(Rejected, match="SIGKILL"):
        survive(lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_memory_that_is_refused_makes_a_bomb(monkeypatch):
    def greedy(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr("simplejpeg.decode_jpeg", greedy)
    with pytest.raises(Rejected, match="bomb: decoding takes more memory"):
        admit(jpeg(), LIMITS, short_side=None, quality=90, format="keep")

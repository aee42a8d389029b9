"""JPEG, PNG and WebP as files: which of the three it is, and the file without what does not make its pixels.

Metadata goes (EXIF, XMP, comments, texts, times, thumbnails), and with it all that says how colours are meant: ICC profiles, and
gAMA, cHRM, sRGB of a PNG. Training reads the bare values, as the public code and img2dataset do, so a stored file shows to everyone what
the model sees. What follows the end goes too. The file is cut up segment by segment, and no pixel is decoded.
"""

import re
import zlib
from typing import Literal, NamedTuple, get_args

from blip_core.files.rejected import Rejected

Kind = Literal["jpg", "png", "webp"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_CHUNKS = 100_000  # of a file: the largest PNG that is allowed has 4000 of the usual 8 kB; a JPEG has some ten segments
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")  # without these no PNG can be decoded
_ANIMATED, _ALPHA, _EXIF = 0x02, 0x10, 0x08  # flags of a WebP's VP8X


class Bare(NamedTuple):
    """A PNG or WebP without metadata. `exif`: the block that it had, else empty. `lossless`: no loss in how its pixels are coded.
    `exact`: `data` is a still image of at most 8 bits a channel; else `data` is to be decoded and encoded anew."""

    data: bytes
    exif: bytes
    lossless: bool
    exact: bool


def kind_of(data: bytes) -> Kind:
    """By its first bytes, which is how every reader tells; also the ending of its name. ValueError when it is none of the three."""
    if data[:2] == b"\xff\xd8":
        return "jpg"
    if is_png(data):
        return "png"
    if is_webp(data):
        return "webp"
    raise ValueError(f"no JPEG, PNG or WebP: {len(data)} bytes that begin with {data[:16]!r}")


def media_type(data: bytes) -> str:
    kind = kind_of(data)
    return f"image/{'jpeg' if kind == 'jpg' else kind}"


def is_png(data: bytes) -> bool:
    return data[:8] == _PNG


def is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def bare_png(data: bytes) -> Bare:
    """Of a PNG stay the chunks that make the pixels, as they are; of an animated one this leaves what viewers that know no animation
    show, its first frame. Rejected where a chunk is cut, or one that stays does not match its checksum."""
    seen: set[bytes] = set()
    kept, exif, at = [data[:8]], b"", 8
    for _ in range(_MOST_CHUNKS):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        name = data[at + 4 : at + 8]
        if end > len(data):
            raise Rejected("truncated", f"PNG: the chunk {name!r} at byte {at} reaches beyond the {len(data)} bytes of the file")
        if name in _CRITICAL or name == b"tRNS":
            kept.append(_sound_chunk(data[at:end], name, seen, at))
        elif name == b"eXIf":
            exif = exif or data[at + 8 : end - 4]
        elif not name[0] & 0x20:  # a capital: no decoder may skip it
            raise Rejected("corrupt", f"PNG: nobody knows the chunk {name!r} at byte {at}")
        if name == b"IEND":
            return Bare(b"".join(kept), exif, lossless=True, exact=data[24] <= 8)
        at = end
    raise Rejected("bomb", f"more than {_MOST_CHUNKS} chunks in a PNG")


def _sound_chunk(chunk: bytes, name: bytes, seen: set[bytes], at: int) -> bytes:
    if not seen and (name != b"IHDR" or len(chunk) != 25):
        raise Rejected("corrupt", f"PNG: {len(chunk)} bytes {name!r} where a header is due")
    if name in seen and name != b"IDAT":
        raise Rejected("corrupt", f"PNG: a second chunk {name!r} at byte {at}")
    if zlib.crc32(memoryview(chunk)[4:-4]) != int.from_bytes(chunk[-4:], "big"):
        raise Rejected("corrupt", f"PNG: the chunk {name!r} at byte {at} does not match its checksum")
    seen.add(name)
    return chunk


def bare_webp(data: bytes) -> Bare:
    """Of a still WebP stay the image, its alpha, and the header, which then announces nothing else. An animated one stays as it is."""
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise Rejected("truncated", f"WebP: {end} bytes are announced, the file has {len(data)}")
    chunks = _webp_chunks(data, end)
    header = chunks.get(b"VP8X") or b"\0"
    exif = chunks.get(b"EXIF", b"") if header[0] & _EXIF else b""
    if header[0] & _ANIMATED:
        return Bare(data[:end], exif, lossless=chunks.get(b"ANMF", b"")[16:20] == b"VP8L", exact=False)
    if len(chunks.keys() & {b"VP8 ", b"VP8L"}) != 1:
        raise Rejected("corrupt", f"WebP: expected one image, got the chunks {sorted(chunks)}")
    if b"VP8X" in chunks:
        chunks[b"VP8X"] = bytes((header[0] & _ALPHA,)) + header[1:]
    parts = [n + len(chunks[n]).to_bytes(4, "little") + _even(chunks[n]) for n in (b"VP8X", b"ALPH", b"VP8 ", b"VP8L") if n in chunks]
    body = b"WEBP" + b"".join(parts)
    return Bare(b"RIFF" + len(body).to_bytes(4, "little") + body, exif, lossless=b"VP8L" in chunks, exact=True)


def _webp_chunks(data: bytes, end: int) -> dict[bytes, bytes]:
    """The first of each name."""
    chunks: dict[bytes, bytes] = {}
    at = 12
    for _ in range(_MOST_CHUNKS):
        if at + 8 > end:
            return chunks
        name, start = data[at : at + 4], at + 8
        stop = start + int.from_bytes(data[at + 4 : start], "little")
        if stop > end:
            raise Rejected("corrupt", f"WebP: the chunk {name!r} at byte {at} reaches beyond the {end} bytes that are announced")
        chunks.setdefault(name, data[start:stop])
        at = stop + (stop & 1)
    raise Rejected("bomb", f"more than {_MOST_CHUNKS} chunks in a WebP")


def _even(chunk: bytes) -> bytes:
    return chunk + bytes(len(chunk) & 1)


def bare_jpeg(data: bytes) -> tuple[bytes, bytes]:
    """The JPEG without metadata and without what follows its end mark; and its EXIF block, empty where it has none."""
    kept, kept_from, exif, at = bytearray(), 0, b"", 2
    for _ in range(_MOST_CHUNKS):
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
    raise Rejected("bomb", f"more than {_MOST_CHUNKS} segments in a JPEG")


_FILL = re.compile(rb"\xff+")


def _marker(data: bytes, at: int) -> tuple[int, int, int]:
    """Where the marker that is due at `at` starts (0xff may be repeated before it), its code, and where its segment goes on."""
    if at >= len(data) - 1:
        raise Rejected("truncated", f"no end mark in {len(data)} bytes")
    if data[at] != 0xFF:
        raise Rejected("corrupt", f"byte {at} is {data[at]:#04x} where a JPEG marker is due")
    fill = _FILL.match(data, at)
    assert fill  # it holds the byte just seen
    at = min(fill.end() - 1, len(data) - 2)
    return at, data[at + 1], at + 2


_SCAN_END = re.compile(rb"\xff[^\xff\x00\xd0-\xd7]")  # within a scan, 0xff is followed by 0 or a restart mark


def _end_of_scan(data: bytes, at: int) -> int:
    found = _SCAN_END.search(data, at)
    if not found:
        raise Rejected("truncated", f"the scan that begins at byte {at} has no end")
    return at + len(data[at : found.start()].rstrip(b"\xff"))

"""Whether a file holds the bytes of an S3 object, by what the object's headers tell."""

import base64
import hashlib
import re
import zlib
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20
_PLAIN = re.compile(r"[0-9a-f]{32}")
_IN_PARTS = re.compile(r"([0-9a-f]{32})-(\d{1,5})")


def wrong_checksum(path: Path, head: dict[str, Any], part_size: Callable[[int], tuple[int, int]]) -> str | None:
    """What disagrees: the size, the ETag where it is an MD5, or a checksum of the whole object; None when nothing does.

    The ETag of an object that was uploaded in parts is the MD5 of the parts' MD5s. `part_size` gives the size of a part by its
    number, from 1 on, and the number of parts (0: the server does not tell). An object encrypted with a key of KMS or of the
    customer has another ETag."""
    size = path.stat().st_size
    if size != head["ContentLength"]:
        return f"{size} bytes, expected {head['ContentLength']}"
    etag = head["ETag"].strip('"')
    if "SSECustomerAlgorithm" not in head and not head.get("ServerSideEncryption", "").startswith("aws:kms"):
        if _PLAIN.fullmatch(etag) and (got := _md5s(path, [size])[0].hex()) != etag:
            return f"its MD5 is {got}, its ETag {etag}"
        if (match := _IN_PARTS.fullmatch(etag)) and not _agrees_in_parts(path, match[1], int(match[2]), part_size):
            return f"the MD5s of its parts do not make its ETag {etag}"
    for name, digest in (("SHA256", _sha256), ("SHA1", _sha1), ("CRC32", _crc32)):
        expected = head.get(f"Checksum{name}", "-")
        # one with a dash is that of the parts' checksums
        if (
            "-" not in expected
            and head.get("ChecksumType") != "COMPOSITE"
            and (found := base64.b64encode(digest(path)).decode()) != expected
        ):
            return f"its {name} is {found}, expected {expected}"
    return None


def _agrees_in_parts(path: Path, expected: str, count: int, part_size: Callable[[int], tuple[int, int]]) -> bool:
    """True also where the server does not tell the parts. Parts are mostly of one size, so the first tells the others."""
    total = path.stat().st_size
    first, told = part_size(1)
    if told != count:
        return True
    if (count - 1) * first < total <= count * first and _combined(
        _md5s(path, [*repeat(first, count - 1), total - (count - 1) * first])
    ) == expected:
        return True
    sizes = [first, *(part_size(number)[0] for number in range(2, count + 1))]
    return sum(sizes) == total and _combined(_md5s(path, sizes)) == expected


def _combined(digests: list[bytes]) -> str:
    return hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest()


def _md5s(path: Path, sizes: list[int]) -> list[bytes]:
    """Of consecutive pieces of the file."""
    digests = []
    with path.open("rb") as file:
        for size in sizes:
            digest = hashlib.md5(usedforsecurity=False)
            while size and (data := file.read(min(_CHUNK, size))):
                digest.update(data)
                size -= len(data)
            digests.append(digest.digest())
    return digests


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _sha1(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha1(usedforsecurity=False)).digest()


def _crc32(path: Path) -> bytes:
    value = 0
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            value = zlib.crc32(data, value)
    return value.to_bytes(4, "big")

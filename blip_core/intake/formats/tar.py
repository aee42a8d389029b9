"""A tar archive from an unknown hand, read in one pass: whatever ends it early is an error, never a quiet end.

The standard library's tarfile stops without a word at a damaged header, at a missing end mark and before joined archives, and
reads extended headers of any size into memory.
"""

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from blip_core.files.rejected import Rejected

_BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(_BLOCK)
_CHUNK = 1 << 20
_MOST_EXTENDED = 1 << 16  # bytes of a long name or a pax header
# by the first bytes of the file
_PACKED: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x28\xb5\x2f\xfd": lambda file: pa.CompressedInputStream(file, "zstd"),
}
_NO_DATA = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)


@dataclass(frozen=True)
class Member:
    name: str
    size: int
    kind: str  # file | folder | other (links, devices, sparse files)
    data: bytes | None  # None: not a file, not wanted, or larger than wanted


def members(path: Path, wanted: dict[str, int]) -> Iterator[Member]:
    """The archive's members in order, also of one packed by gzip, bzip2, xz or zstd. `wanted`: lower-case extension -> most bytes to
    read.

    Rejected when the archive is none, is damaged, ends early or goes on after its end mark; what came before was whole."""
    with path.open("rb") as file:
        head = file.peek(6)[:6]
        unpack = next((unpack for magic, unpack in _PACKED.items() if head.startswith(magic)), None)
        with closing(unpack(file)) if unpack else file as stream:
            yield from _members(_Reader(stream), wanted)


class _Reader:
    """Reads exactly what is asked for, or says where the archive ended."""

    def __init__(self, stream: BufferedIOBase):
        self.stream, self.at = stream, 0

    def read(self, count: int) -> bytes:
        """`count` bytes; fewer only at the end of the archive."""
        try:
            data = self.stream.read(count)
        except EOFError as e:
            raise Rejected("truncated_tar", f"{e} (byte {self.at} of the unpacked archive)") from None
        except (zlib.error, lzma.LZMAError, OSError) as e:  # of gzip, bzip2 and zstd it is an OSError without a number
            if getattr(e, "errno", None):
                raise
            raise Rejected("corrupt_tar", f"{e} (byte {self.at})") from None
        self.at += len(data)
        return data

    def body(self, name: str, size: int) -> bytes:
        """A member's data, without its padding."""
        start, padded = self.at, size + -size % _BLOCK
        data = self.read(padded)
        if len(data) < padded:
            raise self._cut(name, size, start)
        return data[:size]

    def skip(self, name: str, size: int) -> None:
        """A member that nobody wants, in chunks."""
        start, missing = self.at, size + -size % _BLOCK
        while missing and (chunk := self.read(min(missing, _CHUNK))):
            missing -= len(chunk)
        if missing:
            raise self._cut(name, size, start)

    def _cut(self, name: str, size: int, start: int) -> Rejected:
        return Rejected("truncated_tar", f"member {name!r} of {size} bytes begins at byte {start}; the archive ends at byte {self.at}")


def _members(reader: _Reader, wanted: dict[str, int]) -> Iterator[Member]:
    extended: dict[str, str] = {}
    while (info := _header(reader)) is not None:
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE):
            if info.size > _MOST_EXTENDED:
                raise Rejected("corrupt_tar", f"an extended header of {info.size} bytes before byte {reader.at}")
            extended |= _extended(info.type, reader.body("extended header", info.size), reader.at)
            continue
        name = extended.get("path", info.name)
        size = 0 if info.type in _NO_DATA else _size(extended.get("size", info.size), reader.at)
        kind = _kind(info, name, sparse=any(k.startswith("GNU.sparse") for k in extended))
        if kind == "file" and size <= wanted.get(name.rpartition(".")[2].lower(), -1):
            yield Member(name, size, kind, reader.body(name, size))
        else:
            reader.skip(name, size)
            yield Member(name, size, kind, None)
        extended = {}


def _header(reader: _Reader) -> tarfile.TarInfo | None:
    """The next header; None at the end mark, when only zeros follow it."""
    at = reader.at
    block = reader.read(_BLOCK)
    if not block and not at:
        raise Rejected("not_a_tar", "an empty file")
    if len(block) < _BLOCK:
        raise Rejected("truncated_tar" if at else "not_a_tar", f"no end-of-archive mark; the file ends at byte {reader.at}")
    if block == _ZEROS:
        _check_tail(reader)
        return None
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as e:
        raise Rejected("corrupt_tar" if at else "not_a_tar", f"no tar header at byte {at}: {e}") from None


def _check_tail(reader: _Reader) -> None:
    while chunk := reader.read(_CHUNK):
        if chunk.strip(b"\0"):
            at = reader.at - len(chunk.lstrip(b"\0"))
            raise Rejected("trailing_data", f"data from byte {at} on, after the end-of-archive mark")


def _extended(kind: bytes, data: bytes, at: int) -> dict[str, str]:
    """What an extended header says about the next member: its path and size."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.partition(b"\0")[0].decode("utf-8", "surrogateescape")}
    if kind not in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
        return {}
    found = {}
    while data.strip(b"\0"):
        digits, _, rest = data.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 10 else 0
        field, equals, value = rest[: max(0, length - len(digits) - 2)].partition(b"=")
        if not equals or length > len(data):
            raise Rejected("corrupt_tar", f"a pax header before byte {at} that can't be read")
        found[field.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        data = data[length:]
    return found


def _size(size: int | str, at: int) -> int:
    if isinstance(size, str):
        size = int(size) if size.isascii() and size.isdigit() and len(size) < 20 else -1
    if size < 0:
        raise Rejected("corrupt_tar", f"a member of impossible size before byte {at}")
    return size


def _kind(info: tarfile.TarInfo, name: str, *, sparse: bool) -> str:
    if info.type == tarfile.DIRTYPE or name.endswith("/"):
        return "folder"
    return "file" if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE) and not sparse else "other"

"""What the writers of the sample world share: a folder that appears whole, its pictures, its rows."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import simplejpeg
from numpy import ndarray

from blip_core.files.atomic import new_folder


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which gets the name `out` at the end. ValueError when there is one of that name."""
    if out.exists():
        raise ValueError(f"{out} exists already and is not overwritten; delete it or name another folder with --out")
    with new_folder(out) as temporary:
        yield temporary


def jpeg(pixels: ndarray) -> bytes:
    """The accurate integer DCT gives the same bytes with any instruction set."""
    return simplejpeg.encode_jpeg(pixels, quality=95, colorspace="RGB", colorsubsampling="444", fastdct=False)


def write_rows(rows: Iterable[object], path: Path) -> None:
    """As JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

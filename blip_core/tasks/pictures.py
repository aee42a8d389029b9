"""The pictures of a task: which file a row means, and its pixels.

A row may name a picture by a path, a name with or without its ending, or a number, as COCO's image ids.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np

from blip_core.config.intake import ImageLimits
from blip_core.files.rejected import Rejected
from blip_core.intake.formats.columns import is_image_name
from blip_core.intake.walk import Below, below
from blip_core.pictures.images import admit
from blip_core.tasks.embedded import Embedded, read_bytes

# what a task's own files may hold; they were chosen by people, so that small and long ones are let in
LIMITS = ImageLimits(min_side=1, max_side=16384, max_pixels=40_000_000, max_aspect=1000.0, max_bytes=1 << 25)


class Pictures:
    """Every picture below a folder, found by what a row says of it."""

    kind = "picture"

    def __init__(self, folder: Path):
        self.folder = folder
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._folders: set[str] = set()  # own names of those that hold pictures
        for name, keys in self.named():
            self._folders.add(PurePosixPath(name).parent.name)
            for key in keys:
                self._by_name[key].append(name)

    def named(self) -> Iterable[tuple[str, list[str]]]:
        """Paths below the folder, each with what a row may say for it."""
        return ((name, keys_of(name)) for name in task_files(self.folder).shown if is_image_name(name))

    def find(self, value: object) -> Path | Embedded:
        """Rejected where there is none, or more than one. Of several that a name fits, it is that whose folders are those of the row."""
        if isinstance(value, Embedded):
            return value
        if isinstance(value, dict) and not value.get("bytes"):  # as the library datasets names a file
            value = value.get("path")
        if isinstance(value, dict | bytes):
            raise Rejected(
                "missing_image", f"the {self.kind} stands in the table itself; write it to a file below {self.folder}, and name that"
            )
        text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
        text = text.replace("\\", "/").removeprefix("./")
        path = PurePosixPath(text)
        if text.isdigit():
            tries = [f"#{int(text)}", text]
        else:
            tries = [str(path), str(path.with_suffix("")), path.name, path.stem]
        for key in tries:
            found = self._nearest(key, path.parts[:-1])
            if len(found) == 1:
                return self.folder / found[0]
            if found:
                raise Rejected("missing_image", f"{text!r} may be {found[0]} or {found[1]}; write the path below {self.folder}")
        raise Rejected("missing_image", f"no {self.kind} {text[:200]!r} below {self.folder}")

    def _nearest(self, key: str, folders: tuple[str, ...]) -> list[str]:
        """Those of this name that agree most with the row's folders, from the last one on. One that disagrees with the last is taken only
        where no folder is called so: the folders of a list are often those of its author's disk, but cats/1.jpg is not dogs/1.jpg."""
        found = {name: _equal_at_end(PurePosixPath(name).parts[:-1], folders) for name in self._by_name.get(key, ())}
        most = max(found.values(), default=0)
        if folders and not most and folders[-1] in self._folders:
            return []
        return [name for name, agrees in found.items() if agrees == most]


def _equal_at_end(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    return next((n for n, (a, b) in enumerate(zip(reversed(one), reversed(other), strict=False)) if a != b), min(len(one), len(other)))


def task_files(folder: Path) -> Below:
    """What lies below a task's folder. ValueError where there is none."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected the files and pictures of a task, as docs/tasks.md says")
    return below(folder)


def keys_of(name: str) -> list[str]:
    """The path, the name, both also without ending, and #N for the number N at the end."""
    path = PurePosixPath(name)
    number = re.search(r"(\d+)$", path.stem)
    return [name, str(path.with_suffix("")), path.name, path.stem, *([f"#{int(number[1])}"] if number else [])]


def read_pixels(picture: Path | Embedded) -> np.ndarray:
    """uint8 H x W x 3, turned as its EXIF says. Rejected when it is none, damaged, or beyond LIMITS."""
    data = read_bytes(picture) if isinstance(picture, Embedded) else picture.read_bytes()
    return admit(data, LIMITS, short_side=None, quality=90, format="keep").pixels

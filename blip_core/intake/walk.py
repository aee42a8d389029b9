"""Every file below a place, links followed, each folder once. The formats look for their files here, so that all of them see the same.

A link to a folder is walked like a folder. One that leads to a folder which was walked already, as back to one above it, is not; it is
told by `Below.odd`, as is a link that leads nowhere and a folder that may not be read.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_SYSTEM = ("__MACOSX", "Thumbs.db", "desktop.ini")  # what systems leave behind


@dataclass(frozen=True)
class Below:
    """`names`: files by their path below `root`, sorted folder by folder. `odd`: (path, what is wrong) of what could not be walked.
    `linked`: folders and files that are links."""

    root: Path
    names: tuple[str, ...]
    odd: tuple[tuple[str, str], ...]
    linked: tuple[str, ...]

    def paths(self, *ends: str) -> list[Path]:
        """Files whose name ends so, in any case; none named: all. Of those that are `shown`."""
        return [self.root / name for name in self.shown if not ends or name.lower().endswith(ends)]

    def stems(self, ends: tuple[str, ...]) -> set[str]:
        """Paths without the ending, of files whose name ends so."""
        return {name.rpartition(".")[0] for name in self.names if name.lower().endswith(ends)}

    @cached_property
    def folders(self) -> dict[str, list[str]]:
        """The files that are shown of each folder, by their own names; "" is the root."""
        found: dict[str, list[str]] = {}
        for name in self.shown:
            folder, _, own = name.rpartition("/")
            found.setdefault(folder, []).append(own)
        return found

    @cached_property
    def shown(self) -> tuple[str, ...]:
        """The names without hidden ones and what systems leave behind."""
        return tuple(name for name in self.names if not is_hidden(name))


def is_hidden(name: str) -> bool:
    """Of a file or of a folder above it; the readers pass over these."""
    return any(part.startswith(".") or part in _SYSTEM for part in name.split("/"))


def below(path: Path) -> Below:
    """What lies at `path`: a folder, or a single file, which is walked as the only one of its folder."""
    if path.is_file():
        return Below(path.parent, (path.name,), (), (path.name,) * path.is_symlink())
    walk = _Walk()
    walk.folder(path, "")
    while walk.waiting:  # behind all that lies here itself, so that a link never takes a real folder's place
        walk.folder(*walk.waiting.pop(0))
    return Below(path, tuple(sorted(walk.names, key=_order)), tuple(sorted(walk.odd)), tuple(sorted(walk.linked)))


def _order(name: str) -> list[str]:
    return name.split("/")


class _Walk:
    def __init__(self) -> None:
        self.names: list[str] = []
        self.odd: list[tuple[str, str]] = []
        self.linked: list[str] = []
        self.waiting: list[tuple[Path, str]] = []  # links to folders
        self._seen: dict[tuple[int, int], str] = {}

    def folder(self, path: Path, name: str) -> None:
        stat = path.stat()
        first = self._seen.setdefault((stat.st_dev, stat.st_ino), name)
        if first != name:
            self.odd.append((name, f"a link to {first or 'the folder that it lies in'}, which is read already"))
            return
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as e:
            self.odd.append((name, f"a folder that can't be read: {e.strerror}"))
            return
        for entry in entries:
            self._entry(entry, f"{name}/{entry.name}" if name else entry.name)

    def _entry(self, entry: os.DirEntry[str], name: str) -> None:
        if entry.is_symlink():
            self.linked.append(name)
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            self.folder(path, name)
        elif entry.is_file(follow_symlinks=False) or path.is_file():  # the entry's own look behind a link raises where one leads to itself
            self.names.append(name)
        elif path.is_dir():
            self.waiting.append((path, name))
        else:
            self.odd.append((name, "a link that leads nowhere" if entry.is_symlink() else "neither a file nor a folder"))

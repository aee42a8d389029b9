"""Outputs that appear whole, by rename: a reader sees all of a file or folder, or what stood there before.

Between the two renames that replace a folder there is none."""

import errno
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A path to write to; the file takes its name when the block ends well, and is gone when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, likewise; an older folder of that name is replaced."""
    temporary = _beside(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(new: Path, path: Path) -> None:
    """`new` takes the name `path`. What stood there is removed behind it, and stands there again where `new` can't take its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    old = _beside(path)
    if path.exists():
        os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        if old.exists():
            os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def clear_killed(*outs: Path) -> None:
    """Remove what a process that was killed left beside these outputs. For who alone writes them: another's unfinished one would go too."""
    for out in outs:
        for left in out.parent.glob(f"_tmp.{glob.escape(out.name)}.*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def disk_full(error: BaseException | None) -> bool:
    """Whether an error comes of a full disk or quota: each library that writes has its own way to say so, or says but `write failed`."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _beside(path: Path) -> Path:
    """Readers of folders pass over names that begin with `_tmp.`"""
    return path.parent / f"_tmp.{path.name}.{uuid.uuid4().hex}"

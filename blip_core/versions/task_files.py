"""The files of downstream tasks and frozen models in a copy of the project: a work tree or a clone has those alone that a commit holds."""

import os
import shutil
from pathlib import Path

from blip_core.tracking.provenance import raw_data

FOLDERS = ("tasks", "frozen")


def take_tasks(copy: Path, root: Path) -> None:
    """Those that no commit holds, as they are in `root`."""
    for own in sorted(path for name in FOLDERS for path in root.glob(f"{name}/*") if path.is_dir()):
        there = copy / own.relative_to(root)
        if not there.with_name(f"{own.name}.dvc").exists():
            shutil.rmtree(there, ignore_errors=True)
            shutil.copytree(own, there, copy_function=_linked)


def kept_tasks(copy: Path) -> dict[str, str]:
    """Path to md5 of those that a commit holds, as DVC keeps them."""
    files = sorted(file for name in FOLDERS for file in copy.glob(f"{name}/*.dvc"))
    return {f"{file.parent.name}/{path}": md5 for file in files for path, md5 in raw_data(file.read_text()).items()}


def _linked(own: str, there: str) -> None:
    """As another name of the file, or its copy where it lies on another disk."""
    try:
        os.link(os.path.realpath(own), there)
    except OSError:
        shutil.copyfile(own, there)

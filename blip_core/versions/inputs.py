"""Raw data, files of downstream tasks and frozen models in a copy of the project: a work tree or a clone has what a commit holds alone."""

import os
import shutil
from pathlib import Path

from blip_core.tracking.provenance import raw_data

FOLDERS = ("tasks", "frozen")


def take_unkept(copy: Path, root: Path) -> None:
    """Tasks' files and frozen models that no commit holds, as they are in `root`."""
    for own in sorted(path for name in FOLDERS for path in root.glob(f"{name}/*") if path.is_dir()):
        there = copy / own.relative_to(root)
        if not there.with_name(f"{own.name}.dvc").exists():
            shutil.rmtree(there, ignore_errors=True)
            shutil.copytree(own, there, copy_function=_linked)


def kept_inputs(copy: Path) -> dict[str, str]:
    """Path to md5 of what a commit holds of these and of the raw data, as DVC keeps it."""
    files = [*copy.glob("data.dvc"), *sorted(file for name in FOLDERS for file in copy.glob(f"{name}/*.dvc"))]
    found = {file.parent.relative_to(copy) / path: md5 for file in files for path, md5 in raw_data(file.read_text()).items()}
    return {str(path): md5 for path, md5 in found.items()}


def _linked(own: str, there: str) -> None:
    """As another name of the file, or its copy where it lies on another disk."""
    try:
        os.link(os.path.realpath(own), there)
    except OSError:
        shutil.copyfile(own, there)

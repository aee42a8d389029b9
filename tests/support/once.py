"""What several processes of one run of the tests read, and one of them makes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder of that name, filled by `make` for the first process that asks; the others wait for it. Nobody may change it."""
    own = factory.getbasetemp()
    run = own.parent if own.name.startswith("popen-") else own  # so xdist calls the folder of each of its processes
    folder, done = run / name, run / f"{name}.done"
    with FileLock(run / f"{name}.lock"):
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder

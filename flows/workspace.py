"""The folder where the chain runs: its interpreter, its locks, and one orchestrator at a time."""

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from blip_core.runtime.cores import OVERRIDE
from flows.proc import Children
from flows.slots import Slots


@dataclass
class Workspace:
    """Where the stages run, and how many at a time."""

    root: Path
    slots: Slots
    cores: int = 1  # of each stage: what the machine has, shared out among the slots
    tracking: str | None = None  # where MLflow's store is, for stages that find no MLFLOW_TRACKING_URI; None: in `root`
    children: Children = field(default_factory=Children)

    @property
    def dvc(self) -> Path:
        return Path(sys.executable).parent / "dvc"

    @property
    def env(self) -> dict[str, str]:
        """`python` in dvc.yaml must be the interpreter that runs this flow, whatever PATH the worker was started with."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        store = {"MLFLOW_TRACKING_URI": self.tracking} if self.tracking else {}
        return {**store, **os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", "PYTHONUNBUFFERED": "1", OVERRIDE: str(self.cores)}

    def error_file(self, stage: str) -> Path:
        """Where the stage's command leaves why it failed (it finds the path in BLIP_ERROR_FILE)."""
        return self.root / ".work" / "errors" / f"{stage}.json"

    def mend_locks(self) -> None:
        """Remove DVC's list of locks where it is not readable: a dvc killed while it wrote it, and no dvc command works any more."""
        from dvc.lock import Lock, LockError

        path = self.root / ".dvc" / "tmp" / "rwlock"
        if _is_json(path):
            return
        try:
            with Lock(str(path.with_name("rwlock.lock"))):  # held by any dvc that is writing it now
                if not _is_json(path):
                    path.unlink()
        except LockError:  # so it is being written
            return


def _is_json(path: Path) -> bool:
    """Also true where there is no file, which DVC takes as an empty list."""
    try:
        json.loads(path.read_text())
    except FileNotFoundError:
        return True
    except json.JSONDecodeError:
        return False
    return True


@contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system frees however the process ends. Two orchestrators would wait on each other's stages."""
    path = root / ".work" / "flow.lock"
    path.parent.mkdir(exist_ok=True)
    with path.open("a+") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            f.seek(0)
            other = f.read().strip()
            raise ValueError(f"another run of this flow (process {other}) works in {root}; wait for its end or stop it") from None
        f.truncate(0)
        f.write(str(os.getpid()))
        f.flush()
        yield

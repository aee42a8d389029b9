"""One stage at a time on a GPU. Locks of the system and no counter on a server: they hold between all flows of the machine, with a
server or without one, and nobody has to free them after a kill -9.
"""

import fcntl
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def gpu_locks() -> list[Path]:
    """The lock files of the GPUs that a stage of this process would see; none on a machine without."""
    return [Path(tempfile.gettempdir()) / f"blip-gpu-{name}.lock" for name in visible_gpus()]


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES names, else the numbers of all that the driver knows; in one order for all who lock several."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        try:
            command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired):
            return []
        named = ",".join(done.stdout.split()) if done.returncode == 0 else ""
    return sorted({name.strip() for name in named.split(",")} - {"", "-1", "NoDevFiles"})


@contextmanager
def locked(paths: list[Path], *, stopped: Callable[[], bool], say: Callable[[str], None]) -> Iterator[tuple[int, ...]]:
    """Hold these locks, for which this waits; the descriptors are for `Children.run`. Fewer of them once `stopped` says so."""
    descriptors: list[int] = []
    try:
        for path in paths:
            descriptors.append(_open(path))
            if not _wait(descriptors[-1], path, stopped=stopped, say=say):
                break
        yield tuple(descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _open(path: Path) -> int:
    """Without O_CREAT where it is there: in /tmp the kernel refuses that for another user's file."""
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)


def _wait(descriptor: int, path: Path, *, stopped: Callable[[], bool], say: Callable[[str], None]) -> bool:
    told = False
    while not stopped():
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if not told:
                say(f"waits for {path.stem.removeprefix('blip-').replace('-', ' ')}, which another stage has")
            told = True
            time.sleep(0.5)
    return False

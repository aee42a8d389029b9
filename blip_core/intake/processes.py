"""The first half of ingest over several processes, of which any may die: a decoder crashes, the machine is short of memory.

Whatever a process was reading when one died is read again, each image first by a process of its own (bounds.py): an image that kills
its process is set aside, the others are kept.
"""

import logging
import multiprocessing
import os
import shutil
import signal
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from blip_core.intake.units import Task, take_in, temporary_folders
from blip_core.runtime.cores import available_cores

log = logging.getLogger(__name__)

_FEW = 4  # units that are done sooner than another process starts


def take_in_all(tasks: list[Task]) -> None:
    """Units that an earlier run finished are not done again. The result does not depend on the number of processes.

    ValueError when a process dies and no image is to blame."""
    for folder in temporary_folders(tasks):
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    todo = _unfinished(tasks)
    with tqdm(total=len(tasks), initial=len(tasks) - len(todo), desc="ingest", unit="unit", disable=None) as bar:
        while todo and not _side_by_side(todo, bar):
            begun = [task for task in todo if not task.folder.exists() and temporary_folders([task])]
            if not begun:
                raise ValueError("a process of ingest died before it had begun; is the machine short of memory?")
            log.warning("a process of ingest died; %d units are read again, each image first in a process of its own", len(begun))
            for task in begun:
                _alone(task)
            todo = _unfinished(tasks)
            bar.update(len(tasks) - len(todo) - bar.n)


def _unfinished(tasks: list[Task]) -> list[Task]:
    return [task for task in tasks if not task.folder.exists()]


def _side_by_side(todo: list[Task], bar: tqdm) -> bool:
    """Whether all were done: not when a process died."""
    with _pool(max(1, min(available_cores(), len(todo) // _FEW))) as pool:
        futures = [pool.submit(take_in, task) for task in todo]
        try:
            for future in as_completed(futures):
                future.result()
                bar.update()
        except BrokenProcessPool:
            return False
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return True


def _alone(task: Task) -> None:
    try:
        with _pool(1) as pool:
            pool.submit(take_in, task, careful=True).result()
    except BrokenProcessPool:
        raise ValueError(
            f"{task.place}/{task.unit_name}: the process that reads it died, and no image is to blame. Most often the machine is short of "
            "memory: end other programs, or allow fewer processes (BLIP_CORES=1), and run it again: finished units are kept"
        ) from None
    finally:
        for folder in temporary_folders([task]):
            shutil.rmtree(folder, ignore_errors=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    spawn = multiprocessing.get_context("spawn")  # fork and Arrow's threads don't mix
    return ProcessPoolExecutor(workers, mp_context=spawn, initializer=_end_with_parent)


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for work for ever; one that gets Ctrl-C has nothing to say about it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    parent = multiprocessing.parent_process()
    assert parent  # only a child watches
    parent.join()
    os._exit(1)

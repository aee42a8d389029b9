"""Tables made shard by shard: one after the other here, or by the workers of a Ray cluster. Whoever else wants Ray's workers
joins the cluster by `join`.

`make_tables` is where to start. The unit is one table: it appears by rename, it is the same bytes whoever makes it, and one that is
there is not made again. So a worker or machine that dies costs the tables it was at, which another makes, and nothing here believes
what an engine says: the tables that lie in the folder decide.

With `engine: ray` the command runs on a machine of the cluster that RAY_ADDRESS names; without one, Ray starts on this machine alone.
All machines see the project's folder under the same path and have the same packages: see docs/scale.md.
"""

import logging
import os
import re
import signal
import socket
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from blip_core.capfilt.pace import Maker
from blip_core.compute.work import IDENTITY, Halt
from blip_core.config.capfilt import CaptionConfig, RayConfig, ScoreConfig
from blip_core.runtime.cores import available_cores
from blip_core.runtime.progress import Progress
from blip_core.tables.captions import write_table

if TYPE_CHECKING:
    from ray.data import Dataset

log = logging.getLogger(__name__)
Seen = Callable[[int], None]  # told of every few images or texts that are done

_SAID = 5  # failures in a message at most
_MOST_CRASHES = 8  # so many tables lost to no fault of theirs, and the cluster is to blame
_MOST_FAILED_STARTS = 3  # of workers, one after the other
_SETTLES = 90.0  # seconds after which a shared folder shows what another machine wrote: NFS may keep an old listing for a minute


class Task(Protocol):
    """What a stage makes of its shards. Pickles; the models are loaded where the work is done."""

    def open(self) -> Maker:
        """Load the models. What comes back makes the table of a name; ValueError where a shard is at fault."""


@dataclass(frozen=True)
class Done:
    """What became of a table."""

    name: str
    fault: str = ""  # with the shard
    crash: str = ""  # of anything else: a traceback
    where: str = ""
    halts: bool = False  # every other table would fail too


Outcomes = Generator[Done, None, None]


def make_tables(task: Task, sizes: dict[str, int], staged: Path, *, cfg: CaptionConfig | ScoreConfig, name: str, unit: str) -> None:
    """The tables that `sizes` names, with their numbers of units, in the folder `staged`; those that are there stay.

    ValueError names the tables that could not be made, once all others are.
    """
    todo = [table for table in sizes if not (staged / table).exists()]
    done = sum(sizes.values()) - sum(sizes[table] for table in todo)
    progress, failed = Progress(name, sum(sizes.values()), start=done, unit=unit), []
    begun: Counter[str] = Counter()  # units of the tables that are being made

    def seen(table: str, more: int) -> None:
        begun[table] += more
        progress.update(done + begun.total())

    if cfg.engine == "local":
        outcomes = _here(task, todo, staged, seen)
    else:
        outcomes = _on_ray(task, todo, staged, cfg.ray)
    with closing(progress), closing(outcomes):
        for outcome in outcomes:
            failed += [outcome] * bool(outcome.fault or outcome.crash)
            del begun[outcome.name]
            done += sizes[outcome.name]
            if (so_far := done + begun.total()) != progress.done:
                progress.update(so_far)
            if outcome.halts or sum(bool(f.crash) for f in failed) == _MOST_CRASHES:
                break
    _require_made(todo, failed, staged, name)


def _require_made(todo: list[str], failed: list[Done], staged: Path, name: str) -> None:
    """By the tables themselves. A table may be there though its worker died before it could say so."""
    failed = [f for f in failed if not (staged / f.name).exists()]
    lines = [f"{Path(f.name).stem}: {f.crash or f.fault}" for f in failed[:_SAID]]
    if len(failed) > _SAID:
        lines.append(f"and {len(failed) - _SAID} more: {', '.join(Path(f.name).stem for f in failed[_SAID:][:100])}")
    if failed:
        said = f"{name}: no table of {len(failed)} of {len(todo)} shards; those that are made stay, so run it again once this is mended"
        kind = RuntimeError if any(f.crash for f in failed) else ValueError
        raise kind("\n".join([f"{said}:", *lines]))
    deadline = time.monotonic() + _SETTLES
    while (missing := [table for table in todo if not (staged / table).exists()]) and time.monotonic() < deadline:
        time.sleep(0.5)
    if missing:
        raise ValueError(
            f"{staged}: lacks {len(missing)} tables that workers say they wrote ({', '.join(missing[:_SAID])}): other machines do not "
            "write to this folder; put the project's folder on a file system that all of them share, under the same path"
        )


def _here(task: Task, todo: list[str], staged: Path, seen: Callable[[str, int], None]) -> Outcomes:
    """In order, in this process. What is no shard's fault is raised at once."""
    if not todo:
        return
    make = task.open()

    def attempt(name: str) -> Done:
        return _attempt(make, name, staged, partial(seen, name))

    if make.at_once == 1:  # not in a thread: an interrupt ends it where it stands
        yield from map(attempt, todo)
        return
    pool = ThreadPoolExecutor(make.at_once, thread_name_prefix="table")
    try:
        yield from pool.map(attempt, todo)
    finally:
        make.stop()
        pool.shutdown(cancel_futures=True)


def _attempt(make: Maker, name: str, staged: Path, seen: Seen) -> Done:
    if (staged / name).exists():  # a worker died behind its last step, or two were given the same
        return Done(name)
    try:
        write_table(make(name, seen), staged / name)
    except ValueError as e:
        return Done(name, fault=str(e), halts=isinstance(e, Halt))
    return Done(name)


# --- over a cluster


class _Worker:
    """An actor of Ray Data: models that are loaded once, then one table after the other."""

    def __init__(self, task: Task, staged: Path, folder: Path, cfg: RayConfig):
        where = socket.gethostname()
        if not (staged / IDENTITY).exists():
            raise ValueError(f"{where}: sees no {staged}; all machines of the cluster must see the project's folder {folder}")
        os.chdir(folder)
        os.environ["BLIP_CORES"] = str(cfg.cpus)  # others work on this machine too
        if not cfg.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self.make, self.staged, self.where = task.open(), staged, where

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            done = _attempt(self.make, row["name"], self.staged, lambda _: None)
        except Exception:  # noqa: BLE001  # a row of its own: Ray would end the whole job
            done = Done(row["name"], crash=f"on {self.where}:\n{traceback.format_exc()}")
        return {"name": done.name, "fault": done.fault, "crash": done.crash, "halts": done.halts, "where": self.where}


def _on_ray(task: Task, todo: list[str], staged: Path, cfg: RayConfig) -> Outcomes:
    """In the order in which they are finished. The job ends with the generator."""
    if not todo:
        return
    join(cfg)
    import ray

    try:
        for row in _dataset(task, todo, staged.resolve(), cfg).iter_rows():
            yield Done(**row)
    except ray.exceptions.RayError as e:
        raise plainly(e) from None
    finally:
        ray.shutdown()


def join(cfg: RayConfig) -> None:
    """The cluster that RAY_ADDRESS names, or one of this machine alone. ValueError where there is none, or no room in it."""
    try:
        import ray
    except ImportError:
        raise ValueError("Ray is asked for, but not installed; pip install 'blip-bootstrap[ray]', or go without it") from None

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns of its own way of starting workers; Python is told what matters
    address = os.environ.get("RAY_ADDRESS") or "local"  # with none, Ray would look for what an earlier run has left
    own = {"num_cpus": max(cfg.cpus, available_cores()), "include_dashboard": False} if address == "local" else {}
    handler = signal.getsignal(signal.SIGTERM)  # Ray's own would end us without a word
    code = {"env_vars": {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}}
    host, _, port = address.rpartition(":")
    try:
        if port.isdecimal():  # Ray would try for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, runtime_env=code, **own)
    except OSError as e:
        raise ValueError(f"RAY_ADDRESS is {address}: no Ray cluster answers there ({e}); see docs/scale.md") from None
    finally:
        signal.signal(signal.SIGTERM, handler)
    _require_room(cfg, may_grow=address != "local")


def _require_room(cfg: RayConfig, *, may_grow: bool) -> None:
    """A worker that no machine has room for would be waited for without a word."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(m.get("CPU", 0) >= cfg.cpus and m.get("GPU", 0) >= cfg.gpus for m in machines):
        have = ", ".join(f"{m.get('CPU', 0):g} CPUs and {m.get('GPU', 0):g} GPUs" for m in machines)
        said = f"ray: a worker takes {cfg.cpus} CPUs and {cfg.gpus:g} GPUs, and no machine of the cluster has as many ({have})"
        if not may_grow:
            raise ValueError(f"{said}; lower ray.cpus or ray.gpus")
        log.warning("%s; waiting for one that has", said)


def _dataset(task: Task, todo: list[str], staged: Path, cfg: RayConfig) -> "Dataset":
    """Rows of what became of each table. A block is one table, and a worker has no second one waiting behind its first."""
    import ray.data

    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # the console; Ray's own files keep all of it
            handler.setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_consecutive_actor_init_deaths = _MOST_FAILED_STARTS
    # a busy worker is reason enough for another: with one task in flight the default is never reached
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 0.9
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=cfg.workers, max_tasks_in_flight_per_actor=1)
    tables = ray.data.from_items([{"name": name} for name in todo], override_num_blocks=len(todo))
    made = {"fn_constructor_args": (task, staged, Path.cwd(), cfg), "compute": pool}
    return tables.map(_Worker, num_cpus=cfg.cpus, num_gpus=cfg.gpus, **made)


def plainly(error: Exception) -> Exception:
    """What a worker died of before it had begun, of which Ray tells the traceback alone; else Ray's own error."""
    told = re.split(r"^([\w.]*Error): ", str(error), flags=re.MULTILINE)
    if len(told) > 2 and told[-2] == "ValueError":
        return ValueError(told[-1].strip())
    said = ": ".join(part.strip() for part in told[-2:])
    return RuntimeError(f"Ray gave up: {said}\nWhat is made stays, and running again goes on")

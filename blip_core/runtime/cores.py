"""How many processor cores this process may use: the one place that asks. Imports nothing heavy, so the flow may ask too.

In a container `os.cpu_count()` tells the machine's cores, not the container's share, and libraries that believe it start far too
many threads. The number here is the least of
- the cores that the process may run on (taskset, cpuset),
- the quota of its control group and of each group above it, versions 1 and 2, rounded down: a thread more would be throttled;
or what BLIP_CORES says instead. The processes that torchrun starts on one machine share it evenly.

Who asks: the CLI, for the threads of every library (`limit_threads`); ingest, for its processes; data loading, for its workers;
the flow, which gives each of the stages that run side by side its share through BLIP_CORES.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

OVERRIDE = "BLIP_CORES"
MOST_WORKERS = 16  # more decode no faster than a training takes, and each costs memory


def available_cores(
    environ: Mapping[str, str] = os.environ, *, groups: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/sys/fs/cgroup")
) -> int:
    """At least 1. ValueError when BLIP_CORES is no whole number above 0. `groups` and `mounts` are where Linux tells the quotas."""
    if OVERRIDE in environ:
        cores = _whole(environ[OVERRIDE])
    else:
        cores = int(min([_allowed(), *_quotas(groups, mounts)]))
    return max(1, cores // int(environ.get("LOCAL_WORLD_SIZE", "1")))


def limit_threads() -> None:
    """Let every library that is imported from now on start as many threads as there are cores; OMP_NUM_THREADS in the environment wins.

    It reaches torch, numpy's and scikit-learn's BLAS and Arrow, and all child processes.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(available_cores()))


def loading_workers(*, threads: int) -> int:
    """Processes that read ahead for a training of so many threads (0: all): the cores that it leaves."""
    cores = available_cores()
    return min(MOST_WORKERS, cores - min(threads or cores, cores))


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{OVERRIDE} is {text!r}; expected the number of cores to use, 1 or more, or leave it unset")
    return int(text)


def _allowed() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(groups: Path, mounts: Path) -> Iterator[float]:
    """In cores, of every control group that says one. Lines of `groups` read `number:controllers:path`, version 2 has no controllers."""
    try:
        lines = groups.read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        roots = [mounts / controllers, mounts / "cpu"] if controllers else [mounts, mounts / "unified"]
        # a container may see its own group as the root of the mount while `groups` names the host's path
        for root in roots:
            for group in {root, *(root / part for part in _upwards(place.strip("/")))}:
                yield from _quota(group)


def _upwards(place: str) -> list[str]:
    parts = place.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]


def _quota(group: Path) -> Iterator[float]:
    """Of one group: `cpu.max` holds `quota period` or `max period`; version 1 has a file for each, -1 for none. Microseconds."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    except OSError:  # a group without the controller
        return
    if quota not in ("max", "-1"):
        yield int(quota) / int(period)

"""What each stage cost: the CLI writes it down when a stage has ended, the report and the verb `times` read it.

A file for each stage, .work/times/<run>.json, and no output of DVC: times differ from run to run, so as outputs they would make equal
results differ, and what depends on them would never be up to date. A stage that DVC skips or restores from its cache keeps the cost of
the last time it ran here. The report shows what is known while it is written and does not depend on it: new times alone make no new
report. `blip times` prints the newest at any time, the report's own among them.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

FOLDER = "times"  # below the folder of unfinished work


@dataclass(frozen=True)
class StageTime:
    """Of a stage's last run that ended well. One that was interrupted before does not count what was lost or kept from it."""

    run: str  # round/stage as --run has it, or the verb
    seconds: float  # by the clock, from the start of the CLI to the end
    cpu_seconds: float  # of the process, and of its children that have ended
    overhead_seconds: float  # the part of the above outside the stage's own function: imports, parameters, tracking
    overhead_cpu_seconds: float
    peak_mib: float  # resident memory of the largest process
    gpu_peak_mib: float | None  # what tensors took of the GPU; None where none was used
    ended: str  # UTC


class Meter:
    """Begins to count when it is made."""

    def __init__(self) -> None:
        self._began, self._inside = _now(), (0.0, 0.0)

    @contextmanager
    def stage(self) -> Iterator[None]:
        """Around the stage's own function."""
        began = _now()
        yield
        self._inside = _since(began)

    def write(self, work: Path, run: str) -> None:
        """Nothing for the other processes of a training: the first one tells."""
        if os.environ.get("RANK", "0") != "0":
            return
        from blip_core.files.content import write_json

        total = _since(self._began)
        overhead = [t - i for t, i in zip(total, self._inside, strict=True)]
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        seconds, cpu, seconds_outside, cpu_outside, peak = (round(v, 3) for v in (*total, *overhead, _peak_mib()))
        cost = StageTime(run, seconds, cpu, seconds_outside, cpu_outside, peak, _gpu_peak_mib(), ended)
        write_json(vars(cost), work / FOLDER / f"{run}.json")


def read_times(work: Path) -> list[StageTime]:
    """Of all stages that have run here, in the order in which they ended."""
    found = []
    for path in (work / FOLDER).rglob("*.json"):
        try:
            found.append(StageTime(**json.loads(path.read_text())))
        except TypeError:  # another version of this program wrote it
            continue
    return sorted(found, key=lambda t: (t.ended, t.run))


def _now() -> tuple[float, float]:
    """Seconds by the clock, and of CPU, children included."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(u.ru_utime + u.ru_stime for u in usage)


def _since(began: tuple[float, float]) -> tuple[float, float]:
    clock, cpu = _now()
    return clock - began[0], cpu - began[1]


def _peak_mib() -> float:
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _gpu_peak_mib() -> float | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return round(torch.cuda.max_memory_allocated() / 2**20, 1)

"""Faults of processes, of the disk and of MLflow's database. Used by faults.py; fault_services.py has those of servers."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
import psutil
import yaml
from fault_project import Project, Skipped, copy_before, differences, half_written, last_line, registry, statuses, wait_for

TRIES = 8
FEW = 5  # stages, that run again where what they depend on was broken


@dataclass
class Trial:
    """One fault: the copy it happens in, its random moments, and what is written of it."""

    reference: Project
    folder: Path
    draw: random.Random
    seen: str = ""
    after: str = ""

    def before(self, stage: str, **env: str) -> Project:
        self.stage, self.name = stage, stage.split("@")[0]
        lock = yaml.safe_load((self.reference.root / "dvc.lock").read_text())
        self.run = re.search(r"--run (\S+)", lock["stages"][stage]["cmd"])[1]
        self.project = copy_before(self.reference, stage, self.folder)
        self.project.env |= env
        self.database: Path | str = self.project.root / "mlflow.db"
        return self.project

    def mid_stage(self) -> psutil.Process:
        """The process of the stage, at a random moment of its work, which begins when its run is open in MLflow."""
        process = wait_for(lambda: self.project.stage(self.name))
        wait_for(lambda: self._is_open() or not process.is_running())
        time.sleep(self.draw.uniform(0, self.own_seconds()))
        return process

    def _is_open(self) -> bool:
        with contextlib.suppress(FileNotFoundError):  # all was sent a moment ago
            return any('"run_id"' in path.read_text() for path in (self.project.root / ".work/tracking").glob("*.jsonl"))
        return True

    def own_seconds(self) -> float:
        """What the stage's own work took in the unbroken run."""
        cost = json.loads((self.reference.root / f".work/times/{self.run}.json").read_text())
        return cost["seconds"] - cost["overhead_seconds"]

    def look(self, what: str) -> None:
        """Between the fault and the next run."""
        outs = [out for out in self.project.outs(self.stage) if out.exists()]
        told = [what, f"{len(outs)} of {len(self.project.outs(self.stage))} outputs there"]
        wrong = half_written(self.project, self.reference)
        told.append(f"HALF-WRITTEN: {', '.join(wrong)}" if wrong else "none half-written")
        if isinstance(self.database, Path) and (champion := registry(self.database)["aliases"].get("champion")) != 1:
            told.append(f"CHAMPION: {champion}")
        if left := list(self.project.processes()):
            told.append(f"left running: {', '.join(sorted({' '.join(name(p)) for p in left}))}")
        self.seen = "; ".join(filter(None, told))

    def again(self, command: Callable[[], int] | None = None, *, whole: bool = False, before: str = "") -> None:
        """The same command; then all that depends on it, where that is little or `whole` asks for it."""
        began = time.monotonic()
        code = (command or (lambda: self.project.repro(self.stage, check=False)))()
        told = [] if code == 0 else [f"ENDED WITH {code}: {self.project.said()[-300:]}"]
        whole = whole or len(nx.descendants(self.reference.graph(), self.stage)) < FEW
        if whole:
            self.project.repro(check=False)
        name = self.run.split("/")[1]
        told += differences(self.project, self.reference, stage=None if whole else self.stage, run=name, database=self.database)
        result = "; ".join(told) or "the same" + (", the whole chain" if whole else "")
        tries = ", ".join(statuses(self.database, name)) or "none"
        self.after = f"{before}{result} ({time.monotonic() - began:.0f} s; runs in MLflow: {tries})"


def name(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return [Path(part).name for part in process.cmdline()[:5]]
    return ["?"]


def ended(process: subprocess.Popen) -> int:
    """Its exit code; then what is left of its session ends too."""
    code = process.wait(1200)
    time.sleep(0.5)
    return code


# --- processes


def broken(trial: Trial, stage: str, act: Callable[[subprocess.Popen, psutil.Process], None]) -> Project:
    """`dvc repro` of the stage, broken by `act` at a moment; again from the start where it had ended before."""
    for _ in range(TRIES):
        project = trial.before(stage)
        dvc = project.start("dvc", "repro", stage)
        process = trial.mid_stage()
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            act(dvc, process)
        if ended(dvc) != 0:
            trial.look(f"dvc ends with {dvc.returncode}")
            return project
        shutil.rmtree(project.root)
    raise Skipped(f"in {TRIES} tries it ended before its moment")


def kill_stage(trial: Trial, stage: str, by: signal.Signals = signal.SIGKILL) -> None:
    broken(trial, stage, lambda _, process: process.send_signal(by))
    trial.again()


def ctrl_c(trial: Trial, stage: str) -> None:
    broken(trial, stage, lambda dvc, _: os.killpg(dvc.pid, signal.SIGINT))
    trial.again()


def kill_dvc(trial: Trial, stage: str) -> None:
    """Its stage goes on as an orphan, while the next run starts the same."""
    broken(trial, stage, lambda dvc, _: dvc.kill())
    trial.again()


def kill_child(trial: Trial, stage: str) -> None:
    """A process that the stage started: a reader of ingest, a worker of a DataLoader."""
    for _ in range(TRIES):
        project = trial.before(stage)
        dvc = project.start("dvc", "repro", stage)
        parent = wait_for(lambda: project.stage(trial.name))  # noqa: B023 (called at once)
        wait_for(lambda: _children(parent) or not parent.is_running())  # noqa: B023
        time.sleep(trial.draw.uniform(0, 0.1))
        children = _children(parent)
        if children:
            trial.draw.choice(children).kill()
        code = ended(dvc)
        if children:
            said = [line for line in project.said().splitlines() if re.search("died|is killed by", line)]
            trial.look(f"one of {len(children)} killed; dvc ends with {code}{': ' + said[-1][:160] if said else ''}")
            trial.again()
            return
        shutil.rmtree(project.root)
    raise Skipped(f"in {TRIES} tries it ended before its moment")


def _children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return [c for c in process.children(recursive=True) if "resource_tracker" not in " ".join(c.cmdline())]
    return []


def stop_flow(trial: Trial, stage: str, by: signal.Signals) -> None:
    project = trial.before(stage)
    command = (sys.executable, "-m", "flows.bootstrap", stage)
    flow = project.start(*command)
    trial.mid_stage()
    flow.send_signal(by)
    code = flow.wait(300)
    with contextlib.suppress(TimeoutError):
        wait_for(lambda: not project.stage(trial.name), 15)
    trial.look(f"the flow ends with {code}")
    for process in project.processes():  # Prefect's temporary server outlives kill -9
        process.kill()
    trial.again(lambda: project.run(*command, check=False), whole=by == signal.SIGKILL)


# --- the disk


@contextlib.contextmanager
def small_disk(folder: Path):
    """A file system of its own at `folder`, what was in it included; yields a function that sets how many bytes are free."""
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2g", "none", _empty(folder)], capture_output=True).returncode:
        raise Skipped("file systems can't be mounted here")
    try:
        shutil.copytree(folder.with_name(folder.name + ".moved"), folder, symlinks=True, dirs_exist_ok=True)

        def free(number: int) -> None:
            space = os.statvfs(folder)
            size = (space.f_blocks - space.f_bfree) * space.f_frsize + number
            subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)

        yield free
    finally:
        subprocess.run(["umount", "-l", folder])
        shutil.rmtree(folder.with_name(folder.name + ".moved"), ignore_errors=True)


def _empty(folder: Path) -> Path:
    folder.rename(folder.with_name(folder.name + ".moved"))
    folder.mkdir()
    return folder


def full_disk(trial: Trial, stage: str, place: str = ".", share: tuple[float, float] = (0.1, 0.9), unit: str | None = None) -> None:
    """Of what the stage writes, only a random share fits."""
    project = trial.before(stage)
    written = [trial.reference.root / unit] if unit else trial.reference.outs(stage)
    number = sum(p.stat().st_size for out in written for p in ([out] if out.is_file() else out.rglob("*")) if p.is_file())
    with small_disk((project.root / place).resolve()) as free:
        free(int(number * trial.draw.uniform(*share)))
        code = project.repro(stage, check=False)
        lines = reversed(project.said().splitlines())
        said = next((line for line in lines if "space" in line or "full" in line), last_line(project.said()))
        trial.look(f"dvc ends with {code}: {said.strip()[:160]}")
        free(1 << 30)
        trial.again()


# --- MLflow's database


def database_gone(trial: Trial, stage: str, how: str) -> None:
    """While the stage runs; the backup is put back before the next run."""
    project = trial.before(stage)
    database, backup = project.root / "mlflow.db", trial.reference.root.parent / "champion.db"
    dvc = project.start("dvc", "repro", stage)
    wait_for(lambda: statuses(database, trial.run.split("/")[1]))
    time.sleep(trial.draw.uniform(0, 0.5) * trial.own_seconds())
    if how == "locked":
        with contextlib.closing(sqlite3.connect(database, isolation_level=None, timeout=30)) as holder:
            holder.execute("BEGIN EXCLUSIVE")
            code = ended(dvc)
            holder.execute("ROLLBACK")
    else:
        database.unlink() if how == "deleted" else database.write_bytes(b"damaged" * 10000)
        code = ended(dvc)
    warned = next((line for line in project.said().splitlines() if line.startswith("MLflow at")), "no warning")
    if how != "locked":
        shutil.copy(backup, database)
    project.run("python", "-m", "blip_core", "outbox")
    sent = project.said().split(" to ")[0].splitlines()[-1]
    trial.look(f"the stage goes on, dvc ends with {code}; said: {re.sub(r'/[^ ]*/', '', warned)[:75]}…")
    trial.again(before=f"outbox: {sent}; ")


def no_registry(trial: Trial, stage: str = "register") -> None:
    project = trial.before(stage)
    database = project.root / "mlflow.db"
    whole = database.read_bytes()
    database.write_bytes(b"damaged" * 10000)
    code = project.repro(stage, check=False)
    said = next((line for line in project.said().splitlines() if line.startswith("register:")), last_line(project.said()))
    database.write_bytes(whole)
    trial.look(f"dvc ends with {code}: {re.sub(r'/[^ ]*/', '', said)[:150]}")
    trial.again()

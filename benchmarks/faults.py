"""What happens when things break: each fault on a small copy of the chain, at a moment drawn by seed, then the same command again.

    python benchmarks/faults.py [NAME ...] [--seed N] [--folder PATH] [--list]

The chain runs once unbroken. For each fault it is copied as it was before a stage; the stage runs and is broken; what lies there then is
compared with the unbroken run, byte by byte; the command runs again, then `dvc repro` for the rest; everything is compared: every
file of artifacts/ (but what holds the time of day), the versions and aliases of the registry, and in MLflow the metrics of each stage, step by
step. Where much depends on the broken stage, its own outputs are compared and the rest is left out, but for some faults: with the same
inputs DVC has the rest in its cache. An older champion stands in the registry from the start, which no fault may move. Without names all
faults run (about half an hour on two cores) and docs/faults.md is written anew. What this machine can't do (mounts, PostgreSQL) is said there.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
import psutil
import yaml

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "tests")]
from fault_project import (  # noqa: E402
    ROOT,
    SIZES,
    Project,
    Skipped,
    copy_before,
    differences,
    half_written,
    make,
    registry,
    statuses,
    wait_for,
)

from flows.graph import read_graph  # noqa: E402

PAGE = ROOT / "docs/faults.md"
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
        self.stage, self.verb = stage, stage.split("@")[0]
        lock = yaml.safe_load((self.reference.root / "dvc.lock").read_text())
        self.run = re.search(r"--run (\S+)", lock["stages"][stage]["cmd"])[1]
        self.project = copy_before(self.reference, stage, self.folder)
        self.project.env |= env
        self.database: Path | str = self.project.root / "mlflow.db"
        return self.project

    def mid_stage(self) -> psutil.Process:
        """The process of the stage, at a random moment of its work, which begins when its run is open in MLflow."""
        process = wait_for(lambda: self.project.stage(self.verb))
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
        if left := [p for p in self.project.processes()]:
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
        tries = ", ".join(statuses(self.database, name))
        self.after = f"{before}{'; '.join(told) or 'the same' + (', the whole chain' if whole else '')} ({time.monotonic() - began:.0f} s; runs in MLflow: {tries or 'none'})"


def name(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return [Path(part).name for part in process.cmdline()[:4]]
    return ["?"]


def last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith(("ERROR: failed to reproduce", ">"))]
    return lines[-1][:160] if lines else ""


def ended(process: subprocess.Popen) -> int:
    """Its exit code; then what is left of its session ends too."""
    code = process.wait(1200)
    time.sleep(0.5)
    return code


# --- processes


def kill_stage(trial: Trial, stage: str, by: signal.Signals = signal.SIGKILL) -> None:
    project = trial.before(stage)
    for _ in range(TRIES):  # it may have ended before its moment
        dvc = project.start("dvc", "repro", stage)
        process = trial.mid_stage()
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(by)
        if ended(dvc) != 0:
            break
        shutil.rmtree(project.root)
        project = trial.before(stage)
    else:
        raise Skipped(f"in {TRIES} tries it ended before its moment")
    trial.look(f"dvc ends with {dvc.returncode}")
    trial.again()


def ctrl_c(trial: Trial, stage: str) -> None:
    project = trial.before(stage)
    dvc = project.start("dvc", "repro", stage)
    trial.mid_stage()
    os.killpg(dvc.pid, signal.SIGINT)
    code = ended(dvc)
    trial.look(f"dvc ends with {code}")
    trial.again()


def kill_dvc(trial: Trial, stage: str) -> None:
    """Its stage goes on as an orphan, while the next run starts the same."""
    project = trial.before(stage)
    dvc = project.start("dvc", "repro", stage)
    trial.mid_stage()
    dvc.kill()
    ended(dvc)
    trial.look("dvc ends with -9")
    trial.again()


def kill_child(trial: Trial, stage: str, **env: str) -> None:
    """A process that the stage started: a reader of ingest, a worker of a DataLoader."""
    project = trial.before(stage)
    dvc = project.start("dvc", "repro", stage, **env)
    parent = wait_for(lambda: project.stage(trial.verb))
    wait_for(lambda: _children(parent) or not parent.is_running(), 60)
    time.sleep(trial.draw.uniform(0, 0.2))
    children = _children(parent)
    if children:
        trial.draw.choice(children).kill()
    code = ended(dvc)
    said = [line for line in project.said().splitlines() if re.search("died|killed|worker|Worker", line)]
    trial.look(f"{len(children)} children, one killed; dvc ends with {code}{': ' + said[-1][:160] if said else ''}")
    trial.again()


def _children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return [c for c in process.children(recursive=True) if "resource_tracker" not in " ".join(c.cmdline())]
    return []


def stop_flow(trial: Trial, stage: str, by: signal.Signals) -> None:
    project = trial.before(stage)
    command = (sys.executable, "-m", "flows.bootstrap", trial.verb)
    flow = project.start(*command)
    trial.mid_stage()
    flow.send_signal(by)
    code = flow.wait(300)
    with contextlib.suppress(TimeoutError):
        wait_for(lambda: not project.stage(trial.verb), 15)
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
        said = next((line for line in reversed(project.said().splitlines()) if "space" in line or "full" in line), last_line(project.said()))
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


def faults(stages: list[str]) -> dict[str, tuple[str, Callable[[Trial], None]]]:
    """Every fault: its name on the command line, what it is, and what makes it."""
    import fault_services as services

    several = {s.split("@")[0]: s for s in reversed(stages)}  # of each kind the first, and the training that may be promoted
    stages = [s for s in stages if s in several.values() or s == "pretrain@g1"]
    made = {f"kill-{s}": (f"`kill -9` of the stage {s}", lambda t, s=s: kill_stage(t, s)) for s in stages}
    train = next(s for s in stages if s.startswith("pretrain"))
    caption = next(s for s in stages if s.startswith("caption"))
    first = "ingest"
    return made | {
        "term": (f"SIGTERM to the stage {train}", lambda t: kill_stage(t, train, signal.SIGTERM)),
        "ctrl-c": (f"Ctrl-C during `dvc repro`, in {train}", lambda t: ctrl_c(t, train)),
        "kill-dvc": (f"`kill -9` of dvc during {train}; it is started again at once, beside the orphan", lambda t: kill_dvc(t, train)),
        "kill-reader": (f"`kill -9` of a process of {first}", lambda t: kill_child(t, first)),
        "kill-worker": (f"`kill -9` of a DataLoader's worker of {train}", lambda t: kill_child(t, train)),
        "flow-kill": (f"`kill -9` of `flows.bootstrap` during {train}", lambda t: stop_flow(t, train, signal.SIGKILL)),
        "flow-term": (f"SIGTERM to `flows.bootstrap` during {train}", lambda t: stop_flow(t, train, signal.SIGTERM)),
        "flow-ctrl-c": (f"Ctrl-C to `flows.bootstrap` during {train}", lambda t: stop_flow(t, train, signal.SIGINT)),
        "prefect-worker": ("`kill -9` of Prefect's worker during a deployment's run", lambda t: services.kill_prefect(t, train, "worker")),
        "prefect-server": ("`kill -9` of Prefect's server during a deployment's run", lambda t: services.kill_prefect(t, train, "server")),
        "disk-ingest": (f"disk full in {first}", lambda t: full_disk(t, first)),
        "disk-checkpoint": (
            f"disk full while {train} writes a checkpoint",
            lambda t: full_disk(t, train, ".work", (4, 10), f"artifacts/models/{train.split('@')[1]}/model.safetensors"),
        ),
        "disk-caption": (f"disk full in {caption}", lambda t: full_disk(t, caption)),
        "disk-cache": ("disk full while DVC fills its cache", lambda t: full_disk(t, first, ".dvc/cache")),
        "database-deleted": (f"mlflow.db deleted during {train}; its backup put back", lambda t: database_gone(t, train, "deleted")),
        "database-damaged": (f"mlflow.db overwritten during {train}; its backup put back", lambda t: database_gone(t, train, "damaged")),
        "database-locked": (f"mlflow.db locked by another program during {train}", lambda t: database_gone(t, train, "locked")),
        "registry-damaged": ("mlflow.db unreadable when `register` starts; its backup put back", no_registry),
        "mlflow-restart": (f"MLflow's server killed during {train}, started again at once", lambda t: services.kill_mlflow(t, train, True)),
        "mlflow-gone": (f"MLflow's server killed during {train}, back for a later stage", lambda t: services.kill_mlflow(t, train, False)),
        "mlflow-never": (f"MLflow's server away during all of {train}; then `outbox`", lambda t: services.without_mlflow(t, train)),
        "postgresql": (f"MLflow's PostgreSQL stopped during {train}, started again", lambda t: services.stop_postgresql(t, train)),
        "remote": ("`dvc push` to an S3 remote that goes away half way", lambda t: services.lose_remote(t, first)),
        "remote-pull": ("`dvc pull` from an S3 remote that cuts transfers off", lambda t: services.cut_pull(t, first)),
    }


# --- the page


def attempt(reference: Project, key: str, about: tuple, seed: int, folder: Path) -> tuple[str, str, str]:
    title, act = about
    trial = Trial(reference, folder / key, random.Random(f"{seed}/{key}"))
    began = time.monotonic()
    try:
        act(trial)
        row = (title, trial.seen, trial.after)
    except Skipped as e:
        row = (title, f"not tried: {e}", "")
    except Exception:
        row = (title, trial.seen or "the script failed", f"SCRIPT: {traceback.format_exc()[-300:]}")
    print(f"{key} ({time.monotonic() - began:.0f} s)\n  {row[1]}\n  {row[2]}", flush=True)
    for process in getattr(trial, "project", None) and trial.project.processes() or []:
        with contextlib.suppress(psutil.Error):
            process.kill()
    if same(row):
        shutil.rmtree(folder / key, ignore_errors=True)
    return row


def same(row: tuple[str, str, str]) -> bool:
    return "the same (" in row[2] or "the same, the whole chain (" in row[2]


def page(rows: list[tuple[str, str, str]], reference: Project, seed: int, minutes: float) -> str:
    params = yaml.safe_load((reference.root / "params.yaml").read_text())
    sizes = f"{params['sample']['num_web']} crawled images, {SIZES['steps']} steps a training, a checkpoint every {SIZES['checkpoint_every']}"
    good = sum(map(same, rows))
    tried = sum(bool(row[2]) for row in rows)
    lines = [
        "# Faults",
        "",
        f"Made by `python benchmarks/faults.py --seed {seed}` in {minutes:.0f} minutes on {platform.machine()} Linux,",
        f"{os.cpu_count()} cores, Python {platform.python_version()}: {sizes}, on the CPU. {good} of {tried} ended the same as the unbroken run.",
        "",
        "Each fault happens once, at a moment drawn by the seed, in a copy of the chain as it was before that stage. *Seen*: before anything is",
        "run again. A file counts as half-written when it has a final name and other bytes than in the unbroken run. *The same*: every file of",
        "`artifacts/` byte by byte (but reports and dates), the registry's versions and aliases with the older champion in its place, and in",
        "MLflow every metric of every step, each once. *The whole chain*: what depends on the stage ran too.",
        "",
        "| fault | seen | after running again |",
        "|---|---|---|",
        *("| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in row) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="default: all, and docs/faults.md is written")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the copies go, which are kept where a fault did harm; default: a temporary one")
    parser.add_argument("--list", action="store_true", help="the faults, and nothing else")
    args = parser.parse_args()
    folder = (args.folder or Path(tempfile.mkdtemp(prefix="faults-"))).resolve()
    began = time.monotonic()
    reference = Project(folder / "unbroken")
    if not args.list and not (reference.root / "dvc.lock").exists():
        reference = make(folder / "unbroken")
        reference.repro()
    graph = read_graph(ROOT if args.list else reference.root)
    known = faults([s for s in _in_order(graph) if not s.endswith(".dvc")])
    if unknown := set(args.names) - known.keys():
        parser.error(f"no fault {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if args.list:
        print("\n".join(f"{key:20} {title}" for key, (title, _) in known.items()))
        return 0
    rows = [attempt(reference, key, known[key], args.seed, folder) for key in (args.names or known)]
    if not args.names:
        PAGE.write_text(page(rows, reference, args.seed, (time.monotonic() - began) / 60))
    return int(any(row[2] and not same(row) for row in rows))


def _in_order(graph) -> list[str]:
    return list(nx.lexicographical_topological_sort(graph))


if __name__ == "__main__":
    sys.exit(main())

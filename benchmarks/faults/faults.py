"""What happens when things break: each fault on a small copy of the chain, at a moment drawn by seed, then the same command again.

    python benchmarks/faults/faults.py [NAME ...] [--seed N] [--folder PATH] [--list]

The chain runs once unbroken. For each fault it is copied as it was before a stage; the stage runs and is broken; what lies there then is
compared with the unbroken run, byte by byte; the command runs again, then `dvc repro` for the rest; everything is compared: every file of
artifacts/ (but what holds the time of day), versions and aliases of the registry, and in MLflow the metrics of each stage, step by step.
Where much depends on the broken stage, its own outputs are compared and the rest is left out, but for some faults: with the same inputs
DVC has the rest in its cache. An older champion stands in the registry from the start, which no fault may move. Without names all faults
run (about half an hour on two cores). benchmarks/results/faults.json and docs/faults.md are brought up to date; what this machine can't
do (mounts, PostgreSQL) is said there.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import networkx as nx
import psutil
import yaml

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2] / "tests")]
import fault_cases as cases  # noqa: E402
import fault_services as services  # noqa: E402
from fault_cases import Trial  # noqa: E402
from fault_project import ROOT, SIZES, Project, Skipped, make  # noqa: E402

from flows.graph import read_graph  # noqa: E402

PAGE, RESULTS = ROOT / "docs/faults.md", ROOT / "benchmarks/results/faults.json"


def faults(stages: list[str]) -> dict[str, tuple[str, Callable[[Trial], None]]]:
    """Every fault: its name on the command line, what it is, and what makes it."""
    several = {s.split("@")[0]: s for s in reversed(stages)}  # of each kind the first, and the training that may be promoted
    stages = [s for s in stages if s in several.values() or s == "pretrain@g1"]
    made = {f"kill-{s}": (f"`kill -9` of the stage {s}", lambda t, s=s: cases.kill_stage(t, s)) for s in stages}
    train = next(s for s in stages if s.startswith("pretrain"))
    caption = next(s for s in stages if s.startswith("caption"))
    first = "ingest"
    return made | {
        "term": (f"SIGTERM to the stage {train}", lambda t: cases.kill_stage(t, train, signal.SIGTERM)),
        "ctrl-c": (f"Ctrl-C during `dvc repro`, in {train}", lambda t: cases.ctrl_c(t, train)),
        "kill-dvc": (f"`kill -9` of dvc during {train}; started again at once, beside the orphan", lambda t: cases.kill_dvc(t, train)),
        "kill-reader": (f"`kill -9` of a process of {first}", lambda t: cases.kill_child(t, first)),
        "kill-worker": (f"`kill -9` of a DataLoader's worker of {train}", lambda t: cases.kill_child(t, train)),
        "flow-kill": (f"`kill -9` of `flows.bootstrap` during {train}", lambda t: cases.stop_flow(t, train, signal.SIGKILL)),
        "flow-term": (f"SIGTERM to `flows.bootstrap` during {train}", lambda t: cases.stop_flow(t, train, signal.SIGTERM)),
        "flow-ctrl-c": (f"Ctrl-C to `flows.bootstrap` during {train}", lambda t: cases.stop_flow(t, train, signal.SIGINT)),
        "prefect-worker": ("`kill -9` of Prefect's worker during a deployment's run", lambda t: services.kill_prefect(t, train, "worker")),
        "prefect-server": ("`kill -9` of Prefect's server during a deployment's run", lambda t: services.kill_prefect(t, train, "server")),
        "disk-ingest": (f"disk full in {first}", lambda t: cases.full_disk(t, first)),
        "disk-checkpoint": (
            f"disk full while {train} writes a checkpoint",
            lambda t: cases.full_disk(t, train, ".work", (4, 10), f"artifacts/models/{train.split('@')[1]}/model.safetensors"),
        ),
        "disk-caption": (f"disk full in {caption}", lambda t: cases.full_disk(t, caption)),
        "disk-cache": ("disk full while DVC fills its cache", lambda t: cases.full_disk(t, first, ".dvc/cache")),
        "database-deleted": (f"mlflow.db deleted during {train}; its backup put back", lambda t: cases.database_gone(t, train, "deleted")),
        "database-damaged": (f"mlflow.db damaged during {train}; its backup put back", lambda t: cases.database_gone(t, train, "damaged")),
        "database-locked": (f"mlflow.db locked by another program during {train}", lambda t: cases.database_gone(t, train, "locked")),
        "registry-damaged": ("mlflow.db unreadable when `register` starts; its backup put back", cases.no_registry),
        "mlflow-restart": (f"MLflow's server killed during {train}, started again at once", lambda t: services.kill_mlflow(t, train, True)),
        "mlflow-gone": (f"MLflow's server killed during {train}, back for a later stage", lambda t: services.kill_mlflow(t, train, False)),
        "mlflow-never": (f"MLflow's server away during all of {train}; then `outbox`", lambda t: services.without_mlflow(t, train)),
        "postgresql": (f"MLflow's PostgreSQL stopped during {train}, started again", lambda t: services.stop_postgresql(t, train)),
        "remote": ("`dvc push` to an S3 remote that goes away half way", lambda t: services.lose_remote(t, first)),
        "remote-pull": ("`dvc pull` from an S3 remote that cuts transfers off", lambda t: services.cut_pull(t, first)),
    }


# --- the page


def attempt(reference: Project, key: str, about: tuple, seed: int, folder: Path) -> dict:
    title, act = about
    trial = Trial(reference, folder / key, random.Random(f"{seed}/{key}"))
    began = time.monotonic()
    try:
        act(trial)
        seen, after = trial.seen, trial.after
    except Skipped as e:
        seen, after = f"not tried: {e}", ""
    except Exception:  # noqa: BLE001  # the table says that the script failed, and goes on
        seen, after = trial.seen or "the script failed", f"SCRIPT: {traceback.format_exc()[-300:]}"
    row = {"title": title, "seen": seen, "after": after, "seed": seed}
    print(f"{key} ({time.monotonic() - began:.0f} s)\n  {seen}\n  {after}", flush=True)
    for process in (getattr(trial, "project", None) and trial.project.processes()) or []:
        with contextlib.suppress(psutil.Error):
            process.kill()
    if same(row):
        shutil.rmtree(folder / key, ignore_errors=True)
    return row


def same(row: dict) -> bool:
    text = row["after"]
    return ("the same (" in text or "the same, the whole chain (" in text) and "OTHER FILES" not in text


def page(rows: list[dict], reference: Project) -> str:
    params = yaml.safe_load((reference.root / "params.yaml").read_text())
    images, steps, every = params["sample"]["num_web"], SIZES["steps"], SIZES["checkpoint_every"]
    sizes = f"{images} crawled images, {steps} steps a training, a checkpoint every {every}"
    good, tried = sum(same(row) for row in rows), sum(bool(row["after"]) for row in rows)
    seeds = ", ".join(sorted({str(row["seed"]) for row in rows}))
    lines = [
        "# Faults",
        "",
        f"Made by `python benchmarks/faults/faults.py` on {platform.machine()} {platform.system()}, {os.cpu_count()} cores shared with",
        f"other work, Python {platform.python_version()}, seed {seeds}: {sizes}, on the CPU.",
        f"{good} of {tried} ended the same as the unbroken run.",
        "",
        "Each fault happens once, at a moment drawn by the seed, in a copy of the chain as it was before that stage.",
        "",
        "- *seen*: before anything is run again. Half-written is a file that has a final name and other bytes than in the unbroken run.",
        "- *the same*: every file of `artifacts/` byte by byte (but reports and dates), the registry's versions and aliases with the older",
        "  champion in its place, and in MLflow every metric of every step. *The whole chain*: what depends on the stage ran too.",
        "- *runs in MLflow*: how the tries of the stage stand there in the end. Where the stage had ended, `dvc repro` alone was broken.",
        "",
        "| fault | seen | after running again |",
        "|---|---|---|",
        *(f"| {row['title']} | {cell(row['seen'])} | {cell(row['after'])} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def write(made: dict[str, dict], known: dict[str, tuple], reference: Project) -> None:
    """Bring the results up to date, and the page made of them."""
    rows = (json.loads(RESULTS.read_text()) if RESULTS.exists() else {}) | made
    rows = {key: rows[key] for key in known if key in rows}
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    PAGE.write_text(page(list(rows.values()), reference))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the copies go, which are kept where a fault did harm; default: a temporary one")
    parser.add_argument("--list", action="store_true", help="the faults, and nothing else")
    args = parser.parse_args()
    folder = (args.folder or Path(tempfile.mkdtemp(prefix="faults-"))).resolve()
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
    made = {}
    for key in args.names or known:
        made[key] = attempt(reference, key, known[key], args.seed, folder)
        write(made, known, reference)
    return int(any(row["after"] and not same(row) for row in made.values()))


def _in_order(graph) -> list[str]:
    return list(nx.lexicographical_topological_sort(graph))


if __name__ == "__main__":
    sys.exit(main())

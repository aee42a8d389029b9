"""A small project for faults.py: made and run once unbroken, copied for each fault with one stage not run yet, and compared in the end."""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from flows.graph import read_graph  # noqa: E402
from tests.support.small import small_values  # noqa: E402

SIZES = {"steps": 120, "batch_size": 16, "checkpoint_every": 10, "log_every": 5, "precision": "fp32", "workers": 1}  # of each training
PASSED_OVER = re.compile(r"_tmp\.|^docs/|^report|^registration\.json$|^metrics/.*report")  # unfinished, or with the time of day in it
NOT_COMPARED = re.compile(r"seconds|per_s|_mib|eta|mem", re.I)  # metrics of the machine


class Skipped(Exception):
    """Why a fault can't be made here."""


@dataclass(eq=False)
class Project:
    """A folder with a chain, and how commands run in it."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        quiet = {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "DVC_NO_ANALYTICS": "1", "GX_ANALYTICS_ENABLED": "false"}
        quiet |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        own = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "MLFLOW_", "PREFECT_", "BLIP_"))}
        ours = {"PATH": path, "PWD": str(self.root), "PYTHONPATH": str(self.root), "PREFECT_HOME": str(self.root / ".work/prefect")}
        self.env = {**own, **quiet, **ours, **self.env}

    def start(self, *command: str, **env: str) -> subprocess.Popen:
        """In a session of its own, heeding Ctrl-C as on a terminal; what it says goes to the file `said`."""
        heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        with (self.root.parent / f"{self.root.name}.said").open("wb") as said:
            out = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": said, "start_new_session": True, "preexec_fn": heed}
            return subprocess.Popen(command, cwd=self.root, env={**self.env, **env}, **out)

    def run(self, *command: str, check: bool = True, timeout: float = 1800, **env: str) -> int:
        process = self.start(*command, **env)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        if check and code:
            raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{self.said()[-3000:]}")
        return code

    def said(self) -> str:
        return (self.root.parent / f"{self.root.name}.said").read_text(errors="replace")

    def repro(self, stage: str | None = None, **options) -> int:
        return self.run("dvc", "repro", *([stage] if stage else []), **options)

    def outs(self, stage: str) -> list[Path]:
        """What the stage makes, as dvc.lock or the graph has it."""
        return [self.root / out for out in self.graph().nodes[stage]["outs"]]

    @functools.cache  # noqa: B019  one per fault, and the graph does not change
    def graph(self):
        return read_graph(self.root)

    def processes(self) -> list[psutil.Process]:
        """All that work in the folder."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if Path(process.cwd()).is_relative_to(self.root) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def stage(self, name: str) -> psutil.Process | None:
        """The process of a stage, if it runs."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                command = process.cmdline()
                if command[1:5] == ["-m", "blip_core", "stage", name]:
                    return process
        return None


def make(folder: Path) -> Project:
    """The project with few images and few steps, in git; a champion of an older chain is registered."""
    folder.mkdir(parents=True)
    for name in ("blip_core", "flows", "mlflow", "labels", "columns", ".dvc"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "tmp", "cache"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", "prefect.yaml"):
        shutil.copy(ROOT / name, folder)
    values = small_values(yaml.safe_load((ROOT / "params.yaml").read_text()))
    for section in values.values():
        if isinstance(section, dict) and "optim" in section:
            section["optim"] |= SIZES
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    project = Project(folder)
    for command in ("git init -q", "git config user.name Ann", "git config user.email ann@localhost", "git add -A", "git commit -qm start"):
        project.run(*command.split())
    for command in ("python -m blip_core sample --out data", "dvc add -q data", "git add -A", "git commit -qm data"):
        project.run(*command.split())
    project.run("python", "-c", SEED_CHAMPION)
    shutil.copy(folder / "mlflow.db", folder.parent / "champion.db")
    return project


SEED_CHAMPION = """
import os
from mlflow import MlflowClient
uri = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
client = MlflowClient(uri, registry_uri=uri)
client.create_registered_model("blip")
client.create_model_version("blip", "elsewhere", tags={"gate": "passed"})
client.set_registered_model_alias("blip", "champion", "1")
"""


def copy_before(reference: Project, stage: str, folder: Path) -> Project:
    """A copy as it was before the stage ran: it and what depends on it are forgotten, MLflow is as new. What depends on the stage comes
    from DVC's cache in the end, so only what differs costs time."""
    import networkx as nx

    shutil.copytree(reference.root, folder, symlinks=True)
    project = Project(folder)
    graph = reference.graph()
    editor = YAML()  # of YAML 1.2, as DVC writes it
    lock = editor.load(folder / "dvc.lock")
    forgotten = {stage, *nx.descendants(graph, stage)}
    for name in forgotten:
        made = lock["stages"].pop(name)
        for out in made["outs"]:
            path = folder / out["path"]
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            if stage == "ingest" and "md5" in out:  # another's files may be the same as those of a stage that is not forgotten
                _uncache(folder / ".dvc/cache/files/md5", out["md5"])
        if name == stage:
            _forget(folder / ".dvc/cache/runs", made["cmd"])
    editor.dump(lock, folder / "dvc.lock")
    shutil.rmtree(folder / ".work")
    (folder / ".work").mkdir()
    shutil.rmtree(folder / "mlruns", ignore_errors=True)
    if "register" in forgotten:
        shutil.copy(reference.root.parent / "champion.db", folder / "mlflow.db")
    return project


def _uncache(cache: Path, md5: str) -> None:
    """An object and, of a folder's, its files."""
    path = cache / md5[:2] / md5[2:]
    if md5.endswith(".dir") and path.exists():
        for entry in json.loads(path.read_text()):
            (cache / entry["md5"][:2] / entry["md5"][2:]).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _forget(runs: Path, cmd: str) -> None:
    for path in [p for p in runs.rglob("*") if p.is_file()]:
        if yaml.safe_load(path.read_text()).get("cmd") == cmd:
            shutil.rmtree(path.parent)


# --- what is compared


def files(root: Path) -> dict[str, str]:
    """Hash of each file of artifacts/ that a reader might take for whole."""
    found = {}
    for path in sorted((root / "artifacts").rglob("*")):
        name = str(path.relative_to(root / "artifacts"))
        if path.is_file() and not PASSED_OVER.search(name):
            found[name] = hashlib.md5(path.read_bytes()).hexdigest()
    return found


def query(database: Path | str, sql: str) -> list[tuple]:
    """What an MLflow database says: a file of SQLite, or a PostgreSQL by its URL."""
    if isinstance(database, str):
        import psycopg2

        with contextlib.closing(psycopg2.connect(database.replace("+psycopg2", ""))) as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall()
    try:
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
            return connection.execute(sql).fetchall()
    except sqlite3.Error:
        return []


def registry(database: Path | str) -> dict[str, object]:
    """Aliases, and of each version its model and gate."""
    tags = {(v, k): value for v, k, value in query(database, "SELECT version, key, value FROM model_version_tags")}
    versions = [v for (v,) in query(database, "SELECT version FROM model_versions ORDER BY version")]
    aliases = dict(query(database, "SELECT alias, version FROM registered_model_aliases ORDER BY alias"))
    return {"aliases": aliases, "versions": {v: (tags.get((v, "model_hash")), tags.get((v, "gate"))) for v in versions}}


def metrics(database: Path | str) -> dict[str, dict[tuple, float]]:
    """Of each stage by its run's name: (metric, step) to value, over all tries."""
    found: dict[str, dict[tuple, float]] = {}
    sql = "SELECT r.name, m.key, m.step, m.value FROM metrics m JOIN runs r USING (run_uuid)"
    for name, key, step, value in query(database, sql):
        if not NOT_COMPARED.search(key):
            found.setdefault(name, {})[key, step] = value
    return found


def statuses(database: Path | str, name: str) -> list[str]:
    """How the tries of a stage ended, by their start."""
    return [s for (s,) in query(database, f"SELECT status FROM runs WHERE name = '{name}' ORDER BY start_time")]


def differences(project: Project, reference: Project, *, stage: str | None, run: str, database: Path | str) -> list[str]:
    """In what a project differs from the unbroken one; empty when in nothing. With `stage` what depends on that has not run yet."""
    told, base = [], reference.root
    waiting = tuple(_below(reference, stage)) if stage else ()
    if missing := sorted(n for n in files(base).keys() - files(project.root).keys() if not n.startswith(waiting)):
        told.append(f"missing: {', '.join(missing)}")
    if changed := half_written(project, reference):
        told.append(f"different: {', '.join(changed)}")
    found, expected = registry(database), registry(base.parent / "champion.db" if stage else base / "mlflow.db")
    if found != expected:
        told.append(f"registry: {found}, expected {expected}")
    told += _metrics_differ(metrics(database), metrics(base / "mlflow.db"), run)
    if running := query(database, "SELECT name FROM runs WHERE status = 'RUNNING'"):
        told.append(f"MLflow runs still RUNNING: {', '.join(n for (n,) in running)}")
    if left := list((project.root / ".work").glob("tracking/*")):
        told.append(f"not sent to MLflow: {len(left)}")
    if status := project.run("dvc", "status", "-q", *([stage] if stage else []), check=False):
        told.append(f"dvc status ends with {status}")
    return told


def _below(reference: Project, stage: str) -> list[str]:
    """Outputs, below artifacts/, of all that depends on the stage."""
    import networkx as nx

    graph = reference.graph()
    return [out.removeprefix("artifacts/") for name in nx.descendants(graph, stage) for out in graph.nodes[name]["outs"]]


def _metrics_differ(ours: dict, theirs: dict, run: str) -> list[str]:
    told = []
    for name in ours.keys() | ({run} & theirs.keys()):
        found, expected = ours.get(name, {}), theirs.get(name, {})
        if lost := sorted(map(str, expected.keys() - found.keys())):
            told.append(f"MLflow lacks of {name}: {', '.join(lost[:4])} ({len(lost)})")
        if other := sorted(str(k) for k, v in found.items() if expected.get(k) != v):
            told.append(f"MLflow has else of {name}: {', '.join(other[:4])} ({len(other)})")
    return told


def half_written(project: Project, reference: Project) -> list[str]:
    """Files that a reader would take for whole and that are not what the unbroken run has."""
    theirs = files(reference.root)
    return sorted(name for name, digest in files(project.root).items() if digest != theirs.get(name))


def wait_for(condition: Callable[[], object], seconds: float = 600) -> object:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError("it never came to that")
        time.sleep(0.02)
    return value


def last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith(("ERROR: failed to reproduce", ">"))]
    return lines[-1][:160] if lines else ""

"""The whole chain through DVC, as a user drives it, in a copy of the project."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.support.processes import HANG
from tests.support.small import ROOT


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    env.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=HANG, stdin=subprocess.DEVNULL)


def project_at(folder: Path, values: dict) -> None:
    """A copy of the project with these values, committed to git."""
    for name in ("blip_core", "flows", "mlflow", "labels", "columns", "frozen", ".dvc"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("tmp", "cache"))  # with what Python has compiled
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    for name in values["rounds"]:
        (folder / "labels" / name).mkdir(exist_ok=True)
        (folder / "labels" / name / ".gitkeep").touch()
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    assert run("git", "init", "-q", cwd=folder).returncode == 0
    for command in (("config", "user.name", "Ann"), ("config", "user.email", "ann@example.org"), ("add", "-A"), ("commit", "-qm", "start")):
        assert run("git", *command, cwd=folder).returncode == 0


def run_chain(folder: Path) -> None:
    """Of a project, on its sample world."""
    assert run("python", "-m", "blip_core", "sample", "--out", "data", cwd=folder).returncode == 0
    assert run("dvc", "add", "-q", "data", cwd=folder).returncode == 0
    done = run("dvc", "repro", cwd=folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

"""Make a registered version anew, from the revision, values and data that made it, and see whether its weights come out the same."""

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_core.files.content import write_json
from blip_core.tracking.provenance import ancestry, git, parse_lock
from blip_core.tracking.registry import PROVENANCE, Registry
from blip_core.versions.cache import open_cache, run_dvc
from blip_core.versions.inputs import kept_inputs, take_unkept
from blip_core.weights.checkpoint import model_hash

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

GIVEN = ("params.yaml", "dvc.yaml", "dvc.lock", "data.dvc")  # as they stood when the version was registered
MARK = ".work/rebuild.json"


@dataclass(frozen=True)
class Task:
    """A clone that is ready to train."""

    title: str  # blip/3
    stage: str  # DVC's: pretrain@g1
    out: Path  # the clone
    model: str  # where the stage puts the model, below `out`
    wanted: str  # hash of the registered model
    torch: str  # that made it
    whole: bool


def prepare(registry: Registry, version: "ModelVersion", out: Path, root: Path, *, whole: bool = False) -> Task:
    """A clone at `out` with the code, values and inputs that made the version; DVC's cache is that of the project at `root`.

    `whole`: the raw data for inputs. ValueError when the version can't be rebuilt, or `out` is taken.
    """
    tags, title = version.tags, f"{registry.name}/{version.version}"
    stage = _stage(tags, title, root)
    with tempfile.TemporaryDirectory() as folder:
        kept = registry.kept(version, PROVENANCE, Path(folder))
        if kept is None or not (kept / "dvc.lock").exists():
            raise ValueError(f"{title}: no dvc.lock is kept with it, so it can't be rebuilt; a chain run through DVC registers one")
        _clone(root, out, tags["git_rev"], identity={"version": title, "model_hash": tags["model_hash"], "whole": whole})
        for name in GIVEN:
            if (kept / name).exists():
                shutil.copy(kept / name, out / name)
        if tags.get("git_dirty") == "true" and (out / "blip_core").exists():  # a project without a clone has no code in git
            shutil.rmtree(out / "blip_core")
            shutil.copytree(registry.code(version, Path(folder) / "code"), out / "blip_core")
    take_unkept(out, root)
    model = _take_inputs(out, root, stage, whole=whole)
    _check_code(out, stage, title, tags["git_rev"], whole=whole)
    return Task(title, stage, out, model, tags["model_hash"], tags.get("torch", ""), whole)


def train(task: Task) -> str:
    """Run the training again (`whole`: every stage before it too) and compare the weights; says that they are equal, else ValueError.

    What was stopped goes on when it is started again.
    """
    command = ["repro", "--force", "--no-run-cache", "--no-commit", *([] if task.whole else ["--single-item"]), task.stage]
    run_dvc(task.out, *command, show=True, unset=("MLFLOW_TRACKING_URI",))  # the team's MLflow has the runs of this version already
    folder = task.out / task.model
    found = model_hash(folder)
    if found == task.wanted:
        return f"{task.title}: rebuilt in {folder}, and the weights are equal ({found})"
    other = f"; it was made with torch {task.torch}, this is {installed('torch')}" if task.torch not in ("", installed("torch")) else ""
    raise ValueError(
        f"{task.title}: rebuilt in {folder}, but the weights are not equal: {found}, registered {task.wanted}{other}. Equal bits need the "
        "same kind of device and the same number of threads (optim.threads), and no nondeterministic kernel"
    )


def _stage(tags: dict[str, str], title: str, root: Path) -> str:
    """The stage that trains it."""
    rev, stage = tags.get("git_rev"), tags.get("dvc_stage")
    if not rev or not stage:
        raise ValueError(f"{title}: its git revision or DVC stage was not recorded, so it can't be rebuilt")
    if not git(root, "rev-parse", "--verify", "--quiet", f"{rev}^{{commit}}"):
        raise ValueError(f"{title}: git does not know revision {rev} here; `git fetch` it from where the version was made")
    return stage


def _clone(root: Path, out: Path, rev: str, *, identity: dict[str, Any]) -> None:
    """A clone at `out` with the revision checked out and the project's own DVC cache; an unfinished rebuild of the same is taken up."""
    if out.exists():
        if not (out / MARK).exists() or json.loads((out / MARK).read_text()) != identity:
            raise ValueError(f"{out}: exists, and is no rebuild of {identity['version']}; name a new folder with --out")
        return
    try:
        for command in (
            ["clone", "--quiet", "--no-checkout", str(root), str(out)],
            ["-C", str(out), "checkout", "--quiet", "--detach", rev],
        ):
            done = subprocess.run(["git", *command], capture_output=True, text=True)
            if done.returncode:
                raise ValueError(f"git {command[0]} into {out} failed: {done.stderr.strip()}")
        with open_cache(root) as cache:
            run_dvc(out, "config", "--local", "cache.dir", str(cache.place.resolve()))
        write_json(identity, out / MARK)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def _take_inputs(out: Path, root: Path, stage: str, *, whole: bool) -> str:
    """Check out what the stage reads (`whole`: the raw data and the tasks' files). Returns the folder of the model that it makes."""
    lock = parse_lock((out / "dvc.lock").read_text())
    if stage not in lock:
        raise ValueError(f"{out / 'dvc.lock'}: has no stage {stage}")
    made = lock[stage]
    model = next(path for path, md5 in made.outs.items() if md5.endswith(".dir"))
    outs = {path: md5 for other in ancestry(lock, model)[:-1] for path, md5 in other.outs.items()}
    data, read = kept_inputs(out), {path: md5 for path, md5 in made.deps.items() if path in outs}
    below = {path: md5 for path, md5 in data.items() if any(path == dep or path.startswith(f"{dep}/") for dep in made.deps)}
    needed = data if whole else read | below
    with open_cache(root) as cache:
        lacking = set(cache.fetch(needed.values()))
    if lacking:
        paths = ", ".join(path for path, md5 in needed.items() if md5 in lacking)
        raise ValueError(f"{stage}: its inputs {paths} are neither in DVC's cache nor in its remote; `dvc push` them where they were made")
    if needed:
        run_dvc(out, "checkout", "--force", *needed)
    return model


def _check_code(out: Path, stage: str, title: str, rev: str, *, whole: bool) -> None:
    """Days of training are not spent on other code or values than those that made the version."""
    lock = parse_lock((out / "dvc.lock").read_text())
    behind = ancestry(lock, next(iter(lock[stage].outs))) if whole else [lock[stage]]
    remade = {path for made in behind for path in made.outs} if whole else set()
    found = json.loads(run_dvc(out, "status", "--json", *(made.stage for made in behind)))
    entries = [entry for changes in found.values() for entry in changes if isinstance(entry, dict)]
    changed = {path: how for entry in entries for path, how in entry.get("changed deps", {}).items() if path not in remade}
    if changed:
        told = ", ".join(f"{path} ({how if isinstance(how, str) else ', '.join(how)})" for path, how in sorted(changed.items()))
        raise ValueError(f"{title}: what {rev[:9]} holds is not what made it: {told}; {out} has the clone")

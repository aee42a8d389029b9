"""A run of another commit or other values: in a work tree of git below .work/runs, so that the folder itself stays as it is.

There is one for each commit and its values, so a run that was stopped, or is asked for twice, is taken up. Its branch run/NAME
records what was run: the values before the first stage starts, dvc.lock at the end. It shares DVC's cache, and so all that other
runs made, and MLflow's store with the folder.
"""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from blip_core.config.training import SHARED
from blip_core.tracking.provenance import git
from blip_core.versions.cache import open_cache, run_dvc
from blip_core.versions.inputs import kept_inputs, take_unkept
from flows.values import did_you_mean

RUNS = Path(".work/runs")
STAGES = Path(".work/stages")
# the flow commits, whoever runs the worker and whatever hooks and keys they have
AS_FLOW = (
    "-c",
    "user.name=blip-bootstrap",
    "-c",
    "user.email=bootstrap@localhost",
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "commit.gpgsign=false",
)


def make_worktree(root: Path, *, revision: str | None, params: dict[str, Any]) -> Path:
    """The work tree of this commit for these values, still to be filled. `revision` None is the last commit.

    ValueError when there is no such commit, or it is not what lies in the folder.
    """
    commit = resolve(root, revision)
    name = commit[:10] + ("-" + hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()[:8] if params else "")
    tree = root / RUNS / name
    tree.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".work/worktree.lock", timeout=600):
        if not (tree / ".git").exists():
            _add(root, tree, commit, f"run/{name}")
    return tree


def stage_lock(root: Path, stage: str) -> Path:
    folder = root / STAGES
    folder.mkdir(parents=True, exist_ok=True)
    return folder / (re.sub(r"[^\w-]+", "-", stage) + ".lock")


def make_stage_tree(root: Path, stage: str, commit: str) -> Path:
    """The work tree of this stage, at the commit: there is one for all its runs, so that what is unfinished in its .work is found again.

    Only under `stage_lock`: a run in it would not survive another commit.
    """
    tree = stage_lock(root, stage).with_suffix("")
    with FileLock(root / ".work/worktree.lock", timeout=600):
        if not (tree / ".git").exists():
            run_git(root, "worktree", "prune")
            run_git(root, "worktree", "add", "--quiet", "--force", "--detach", str(tree), commit)
    run_git(tree, "checkout", "--quiet", "--force", "--detach", commit)
    share_cache(root, tree)
    run_dvc(tree, "config", "--local", "cache.type", "reflink,hardlink,copy")  # the data is not there once for each stage
    return tree


def fill(tree: Path, root: Path, *, params: dict[str, Any], with_lock: bool) -> None:
    """Put the values, the raw data, the tasks' files and what dvc.lock knows of into the tree; `with_lock`: what the folder's own dvc.lock
    knows of.

    ValueError when a key is unknown, or the raw data is neither in DVC's cache nor in its remote.
    """
    if params:
        run_git(tree, "checkout", "--quiet", "HEAD", "--", "params.yaml")
        override(tree / "params.yaml", params)
        _commit(tree, "params.yaml", "params: " + ", ".join(f"{key}={json.dumps(value)}" for key, value in params.items()))
    if with_lock and (root / "dvc.lock").exists() and not (tree / ".dvc/config.local").exists():
        shutil.copy(root / "dvc.lock", tree)  # what the folder made since the commit need not be made again
    share_cache(root, tree)
    _take_data(tree)
    take_unkept(tree, root)


def resolve(root: Path, revision: str | None) -> str:
    """The commit's full name; a revision that is not here is fetched."""
    if not git(root, "rev-parse", "--verify", "--quiet", "HEAD"):
        raise ValueError(f"{root}: revision and params need a repository of git with a commit in it")
    if revision is None:  # dvc.lock changes with every run
        if changed := git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock"):
            files = ", ".join(line.split()[-1] for line in changed.splitlines())
            raise ValueError(f"params: they are laid over the last commit, and {files} differ from it: commit them, or name a revision")
        return git(root, "rev-parse", "HEAD")
    if revision.startswith("-"):
        raise ValueError(f"revision: expected a commit, got {revision!r}")
    query = ("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if not (commit := git(root, *query)) and git(root, "remote"):
        run_git(root, "fetch", "--quiet", "--all")
        commit = git(root, *query)
    if not commit:
        raise ValueError(f"revision: git knows no commit {revision!r} here; push it to where this folder fetches from")
    return commit


def override(path: Path, params: dict[str, Any]) -> None:
    """Set values by dotted key in a YAML file; comments and form, which is DVC's, stay. A section that is not there is a ValueError."""
    from ruamel.yaml import YAML

    editor = YAML()
    editor.preserve_quotes, editor.width = True, 4096
    values, expected = editor.load(path), yaml.safe_load(path.read_text())
    for key, value in params.items():
        *parents, last = key.split(".")
        _section(expected, parents, key)[last] = value
        # by way of the form that PyYAML writes, which reads it later: the editor's own off or 1e-05 would be other values to it
        _section(values, parents, key)[last] = editor.load(yaml.safe_dump(value, default_flow_style=True, width=4096))
    text = io.StringIO()
    editor.dump(values, text)
    assert yaml.safe_dump(yaml.safe_load(text.getvalue())) == yaml.safe_dump(expected)  # as text, for .nan is equal to nothing
    path.write_text(text.getvalue())


def tracking_store(root: Path) -> str:
    """The folder's own store of MLflow, with its experiment made: a store that a work tree began would lie in that tree."""
    from blip_core.tracking.runs import connect, lock, uri

    if not os.environ.get("MLFLOW_TRACKING_URI") and not (root / "mlflow.db").exists():
        with lock(root):
            connect(root)
    return uri(root)


def record(tree: Path) -> str:
    """Commit dvc.lock, and with it the identity of all that was made; says where."""
    if (tree / "dvc.lock").exists():
        _commit(tree, "dvc.lock", "dvc.lock of the run")
    return f"{tree}, branch {git(tree, 'rev-parse', '--abbrev-ref', 'HEAD')}"


def _section(values: dict[str, Any], parents: list[str], key: str) -> dict[str, Any]:
    whole = values
    for depth, name in enumerate(parents):
        if depth == 1 and parents[0] in SHARED.get(name, ()):
            values.setdefault(name, {})  # so far the training takes this part from `training` alone
        section = values.get(name)
        if not isinstance(section, dict):
            raise ValueError(f"params: {key!r}: params.yaml has no section {name!r}{did_you_mean(key, whole)}")
        values = section
    return values


def _add(root: Path, tree: Path, commit: str, branch: str) -> None:
    """The tree on its branch, which a tree that was removed has left behind."""
    run_git(root, "worktree", "prune")
    known = git(root, "rev-parse", "--verify", "--quiet", f"refs/heads/{branch}")
    run_git(root, "worktree", "add", "--quiet", *([str(tree), branch] if known else ["-b", branch, str(tree), commit]))


def share_cache(root: Path, tree: Path) -> None:
    """The tree keeps and finds in the cache of `root` what it makes."""
    if (root / ".dvc/config.local").exists():  # remotes' credentials
        shutil.copy(root / ".dvc/config.local", tree / ".dvc")
    with open_cache(root) as cache:
        run_dvc(tree, "config", "--local", "cache.dir", str(cache.place.resolve()))


def _take_data(tree: Path) -> None:
    """The raw data and the tasks' files that DVC keeps, fetched where the cache lacks them; of the stages' outputs what the cache has."""
    needed = kept_inputs(tree)
    with open_cache(tree) as cache:
        lacking = set(cache.fetch(needed.values()))
    if lacking:
        paths = ", ".join(f"{path} ({md5})" for path, md5 in needed.items() if md5 in lacking)
        raise ValueError(f"{paths}: neither in DVC's cache nor in its remote; `dvc push` it where it was added")
    run_dvc(tree, "checkout", "--quiet", "--force", "--allow-missing")


def _commit(tree: Path, path: str, message: str) -> None:
    """Nothing where the file is as committed."""
    if git(tree, "status", "--porcelain", "--", path):
        run_git(tree, "add", "--", path)
        run_git(tree, *AS_FLOW, "commit", "--quiet", "--message", message, "--", path)


def run_git(folder: Path, *arguments: str) -> None:
    """ValueError says why it failed."""
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise ValueError(f"git {' '.join(arguments)} failed in {folder}: {done.stderr.strip() or done.stdout.strip()}")

"""Where a result comes from: the md5 that DVC gave the data, the revision of the code, the parameters. Read from files, without DVC."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

import yaml


def dvc_md5s(root: Path) -> dict[str, str]:
    """Path to md5 of what the stages made (dvc.lock) and of the raw data (data.dvc), as DVC knows them; folders end in `.dir`."""
    outs = []
    for path in (root / "data.dvc", root / "dvc.lock"):
        if path.exists():
            found = yaml.load(path.read_text(), Loader=yaml.BaseLoader) or {}  # BaseLoader: an md5 of digits alone stays text
            outs += found.get("outs", []) + [out for stage in found.get("stages", {}).values() for out in stage.get("outs", [])]
    return {out["path"]: out["md5"] for out in outs if "md5" in out}


def inputs_md5s(inputs: list[Path], root: Path) -> dict[str, str]:
    """Of the inputs, and of what lies below an input that is no output of a stage itself."""
    base = root.resolve()
    names = {os.path.relpath(base / path, base) for path in inputs}
    return {p: md5 for p, md5 in dvc_md5s(root).items() if any(p == n or p.startswith(f"{n}/") for n in names)}


def chain_id(root: Path) -> str:
    """Identity of one pass through the chain: its parameters and its raw data."""
    files = [root / "params.yaml", root / "data.dvc"]
    return hashlib.sha256(b"\0".join(f.read_bytes() if f.exists() else b"" for f in files)).hexdigest()[:12]


def git_state(root: Path) -> dict[str, str]:
    """Revision of the code, and whether what decides the results differs from it. Both empty outside a repository.

    dvc.lock is left out on purpose: it changes with every stage of the very run.
    """
    rev = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--", "blip_core", "mlflow", "params.yaml", "dvc.yaml", "data.dvc")
    return {"git_rev": rev, "git_dirty": str(bool(changed)).lower() if rev else ""}


def _git(root: Path, *args: str) -> str:
    try:
        return subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, no repository or no commit yet
        return ""


def flatten(params: dict, prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow takes them: {"optim": {"lr": 1e-3}} is {"optim.lr": "0.001"}; lists are JSON."""
    flat = {}
    for key, value in params.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat

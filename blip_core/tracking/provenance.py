"""Where a result comes from: the md5 that DVC gave the data, the revision of the code, the parameters. Read from files, without DVC."""

import hashlib
import json
import os
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import yaml

from blip_core.config.params import Params, load_params
from blip_core.runtime.installed import installed, named
from blip_core.tables.captions import KEPT, read_table, table_paths
from blip_core.tables.manifest import content_hash, listed_hash

# so that an md5 of digits alone stays text; libyaml reads the demo's lock in 7 ms, PyYAML's own parser in 60
LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


@dataclass(frozen=True)
class Made:
    """One stage of dvc.lock: what was run, on what, and what it made."""

    stage: str  # DVC's name: pretrain@g1
    cmd: str
    deps: dict[str, str]  # path to md5; of a folder it ends in `.dir`
    outs: dict[str, str]
    sizes: dict[str, int]  # of the outs, in bytes
    params: dict[str, Any]  # that DVC tracks for the stage, nested as in params.yaml; all values are text

    @property
    def sources(self) -> set[str]:
        """Whose texts a training may see: its --sources, or human where it has no such flag."""
        found = re.search(r"--sources\s+(\S+)", self.cmd)
        return set(found[1].split(",")) if found else {"human"}


Lock = dict[str, Made]  # by the stage's name, in the file's order


def parse_lock(text: str) -> Lock:
    """What a dvc.lock says. Outputs that DVC knows by anything but an md5 are left out."""
    stages = (yaml.load(text, Loader=LOADER) or {}).get("stages", {})
    lock = {}
    for name, body in stages.items():
        deps, outs = ({e["path"]: e for e in body.get(kind, []) if "md5" in e} for kind in ("deps", "outs"))
        used, made = ({path: e["md5"] for path, e in entries.items()} for entries in (deps, outs))
        sizes = {path: int(e.get("size", 0)) for path, e in outs.items()}
        lock[name] = Made(name, body.get("cmd", ""), used, made, sizes, body.get("params", {}).get("params.yaml", {}))
    return lock


def read_lock(root: Path) -> Lock:
    """The workspace's dvc.lock; empty where there is none."""
    path = root / "dvc.lock"
    return parse_lock(path.read_text()) if path.exists() else {}


def maker(lock: Lock, path: str) -> Made | None:
    """The stage whose output this path is."""
    return next((made for made in lock.values() if path in made.outs), None)


def ancestry(lock: Lock, path: str) -> list[Made]:
    """The stages behind an output, each after those that it depends on; the last one made it."""
    found: dict[str, Made] = {}

    def visit(made: Made | None) -> None:
        if made and made.stage not in found:
            for dep in made.deps:
                visit(maker(lock, dep))
            found[made.stage] = made

    visit(maker(lock, path))
    return list(found.values())


def stale(lock: Lock, paths: list[str]) -> list[str]:
    """Where a stage behind one of these outputs read something that has been made anew since: a sentence for each."""
    behind = {made.stage: made for path in paths for made in ancestry(lock, path)}
    faults = []
    for made in behind.values():
        for path, md5 in made.deps.items():
            source = maker(lock, path)
            if source and source.outs[path] != md5:
                faults.append(f"{made.stage} read {path} as {md5}, but {source.stage} made it {source.outs[path]}")
    return faults


def outdated(root: Path) -> set[str]:
    """Outputs that are of an earlier run of the chain: a stage behind them read what has been made anew since, or is gone."""
    lock = read_lock(root)
    made_now = {path: md5 if (root / path).exists() else "" for made in lock.values() for path, md5 in made.outs.items()}
    old: set[str] = set()

    def behind(made: Made) -> bool:
        read_another = any(made_now.get(dep, md5) != md5 for dep, md5 in made.deps.items())
        return read_another or any(path == dep or path.startswith(f"{dep}/") for dep in made.deps for path in old)

    while new := {path for made in lock.values() if behind(made) for path in made.outs} - old:
        old |= new
    return old


def dvc_md5s(root: Path) -> dict[str, str]:
    """Path to md5 of what the stages made (dvc.lock) and of the raw data (data.dvc), as DVC knows them; folders end in `.dir`."""
    path = root / "data.dvc"
    md5s = raw_data(path.read_text()) if path.exists() else {}
    return md5s | {name: md5 for made in read_lock(root).values() for name, md5 in made.outs.items()}


def raw_data(text: str) -> dict[str, str]:
    """Path to md5 of what a .dvc file names."""
    return {out["path"]: out["md5"] for out in (yaml.load(text, Loader=LOADER) or {}).get("outs", []) if "md5" in out}


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
    rev = git(root, "rev-parse", "HEAD")
    changed = git(root, "status", "--porcelain", "--", "blip_core", "mlflow", "labels", "columns", "params.yaml", "dvc.yaml", "data.dvc")
    return {"git_rev": rev, "git_dirty": str(bool(changed)).lower() if rev else ""}


def who(root: Path) -> str:
    """The person who works here: as git knows them, else the account."""
    name, mail = (git(root, "config", f"user.{key}") for key in ("name", "email"))
    return f"{name} <{mail}>" if name and mail else name or mail or os.environ.get("USER") or f"user {os.getuid()}"


def git(root: Path, *args: str) -> str:
    """What git prints; "" where it fails: no git, no repository, no commit yet, no such revision."""
    try:
        return subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, timeout=300, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def provenance(params: str, *, model: Path, generation: Path, shards: Path, root: Path) -> dict[str, str]:
    """Tags that say which code, values and data made a model; "" where git or DVC do not know it."""
    md5s, made = dvc_md5s(root), maker(read_lock(root), os.path.relpath(model, root))
    known = {"generation": generation, "shards": shards, "data": root / "data"}
    return {
        **git_state(root),
        "package": named(installed()),
        "chain": chain_id(root),
        "params_hash": hashlib.sha256(params.encode()).hexdigest(),
        "model": model.name,
        "dvc_stage": made.stage if made else "",
        "sources": ",".join(sorted(made.sources)) if made else "",
        "generation": generation.name,
        "generation_hash": content_hash(generation),
        "shards_hash": listed_hash(shards),  # by the manifest alone: the shards of a crawl are too large to be read for a tag
        **{f"{name}_dvc_md5": md5s.get(os.path.relpath(path, root), "") for name, path in known.items()},
        **_authors(generation),
    }


MAKERS = "makers.json"  # beside what rebuilds a version: who these are, in words


def rebuilding(params: Params, *, root: Path, **further: Path) -> dict[str, str]:
    """Files that rebuild and explain a version, by name: what DVC reads, as it stood, and further JSON, as the gate's checks."""
    named = {name: root / name for name in ("params.yaml", "dvc.yaml", "dvc.lock", "data.dvc")}
    named |= {f"{name}.json": path for name, path in further.items()}
    files = {name: path.read_text() for name, path in named.items() if path.exists()}
    if "params.yaml" not in files or load_params(named["params.yaml"]) != params:  # --params named another file
        files["params.yaml"] = yaml.safe_dump(params.model_dump(mode="json", by_alias=True), sort_keys=False)
    return files


def _authors(generation: Path) -> dict[str, str]:
    """Content hashes of the captioners and filters behind a generation, and how many texts of each source it keeps."""
    kept: Counter[str] = Counter()
    found: dict[str, set[str]] = {"model": set(), "filter": set()}
    for path in table_paths(generation):
        table = read_table(path, ["source", "reason", *found])
        for column, seen in found.items():
            seen |= set(pc.unique(table[column]).to_pylist()) - {"", None}
        kept.update(table["source"].filter(pc.equal(table["reason"], KEPT)).to_pylist())
    texts = {f"texts_{source}": str(num) for source, num in sorted(kept.items())}
    return {"captioner": ",".join(sorted(found["model"])), "filter": ",".join(sorted(found["filter"])), **texts}


def flatten(params: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow takes them: {"optim": {"lr": 1e-3}} is {"optim.lr": "0.001"}; lists are JSON."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat

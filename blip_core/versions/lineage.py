"""Where a model comes from, and where a text went: from a version back to code, values and data; from an image's key to the models.

What made a version was written down when it was registered (tags, and files of its run), so none of it is looked up in the workspace.
"""

import json
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import yaml

from blip_core.capfilt.plugins import identify
from blip_core.tables.captions import KEPT, makers_of
from blip_core.tables.stopped import require_made
from blip_core.tracking.champion import moves, withdrawn
from blip_core.tracking.provenance import MAKERS, Lock, ancestry, maker, parse_lock, read_lock
from blip_core.tracking.registry import PROVENANCE, Registry, open_registry
from blip_core.versions.cache import open_cache
from blip_core.versions.generations import FOLDER, Version, commits, fetched, files_of, here, known

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

TRAININGS = ("pretrain", "tune_captioner", "tune_filter")  # stages whose output is a model folder
TEXT = ("text", "source", "round", "candidate", "fused_web", "fused_synthetic", "model", "filter", "match", "reason")
# columns of blip_core/tables/captions.py
LEARNED = ("key", "text", "source", "round", "candidate", "fused_web", "fused_synthetic", "model", "filter", "itm", "itc", "match")


def of_model(spec: str, root: Path, *, name: str) -> dict[str, Any]:
    """Lineage of `blip/3`, `models:/blip@champion` or a local model folder, which may be a version of the registered model `name`.

    ValueError when neither the registry nor dvc.lock knows it.
    """
    folder = root / spec
    require_made(folder)
    if (folder / "config.json").exists():
        identity = identify(folder)
        with open_registry(name, root) as registry:
            version = registry.find("model_hash", identity)
            return of_version(registry, version) if version else _of_folder(folder, identity, root)
    name, wanted = split_name(spec)
    with open_registry(name, root) as registry:
        return of_version(registry, find_version(registry, wanted or "@champion"))


def split_name(spec: str) -> tuple[str, str]:
    """`blip/3`, `models:/blip/3` and `blip@champion` as the model's name and `3` or `@champion`; "" where it names neither."""
    spec = spec.removeprefix("models:/")
    name, _, alias = spec.partition("@")
    if alias:
        return name, f"@{alias}"
    name, _, number = spec.partition("/")
    return name, number


def find_version(registry: Registry, wanted: str) -> "ModelVersion":
    """The version that `3` or `@champion` names. ValueError when there is none."""
    version = registry.at(wanted[1:]) if wanted.startswith("@") else registry.version(wanted)
    if version is None:
        known_ = ", ".join(f"@{alias} is version {n}" for alias, n in registry.aliases().items()) or "nothing is registered under this name"
        raise ValueError(f"{registry.name}{wanted}: there is no such version; {known_}")
    return version


def of_version(registry: Registry, version: "ModelVersion") -> dict[str, Any]:
    """All that is known of how a version was made, measured and promoted; "" or empty where nothing was recorded."""
    tags, number = version.tags, str(version.version)
    files = _rebuilding_files(registry, version)
    lock = parse_lock(files.get("dvc.lock", ""))
    gate = json.loads(files.get("gate.json", "{}"))
    made, model = tags.get("dvc_stage", ""), tags.get("model", "")
    folders = (f"/{model}", f"/{model}/model")  # of a pretraining, and of what a task made of it
    out = next((path for path in lock[made].outs if path.endswith(folders)), "") if made in lock else ""
    parts = {kind: {k: tags.get(f"{kind}_{k}", "") for k in ("hash", "dvc_md5")} for kind in ("generation", "shards", "data")}
    parts["generation"] |= {"name": tags.get("generation", ""), "texts": {k[6:]: int(v) for k, v in tags.items() if k.startswith("texts_")}}
    return {
        "version": f"{registry.name}/{number}",
        "aliases": sorted(alias for alias, n in registry.aliases().items() if n == number),
        "registered": {"at": _iso(version.creation_timestamp), "by": tags.get("registered_by", ""), "run": version.run_id},
        "model": {k: tags.get(k, "") for k in ("model", "model_hash", "dvc_stage", "sources", "torch")},
        "code": {"git_rev": tags.get("git_rev", ""), "dirty": tags.get("git_dirty") == "true"},
        "package": tags.get("package", ""),
        "params_hash": tags.get("params_hash", ""),
        "params": yaml.safe_load(files.get("params.yaml", "")),
        **parts,
        "captioner": tags.get("captioner", ""),
        "filter": tags.get("filter", ""),
        "makers": json.loads(files.get(MAKERS, "{}")),
        "gate": {"result": tags.get("gate", ""), "checks": gate.get("checks", [])},
        "metrics": registry.metrics(version),
        "intervals": {k.removeprefix("metric."): v for k, v in sorted(tags.items()) if k.startswith("metric.")},
        "baseline_tests": json.loads(tags.get("baseline_tests", "{}")),
        "champion_test": json.loads(tags.get("champion_test", "{}")),
        "champion": [vars(move) for move in moves(version)],
        "withdrawn": vars(taken) if (taken := withdrawn(version)) else None,
        "runs": registry.runs(tags["chain"]) if "chain" in tags else {},
        "stages": _stages(lock, out),
        "rebuild": f"blip rebuild {registry.name}/{number} --out rebuilt-{registry.name}-{number}",
    }


def _of_folder(folder: Path, identity: str, root: Path) -> dict[str, Any]:
    """Of a model that is not registered: what dvc.lock says of its place."""
    path = os.path.relpath(folder.resolve(), root.resolve())
    lock = read_lock(root)
    made = maker(lock, path)
    if made is None:
        raise ValueError(f"{folder}: no version with its weights ({identity}) is registered, and dvc.lock does not say what makes {path}")
    return {
        "folder": path,
        "model": {"model": folder.name, "model_hash": identity, "dvc_stage": made.stage, "sources": ",".join(sorted(made.sources))},
        "params": made.params,
        "generation": next(({"name": Path(p).name, "dvc_md5": md5} for p, md5 in made.deps.items() if p.startswith(f"{FOLDER}/")), {}),
        "stages": _stages(lock, path),
    }


def _stages(lock: Lock, path: str) -> list[dict[str, Any]]:
    """The stages behind an output, first to last, with what they made."""
    return [{"stage": made.stage, "outs": made.outs} for made in ancestry(lock, path)]


def learned_from(found: dict[str, Any], root: Path) -> list[dict[str, Any]]:
    """Every text that a model of `of_model` trained on: whose image, who wrote it (`model`), who scored it (`filter`) and how.

    ValueError when its generation is unknown to DVC, or neither in its cache nor in its remote.
    """
    generation, sources = found["generation"], set(found["model"]["sources"].split(","))
    version = _generation(generation, root)
    if version is None:
        named = f"{generation.get('name', '?')} {generation.get('dvc_md5') or '(no md5 of DVC is recorded)'}"
        raise ValueError(f"generation {named}: neither this folder's dvc.lock nor a committed one has it; `git fetch` the commit that does")
    with open_cache(root) as cache:
        files = fetched(version, cache, root)
        paths = [path for file, path in sorted(files.items()) if file.endswith(".parquet")]
        seen = [("reason", "==", KEPT), ("source", "in", sources)]
        return [row for path in paths for row in pq.read_table(path, columns=list(LEARNED), filters=seen).to_pylist()]


def _generation(generation: dict[str, Any], root: Path) -> Version | None:
    md5 = generation.get("dvc_md5")
    return next((version for version in known(root) if md5 and version.md5 == md5), None)


def _rebuilding_files(registry: Registry, version: "ModelVersion") -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        kept = registry.kept(version, PROVENANCE, Path(folder))
        return {path.name: path.read_text() for path in kept.iterdir()} if kept else {}


def of_caption(key: str, root: Path, *, name: str) -> dict[str, Any]:
    """Every known version of a generation that has texts of this image, their fate there, and the models that trained on those kept.

    {"key", "generations": [{"version", "workspace", "texts": [{…, "models": […]}], "makers": who wrote and judged them, in words, by
    content hash}], "elsewhere": versions whose files are not on this machine}. Models are versions of the registered model `name`, and
    folders that some dvc.lock names.
    """
    present, found, elsewhere = {(v.name, v.md5) for v in here(root)}, [], []
    trained = _trainings(root) + _registered(root, name)
    with open_cache(root) as cache:
        for version in known(root):
            files = files_of(version, cache, root)
            if files is None:
                elsewhere.append(str(version))
                continue
            texts = [{**row, "models": _trained_on(row, version, trained)} for row in _texts(key, files)]
            if texts:
                about = {"version": str(version), "workspace": (version.name, version.md5) in present}
                makers = json.loads(files["manifest.json"].read_text()).get("makers", {})
                found.append({**about, "texts": texts, "makers": makers_of(texts, makers)})
    if not found:
        unseen = f"; not on this machine: {', '.join(elsewhere)} (`blip generations get` fetches one)" if elsewhere else ""
        raise ValueError(f"key {key!r} is in no known version of a generation{unseen}; keys read like web-000000012")
    return {"key": key, "generations": found, "elsewhere": elsewhere}


def _texts(key: str, files: dict[str, Path]) -> list[dict[str, Any]]:
    paths = [path for file, path in sorted(files.items()) if file.endswith(".parquet")]
    return [row for path in paths for row in pq.read_table(path, columns=list(TEXT), filters=[("key", "==", key)]).to_pylist()]


def _trained_on(row: dict[str, Any], version: Version, trained: list[tuple[str, str, set[str]]]) -> list[str]:
    if row["reason"] != KEPT or not version.md5:
        return []
    return [model for model, md5, sources in trained if md5 == version.md5 and row["source"] in sources]


def _registered(root: Path, name: str) -> list[tuple[str, str, set[str]]]:
    """Registered versions with DVC's md5 of the generation that they trained on, and the sources that they saw of it."""
    with open_registry(name, root) as registry:
        aliases: dict[str, list[str]] = {}
        for alias, number in registry.aliases().items():
            aliases.setdefault(number, []).append(alias)
        found = []
        for version in registry.versions():
            also = f" ({', '.join(aliases[number])})" if (number := str(version.version)) in aliases else ""
            sources = set(version.tags.get("sources", "").split(","))
            found.append((f"{name}/{number}{also}", version.tags.get("generation_dvc_md5", ""), sources))
    return found


def _trainings(root: Path) -> list[tuple[str, str, set[str]]]:
    """The same of the model folders that the workspace's dvc.lock and the committed ones name."""
    locks = {"": read_lock(root)}
    locks |= {f"@{str(versions[0]).partition('@')[2]}": versions[0].lock for versions in commits(root) if versions}
    seen, found = set(), []
    for place, lock in locks.items():
        for made in lock.values():
            if made.stage.partition("@")[0] in TRAININGS:
                read = [md5 for path, md5 in made.deps.items() if path.startswith(f"{FOLDER}/")]
                folders = [(path, md5) for path, md5 in made.outs.items() if md5.endswith(".dir") and (path, md5) not in seen]
                seen |= set(folders)
                found += [(f"{path}{place}", md5, made.sources) for path, _ in folders for md5 in read]
    return found


def _iso(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")

"""Make a version of a task in the MLflow registry: the network that was tuned of the registered model, as blip-vqa of blip."""

import hashlib
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_core.config.params import Params
from blip_core.evaluation.task_metrics import task_metrics
from blip_core.files.content import read_json, write_json
from blip_core.runtime.installed import PACKAGE, installed, named
from blip_core.tracking.champion import CHALLENGER, CHAMPION, ORIGIN
from blip_core.tracking.provenance import chain_id, git_state, maker, read_lock, rebuilding, who
from blip_core.tracking.registry import Registry, open_registry
from blip_core.weights.checkpoint import is_tuned, model_hash

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


def register_task(task: str, tuned: Path, measured: Path, registration: Path, out: Path, *, params: Params) -> str:
    """`tuned`: of each model the folder that tune_task and evaluate_task made. `registration`: what register wrote of the model.

    The version is `challenger`, and `champion` as long as the model that it is tuned from is champion. A network that is registered
    already keeps its version. Returns in words which it is. A kind that tunes nothing has no version of its own.
    """
    base = read_json(registration)
    title = f"{base['name']}/{base['version']}"
    root, folder, name = Path.cwd(), tuned / base["model"] / "model", f"{base['name']}-{task}"
    if not is_tuned(folder):
        write_json({"name": base["name"], "version": base["version"], "base": title}, out)
        return f"{task} tunes nothing: its model is {title}."
    metrics = {k: v for k, v in task_metrics(measured / base["model"]).items() if k.startswith(f"{task}.")}
    tags = _tags(base, root) | _of_tuning(folder, task, title, params, root)
    with open_registry(name, root) as registry:
        registry.close_runs(tags["model_hash"])
        version = registry.find("model_hash", tags["model_hash"])
        if version is None:
            package = {"artifacts": {"model": str(folder)}, "code_paths": [str(PACKAGE)]}
            version = registry.add(tags=tags, files=rebuilding(params, root=root), **package)
        _record(registry, version, folder.with_name("evaluation"), metrics, title)
        standing = _point(registry, version, champion=base["promoted"])
    write_json(
        {"name": name, "version": int(version.version), "base": title, "model_hash": tags["model_hash"], "run_id": version.run_id}, out
    )
    return f"Version {version.version} of {name}, tuned from {title}, is {standing}."


def _tags(base: dict[str, Any], root: Path) -> dict[str, str]:
    """Where the model comes from that was tuned."""
    with open_registry(base["name"], root) as registry:
        tags = registry.version(base["version"]).tags
    kept = (*ORIGIN, "generation_hash", "shards_hash", "shards_dvc_md5")
    return {name: tags[name] for name in kept if name in tags} | {k: v for k, v in tags.items() if k.startswith("texts_")}


def _of_tuning(folder: Path, task: str, base: str, params: Params, root: Path) -> dict[str, str]:
    made = maker(read_lock(root), str(folder))
    about = {
        "task": task,
        "base": base,
        "task_data_dvc_md5": made.deps.get(f"tasks/{task}", "") if made else "",
        "dvc_stage": made.stage if made else "",
        "model_hash": model_hash(folder),
        "params_hash": hashlib.sha256(params.model_dump_json().encode()).hexdigest(),
        "chain": chain_id(root),
        "package": named(installed()),
        "registered_by": who(root),
        "torch": version_of("torch"),
    }
    return about | git_state(root)


def _record(registry: Registry, version: "ModelVersion", evaluation: Path, metrics: dict[str, float], base: str) -> None:
    """What the version is and how it was measured, where people look for it."""
    values = [m for m in metrics if f"{m}_low" in metrics]
    shown = {m: f"{metrics[m]:.4g} [{metrics[f'{m}_low']:.4g}, {metrics[f'{m}_high']:.4g}]" for m in values}
    registry.record(version, {"evaluation": evaluation}, metrics={m: metrics[m] for m in values})
    registry.tag(version, {f"metric.{m}": text for m, text in shown.items()})
    table = ["| metric | value [interval] |", "|---|---|", *(f"| {m} | {text} |" for m, text in shown.items())]
    registry.describe(version, "\n".join([f"Tuned from {base}.", "", *table]))
    registry.describe_all(
        f"Tuned versions of {base.partition('/')[0]}; `blip lineage {registry.name}/{version.version}` says what made one."
    )


def _point(registry: Registry, version: "ModelVersion", *, champion: bool) -> str:
    registry.point(CHALLENGER, version)
    if champion:
        registry.point(CHAMPION, version)
    return CHAMPION if champion else "not champion, as the model is not"
